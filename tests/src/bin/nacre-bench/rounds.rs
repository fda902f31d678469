//! The same command under every runtime, timed from ctr's start to its end. A round runs each runtime once. Their
//! order changes from round to round so that a busy host slows all of them alike, and so that each runs equally
//! often after each other one: the end of a VM still takes time of the host when ctr has returned.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::containers::{Running, exec_true, id, run_true};
use crate::order::order;
use crate::origin::{self, Kinds};
use crate::results::{Measure, Results, describe};
use crate::runtimes::{MeasuredRuntime, MeasuredRuntimes, further_peers};
use crate::statistics::{median, percentile, spread};

/// Seconds of one round.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// The installed build.
    pub nacre: f64,
    /// runc.
    pub runc: f64,
    /// The null shim.
    pub floor: f64,
    /// The build that `--other` names.
    pub other: Option<f64>,
    /// The installed build without templates.
    pub cold: Option<f64>,
    /// Further peers by their names, those that have not failed.
    pub further: Vec<(&'static str, f64)>,
}

/// A command that was timed.
pub struct Rounds {
    /// The row's name in `results.json`.
    pub name: &'static str,
    /// The command, for people.
    pub command: &'static str,
    /// The largest ratio to runc that is wanted, if one is.
    wanted: Option<f64>,
    /// The same without templates.
    cold_wanted: Option<f64>,
    /// Its rounds, without the one that warms up.
    pub rounds: Vec<Round>,
}

/// The limits of [`limited_starts`]: 1 GiB of memory and two CPUs.
const LIMITS: &[&str] = &["--memory-limit", "1073741824", "--cpus", "2"];

/// Starts and ends a container per runtime, `count` times. Also without templates, and with the further peers.
pub fn starts(runtimes: &MeasuredRuntimes, count: usize) -> Result<Rounds> {
    Ok(Rounds {
        name: "start",
        command: "ctr run --rm busybox true",
        wanted: Some(0.8),
        cold_wanted: Some(1.3),
        rounds: start_and_end(runtimes, "start", &[], count, &further_peers())?,
    })
}

/// The same with [`LIMITS`].
pub fn limited_starts(runtimes: &MeasuredRuntimes, count: usize) -> Result<Rounds> {
    Ok(Rounds {
        name: "start_limited",
        command: "ctr run --rm --memory-limit 1073741824 --cpus 2 busybox true",
        wanted: None,
        cold_wanted: None,
        rounds: start_and_end(runtimes, "start_limited", LIMITS, count, &[])?,
    })
}

fn start_and_end(
    runtimes: &MeasuredRuntimes,
    word: &str,
    flags: &[&str],
    count: usize,
    further: &[MeasuredRuntime],
) -> Result<Vec<Round>> {
    let mut all = runtimes.all();
    all.push(&runtimes.cold.shim_runtime);
    all.extend(further);
    let kinds = Kinds::of_all(runtimes, flags)?;
    let run = |shim_runtime: &MeasuredRuntime, number| {
        let id = id(&format!("{word}-{}", shim_runtime.name), number);
        run_true(shim_runtime, flags, &id)
    };
    let rounds = alternate(word, &all, count, (run, |_, ()| Ok(())))?;
    kinds.verify()?;
    Ok(rounds)
}

/// Starts a container per runtime in the background, `count` times; it is ended when no time is taken.
pub fn create_starts(runtimes: &MeasuredRuntimes, count: usize) -> Result<Rounds> {
    let _prepared = Kinds::prepare(runtimes.builds(), &[])?;
    let run = |shim_runtime: &MeasuredRuntime, number| {
        let id = id(&format!("{}-detached", shim_runtime.name), number);
        Running::detached(shim_runtime, &[], &id, "exec sleep 1000000")
    };
    let after = |shim_runtime: &MeasuredRuntime, running: Running| {
        let build = runtimes.build(shim_runtime.name);
        let checked = build.map_or(Ok(()), |build| origin::check(build, running.id()));
        running.end()?;
        checked
    };
    let rounds = alternate("create_start", &runtimes.all(), count, (run, after))?;
    Ok(Rounds {
        name: "create_start",
        command: "ctr run -d busybox sleep",
        wanted: Some(0.8),
        cold_wanted: None,
        rounds,
    })
}

