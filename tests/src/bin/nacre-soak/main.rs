//! Lets containers and processes come and go for a long time, restarts containerd by SIGKILL every ten minutes, kills one
//! pod in twenty, and finds what grows: every five minutes, when only the pod that lives throughout is there, it prints
//! what the host, containerd, that pod's programs and its guest hold. `tests/lab/run` starts it; `make soak` runs it
//! for two hours. `nacre_tests::soak` has the figures and says when one grows.

mod load;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;
use nacre_tests::containerd::ctr::remove_leftovers;
use nacre_tests::growth::Census;
use nacre_tests::leaks::Snapshot;
use nacre_tests::runner::{self, EXIT_DEADLINE};
use nacre_tests::soak::figures::{self, LongLived};
use nacre_tests::soak::trend::{Figure, Series};

use load::{Counts, Kind, Load};

/// Between two restarts of containerd.
const RESTARTS: Duration = Duration::from_secs(600);
/// Most files that are named when something grows.
const MAX_NAMES: usize = 40;
/// A run with so many failures has nothing more to tell.
const MAX_FAILURES: usize = 10;

/// Lets containers come and go, and fails if something grows.
#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Seconds between two takings of the figures.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    every: u64,
    /// The seed of what comes and goes; the clock's if it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    runner::exit_code("nacre-soak", &soak(&arguments))
}

/// Returns the number of failures.
fn soak(arguments: &Arguments) -> Result<usize> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = arguments.seed.unwrap_or(now.as_secs());
    println!("{} minutes with --seed {seed}", arguments.minutes);
    let empty = Snapshot::take()?;
    let id = format!("soak-{}", std::process::id());
    let long_lived = load::begin(&id)?;
    let mut soak = Soak {
        load: Load::new(seed, long_lived.clone()),
        long_lived,
        until: Instant::now() + Duration::from_secs(60 * arguments.minutes),
        begun: Instant::now(),
        series: Series::default(),
        checked_pods: 0,
        failures: Vec::new(),
        passed: 0,
    };
    soak.run(Duration::from_secs(arguments.every))?;
    load::end(&id)?;
    let left = empty.compare(EXIT_DEADLINE);
    soak.note("nothing is left", left);
    soak.print_end();
    let failed: Vec<&str> = soak.failures.iter().map(String::as_str).collect();
    Ok(runner::print_totals(soak.passed, &failed))
}

struct Soak {
    load: Load,
    long_lived: LongLived,
    begun: Instant,
    until: Instant,
    series: Series,
    /// Pods that had been made when the figures were taken last.
    checked_pods: u64,
    failures: Vec<String>,
    passed: usize,
}

/// What the figures are compared with: the host after the warm-up.
struct Before {
    names: Snapshot,
    files: BTreeSet<PathBuf>,
    census: Census,
    pods: u64,
}

impl Soak {
    fn run(&mut self, every: Duration) -> Result<()> {
        self.warm_up();
        self.load.until_alone()?;
        let before = Before {
            names: Snapshot::take()?,
            files: figures::files(),
            census: Census::take()?,
            pods: self.load.counts.pods,
        };
        let (mut checked, mut restarted) = (Instant::now(), Instant::now());
        self.check(&before)?;
        while Instant::now() < self.until && self.failures.len() < MAX_FAILURES {
            if restarted.elapsed() >= RESTARTS {
                restarted = Instant::now();
                let outcome = self.load.restart_containerd();
                self.note("a restart of containerd", outcome);
            }
            let kind = self.load.draw();
            self.live(kind);
            if checked.elapsed() >= every {
                checked = Instant::now();
                self.check(&before)?;
            }
        }
        if self.checked_pods < self.load.counts.pods {
            self.check(&before)?;
        }
        Ok(())
    }

    /// Each kind once, both victims and a restart: caches are filled, and what is made once exists.
    fn warm_up(&mut self) {
        for kind in [
            Kind::Foreground,
            Kind::Detached,
            Kind::Pod,
            Kind::Killed,
            Kind::Killed,
        ] {
            self.live(kind);
        }
        let outcome = self.load.restart_containerd();
        self.note("a restart of containerd", outcome);
        self.live(Kind::Foreground);
        self.live(Kind::Pod);
    }

    fn live(&mut self, kind: Kind) {
        let outcome = self.load.live(kind);
        self.note(&format!("{kind:?}, pod {}", self.load.counts.pods), outcome);
    }

    fn note(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("FAILED after {:.0?}: {name}: {error:#}", self.begun.elapsed());
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Takes the figures and prints them.
    fn check(&mut self, before: &Before) -> Result<()> {
        let same = before.names.compare(EXIT_DEADLINE);
        // What failed above left it.
        remove_leftovers();
        let figures = self.settled()?;
        let is_first = self.series.is_empty();
        self.series.add(&figures);
        self.checked_pods = self.load.counts.pods;
        let pods = self.load.counts.pods - before.pods;
        println!("{}", line(self.begun.elapsed(), &self.load.counts, &figures));
        let census = match is_first {
            true => Ok(()),
            false => Census::take()?.has_not_grown_since(&before.census, pods.max(20)),
        };
        let grown = self.series.has_not_grown();
        if grown.is_err() {
            let files = figures::files();
            let new: Vec<&PathBuf> = files.difference(&before.files).take(MAX_NAMES).collect();
            println!("files that were not there at first: {new:#?}");
        }
        let minute = self.begun.elapsed().as_secs() / 60;
        self.note(&format!("the same objects, minute {minute}"), same);
        self.note(&format!("the kernel's objects, minute {minute}"), census);
        self.note(&format!("no growth, minute {minute}"), grown);
        Ok(())
    }

    /// The figures, once no count exceeds the earlier ones, or after a while.
    fn settled(&self) -> Result<Vec<Figure>> {
        let until = Instant::now() + EXIT_DEADLINE;
        loop {
            let figures = figures::take(&self.long_lived)?;
            if self.series.exceeded(&figures).is_empty() || Instant::now() > until {
                return Ok(figures);
            }
        }
    }

    fn print_end(&self) {
        println!(
            "{:34} {:>8} {:>8} {:>8} {:>8}",
            "figure", "first", "last", "least", "most"
        );
        for line in self.series.summary() {
            println!("{line}");
        }
        let Counts {
            pods,
            containers,
            execs,
            killed_shims,
            killed_vmms,
            restarts,
        } = &self.load.counts;
        println!(
            "{pods} pods, {containers} containers, {execs} execs, {killed_shims} shims and {killed_vmms} VMMs killed, \
             {restarts} restarts of containerd, {:.0} minutes",
            self.begun.elapsed().as_secs_f64() / 60.0
        );
    }
}

/// One line of the table, which people look at: each figure with its name.
fn line(after: Duration, counts: &Counts, figures: &[Figure]) -> String {
    let figures: Vec<String> = figures
        .iter()
        .map(|figure| format!("{} {}", figure.name, figure.value))
        .collect();
    format!(
        "{:3} min {:4} pods {:4} execs | {}",
        after.as_secs() / 60,
        counts.pods,
        counts.execs,
        figures.join(" | ")
    )
}