/// Runs a command in a running container per runtime, `count` times.
pub fn execs(runtimes: &MeasuredRuntimes, count: usize) -> Result<Rounds> {
    let all = runtimes.all();
    let mut containers = Vec::new();
    for shim_runtime in &all {
        let script = "echo up; exec sleep 1000000";
        let id = id(shim_runtime.name, 0);
        containers.push(match runtimes.build(shim_runtime.name) {
            Some(build) => origin::start(build, &id, script)?,
            None => Running::start(shim_runtime, &id, script)?,
        });
    }
    let run = |shim_runtime: &MeasuredRuntime, number| {
        exec_true(&id(shim_runtime.name, 0), &format!("exec-{number}"))
    };
    let rounds = alternate("exec", &all, count, (run, |_, ()| Ok(())));
    for container in containers {
        container.end()?;
    }
    Ok(Rounds {
        name: "exec",
        command: "ctr task exec true",
        wanted: Some(0.45),
        cold_wanted: None,
        rounds: rounds?,
    })
}

/// Runs one round that does not count, then `count` that do. The second function gets what the first one has
/// returned, once its time was taken. An optional runtime that fails is left out from then on.
fn alternate<T>(
    word: &str,
    runtimes: &[&MeasuredRuntime],
    count: usize,
    (run, after): (
        impl Fn(&MeasuredRuntime, usize) -> Result<T>,
        impl Fn(&MeasuredRuntime, T) -> Result<()>,
    ),
) -> Result<Vec<Round>> {
    eprintln!("warming up: one {word} each");
    let mut rounds = Vec::with_capacity(count);
    let mut has_failed = vec![false; runtimes.len()];
    for number in 0..=count {
        let mut seconds = vec![None; runtimes.len()];
        for index in order(number, runtimes.len()) {
            let shim_runtime = runtimes[index];
            if has_failed[index] {
                continue;
            }
            let context = || format!("{word} under {}", shim_runtime.name);
            let started = Instant::now();
            let returned = run(shim_runtime, number).with_context(context);
            let taken = started.elapsed().as_secs_f64();
            match returned.and_then(|returned| after(shim_runtime, returned).with_context(context)) {
                Ok(()) => seconds[index] = Some((shim_runtime.name, taken)),
                Err(error) if shim_runtime.is_optional => {
                    eprintln!("{} is no longer measured: {error:#}", shim_runtime.name);
                    has_failed[index] = true;
                }
                Err(error) => return Err(error),
            }
        }
        let seconds: Vec<(&'static str, f64)> = seconds.into_iter().flatten().collect();
        let round = Round::new(&seconds)?;
        if number > 0 {
            let times: Vec<String> = seconds
                .iter()
                .map(|(name, seconds)| format!("{name} {:6.0} ms", seconds * 1e3))
                .collect();
            let ratio = round.nacre / round.runc;
            eprintln!(
                "{word} {number:2} of {count}: {}, ratio {ratio:.2}",
                times.join(", ")
            );
            rounds.push(round);
        }
    }
    Ok(rounds)
}

impl Round {
    /// A round in which each runtime, by its name, took that many seconds.
    fn new(seconds: &[(&'static str, f64)]) -> Result<Self> {
        let of = |wanted: &str| {
            let found = seconds.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, seconds)| *seconds)
        };
        let must = |name| of(name).with_context(|| format!("a round without {name}"));
        Ok(Self {
            nacre: must("nacre")?,
            runc: must("runc")?,
            floor: must("floor")?,
            other: of("other"),
            cold: of("cold"),
            further: seconds
                .iter()
                .filter(|(name, _)| !["nacre", "runc", "floor", "other", "cold"].contains(name))
                .copied()
                .collect(),
        })
    }
}

/// The largest ratio that is wanted, for a note.
fn wanted(ratio: Option<f64>) -> String {
    ratio.map_or_else(String::new, |ratio| format!("; wanted: at most {ratio}"))
}

impl Rounds {
    /// `pick` of each round.
    pub fn each(&self, pick: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(pick).collect()
    }

    /// Nacre's time divided by runc's, of each round.
    pub fn ratios(&self) -> Vec<f64> {
        self.each(|round| round.nacre / round.runc)
    }

    /// The other build's time in seconds, of each round; None without another build.
    pub fn other(&self) -> Option<Vec<f64>> {
        self.rounds.iter().map(|round| round.other).collect()
    }

    /// The time in seconds without templates, of each round; None if it was not measured.
    pub fn cold(&self) -> Option<Vec<f64>> {
        self.rounds.iter().map(|round| round.cold).collect()
    }

    /// The time in seconds of each further peer, of each round, if it has not failed.
    pub fn further(&self) -> Vec<(&'static str, Vec<f64>)> {
        let Some(last) = self.rounds.last() else {
            return Vec::new();
        };
        let of = |round: &Round, wanted: &str| {
            let found = round.further.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, seconds)| *seconds)
        };
        let names = last.further.iter().map(|(name, _)| *name);
        let seconds = names.map(|name| {
            (
                name,
                self.rounds.iter().filter_map(|round| of(round, name)).collect(),
            )
        });
        seconds.collect()
    }

    /// Median of the rounds' ratios of what Nacre and runc add to the null shim's time.
    pub fn ratio_above_floor(&self) -> f64 {
        median(&self.each(|round| (round.nacre - round.floor) / (round.runc - round.floor).max(1e-3)))
    }

    /// Adds the medians, with the spread if there are enough rounds, then the null shim's, then those without templates.
    pub fn report(&self, results: &mut Results) {
        let ratios = self.ratios();
        let note = format!(
            "{}, above the floor {:.2}{}",
            describe(&ratios),
            self.ratio_above_floor(),
            wanted(self.wanted)
        );
        results.add(self.row(self.name.to_owned(), 50.0, note));
        let percentiles: &[_] = match spread(&ratios) {
            Some(_) => &[("p10", 10.0), ("p90", 90.0)],
            None => &[],
        };
        for &(name, percent) in percentiles {
            let note = "ratio: of the rounds' ratios".to_owned();
            results.add(self.row(format!("{}, {name}", self.name), percent, note));
        }
        results.add(Measure {
            name: format!("{}_floor", self.name),
            unit: "ms".into(),
            nacre: median(&self.each(|round| round.floor)) * 1e3,
            peer: Some(median(&self.each(|round| round.runc)) * 1e3),
            peer_name: Some("runc".into()),
            ratio: Some(median(&self.each(|round| round.floor / round.runc))),
            note: "the null shim: what ctr and containerd take with a runtime that does nothing".to_owned(),
            ..Measure::default()
        });
        self.report_beside(results);
    }

    /// Adds the row without templates, and one for each further peer.
    fn report_beside(&self, results: &mut Results) {
        let milliseconds =
            |seconds: Vec<f64>| -> Vec<f64> { seconds.iter().map(|seconds| seconds * 1e3).collect() };
        if let Some(cold) = self.cold() {
            let runc = milliseconds(self.each(|round| round.runc));
            let name = format!("cold_{}", self.name);
            let note = format!("the same with templates off{}", wanted(self.cold_wanted));
            let row = (name.as_str(), "ms", note.as_str());
            results.add(Measure::of_rounds(row, &milliseconds(cold), ("runc", &runc)));
        }
        let nacre = milliseconds(self.each(|round| round.nacre));
        for (peer, seconds) in self.further() {
            let name = format!("{}_{peer}", self.name);
            let row = (name.as_str(), "ms", "the same rounds, beside another peer");
            results.add(Measure::of_rounds(row, &nacre, (peer, &milliseconds(seconds))));
        }
    }

    fn row(&self, name: String, percent: f64, note: String) -> Measure {
        let of = |values: &[f64]| percentile(values, percent);
        let other = self.other();
        let other_ratios: Option<Vec<f64>> = self
            .rounds
            .iter()
            .map(|round| round.other.map(|other| round.nacre / other))
            .collect();
        Measure {
            name,
            unit: "ms".into(),
            nacre: of(&self.each(|round| round.nacre)) * 1e3,
            peer: Some(of(&self.each(|round| round.runc)) * 1e3),
            peer_name: Some("runc".into()),
            ratio: Some(of(&self.ratios())),
            other: other.map(|seconds| of(&seconds) * 1e3),
            other_ratio: other_ratios.map(|ratios| of(&ratios)),
            note,
            ..Measure::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn the_floor_has_a_row_and_is_subtracted_from_a_ratio() {
        let round = |nacre: f64, other: Option<f64>| Round {
            nacre,
            runc: 2.0,
            floor: 1.0,
            other,
            cold: other.map(|_| 5.0),
            further: other.map(|_| ("crun", 6.0)).into_iter().collect(),
        };
        let measured = |other| Rounds {
            name: "start",
            command: "",
            wanted: Some(2.0),
            cold_wanted: Some(1.3),
            rounds: [4.0, 3.0, 3.0, 3.0, 3.0]
                .map(|nacre| round(nacre, other))
                .to_vec(),
        };
        assert!(close(measured(None).ratio_above_floor(), 2.0));
        let mut results = Results::default();
        measured(Some(1.5)).report(&mut results);
        let names: Vec<&str> = results.0.iter().map(|row| row.name.as_str()).collect();
        let expected = [
            "start",
            "start, p10",
            "start, p90",
            "start_floor",
            "cold_start",
            "start_crun",
        ];
        assert_eq!(names, expected);
        let (start, floor) = (&results.0[0], &results.0[3]);
        assert!(close(start.nacre, 3000.0) && close(start.ratio.unwrap(), 1.5));
        assert!(close(start.other.unwrap(), 1500.0) && close(start.other_ratio.unwrap(), 2.0));
        assert!(close(floor.nacre, 1000.0) && close(floor.ratio.unwrap(), 0.5));
        let cold = &results.0[4];
        assert!(close(cold.nacre, 5000.0) && close(cold.ratio.unwrap(), 2.5));
        let crun = &results.0[5];
        assert_eq!(crun.peer_name.as_deref(), Some("crun"));
        assert!(close(crun.nacre, 3000.0) && close(crun.ratio.unwrap(), 0.5));
        let mut alone = Results::default();
        measured(None).report(&mut alone);
        assert!(alone.0[0].other.is_none() && alone.0.len() == 4);
        let mut few = Results::default();
        let mut measured = measured(None);
        measured.rounds.truncate(2);
        measured.report(&mut few);
        assert_eq!(few.0.len(), 2, "{few:?}");
    }

    #[test]
    fn only_an_optional_runtime_may_fail() {
        let fake = |name, is_optional| MeasuredRuntime {
            name,
            runtime: String::new(),
            arguments: Vec::new(),
            runs_processes: true,
            is_optional,
        };
        let runtimes = [
            ("nacre", false),
            ("runc", false),
            ("floor", false),
            ("crun", true),
            ("kata", true),
        ];
        let runtimes = runtimes.map(|(name, is_optional)| fake(name, is_optional));
        let runtimes: Vec<&MeasuredRuntime> = runtimes.iter().collect();
        let rounds = |fails: &str| {
            let run = |shim_runtime: &MeasuredRuntime, number| {
                anyhow::ensure!(shim_runtime.name != fails || number < 2, "no");
                Ok(())
            };
            alternate("start", &runtimes, 3, (run, |_, ()| Ok(())))
        };
        let names = |round: &Round| -> Vec<&str> { round.further.iter().map(|(name, _)| *name).collect() };
        let rounds_without_kata = rounds("kata").unwrap();
        assert_eq!(names(&rounds_without_kata[0]), ["crun", "kata"]);
        assert_eq!(names(&rounds_without_kata[2]), ["crun"]);
        assert_eq!(rounds("runc").unwrap_err().to_string(), "start under runc");
    }

    #[test]
    fn a_round_is_put_together_by_names() {
        let seconds = [("nacre", 1.0), ("runc", 2.0), ("floor", 3.0), ("cold", 4.0)];
        let round = Round::new(&seconds).unwrap();
        assert!(close(round.floor, 3.0) && close(round.cold.unwrap(), 4.0) && round.other.is_none());
        assert!(
            Round::new(&seconds[1..])
                .unwrap_err()
                .to_string()
                .contains("nacre")
        );
    }
}
