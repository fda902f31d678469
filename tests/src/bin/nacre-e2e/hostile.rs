//! Guests whose agent lies, under the real shim: a lie costs the shim bounded memory and CPU time, another pod
//! is no slower meanwhile than beside a pod that is honest and busy, and the pod can be ended. `nacre_tests::hostile` has
//! the lies. Each test prints its figures.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::bundle::{Bundle, add_mount};
use nacre_tests::containerd::ctr::{Output, Run, ctr, fresh_id, output, remove_detached};
use nacre_tests::guests::initramfs;
use nacre_tests::hostile::{Lie, PARAMETER};
use nacre_tests::installation::Config;
use serde_json::{Value, json};

use crate::operator::pod;
use crate::{Test, long, test};

pub const TESTS: &[Test] = &[
    long("an agent that floods the host is bounded", || {
        lie_in(&[Lie::Connections, Lie::Frames])
    }),
    long("an agent that breaks the protocol is bounded", || {
        lie_in(&[Lie::LongFrame, Lie::OutOfOrder, Lie::WrongAnswers])
    }),
    long("an agent that is silent can be ended", || lie_in(&[Lie::Silent])),
    long("an agent that answers at length is bounded", || {
        lie_in(&[Lie::Large])
    }),
    long("an agent that reports what is not so is bounded", || {
        lie_in(&[Lie::Exits, Lie::Streams, Lie::Numbers, Lie::Hasty])
    }),
    test("an agent that lies about copies of volumes is bounded", || {
        lie_in(&[Lie::Mirror])
    }),
];

/// The program that is /init of the guest, beside this one.
const AGENT: &str = "nacre-hostile-agent";
/// How long each lie is observed.
const OBSERVED: Duration = Duration::from_secs(12);
/// Most memory of a shim whose agent lies, bytes. An honest one has 12 MiB in the lab; a message of 4 MiB is in its
/// memory a few times.
const MAX_RSS: u64 = 64 << 20;
/// How long a client waits for an answer, seconds. The shim gives up a silent agent after 60 s, and a ping of 10 s.
const PATIENCE: &str = "10";
/// How long a pod may take to end after SIGKILL.
const END: Duration = Duration::from_secs(30);

/// What a process has used.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// The most memory it has had, bytes.
    peak: u64,
    /// CPU time, clock ticks of 10 ms.
    ticks: u64,
}

fn used(pid: u64) -> Result<Used> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no VmHWM")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    // utime and stime, fields 14 and 15 (proc(5)); field 3 follows the name.
    let times = fields.split_whitespace().skip(11).take(2);
    Ok(Used {
        peak: peak.parse::<u64>()? << 10,
        ticks: times.map(str::parse::<u64>).sum::<Result<u64, _>>()?,
    })
}

/// `ctr` with a deadline, which exits with 124 if that passes.
fn ctr_within(seconds: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.args([seconds, "ctr"]).args(arguments);
    output(command)
}

/// The median time of an exec in the honest container, milliseconds.
fn exec_time(id: &str, until: Instant) -> Result<u128> {
    let mut times = Vec::new();
    while times.len() < 3 || Instant::now() < until {
        let started = Instant::now();
        ctr(["task", "exec", "--exec-id", "honest", id, "true"])?.success()?;
        times.push(started.elapsed().as_millis());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Starts an honest pod, and beside it a pod for each of `lies`.
fn lie_in(lies: &[Lie]) -> Result<()> {
    let honest = fresh_id("honest");
    let sleep = Run {
        command: &["sleep", "100000"],
        ..Run::default()
    };
    sleep.detach(&honest)?;
    let told = (|| {
        exec_time(&honest, Instant::now())?;
        let alone = exec_time(&honest, Instant::now() + Duration::from_secs(4))?;
        let beside = Beside {
            honest: &honest,
            alone,
            // A start that fails is not measured.
            busy: if lies == [Lie::Mirror] {
                alone
            } else {
                beside_busy(&honest)?
            },
        };
        let directory = tempfile::tempdir()?;
        let image = directory.path().join("hostile.cpio");
        let program = std::env::current_exe()?.with_file_name(AGENT);
        fs::write(&image, initramfs::pack(&program)?)?;
        for (name, lie) in Lie::ALL.into_iter().filter(|(_, lie)| lies.contains(lie)) {
            let toml = format!(
                "initrd = \"{}\"\nkernel_params = \"{PARAMETER}{name}\"\n",
                image.display()
            );
            let config = Config::with(&toml)?;
            let measured = observe(name, lie, &beside);
            drop(config);
            measured.with_context(|| format!("lie {name}"))?;
        }
        Ok(())
    })();
    remove_detached(&honest)?;
    told
}

/// The honest pod, and how long its exec takes, milliseconds.
struct Beside<'a> {
    honest: &'a str,
    /// With nothing beside it.
    alone: u128,
    /// Beside a pod that is as honest, and takes all the CPU time that it gets.
    busy: u128,
}

impl Beside<'_> {
    /// Fails if an exec that takes `took` suffered more from a lie than from that pod. Both are
    /// medians of a few execs, on a machine that may have other work.
    fn is_fair(&self, took: u128) -> Result<()> {
        let most = self.busy.max(self.alone) * 2 + 1000;
        ensure!(
            took <= most,
            "another pod's exec takes {took} ms, {} ms beside a busy pod, and {} ms alone",
            self.busy,
            self.alone
        );
        Ok(())
    }
}

/// The time of an exec in the honest container while the same calls as of a pod that lies are made of a busy one.
fn beside_busy(honest: &str) -> Result<u128> {
    let id = fresh_id("busy");
    let busy = Run {
        command: &["sh", "-c", "while :; do :; done"],
        ..Run::default()
    };
    busy.detach(&id)?;
    let measured = measure(&id, honest);
    remove_detached(&id)?;
    Ok(measured?.0)
}

/// Makes the calls of a client of `id`; returns the time of an exec in the honest container meanwhile, and the answers.
fn measure(id: &str, honest: &str) -> Result<(u128, String)> {
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| ask(id));
        let took = exec_time(honest, Instant::now() + OBSERVED)?;
        let answers = calls.join().map_err(|_| anyhow::anyhow!("a call panicked"))??;
        Ok((took, answers))
    })
}

/// Runs a container whose agent tells `lie`, prints what that cost, and ends it.
fn observe(name: &str, lie: Lie, beside: &Beside) -> Result<()> {
    let id = fresh_id(name);
    let volume = tempfile::tempdir_in("/run")?;
    let bundle = bundle(lie, volume.path())?;
    let started = run(&bundle, &id)?;
    if started.code != Some(0) {
        ensure!(started.code != Some(124), "the start has no end: {started:?}");
        ensure!(!started.stderr.trim().is_empty(), "no reason: {started:?}");
        println!(
            "        {name:13} the start fails: {}",
            last_line(&started.stderr)
        );
        ctr(["task", "delete", "--force", &id])?;
        ctr(["containers", "delete", &id])?;
        return Ok(());
    }
    let shim = pod(&id)?["shim_pid"]
        .as_u64()
        .context("nacre ps has no shim_pid")?;
    let before = used(shim)?;
    let begun = Instant::now();
    let measured = measure(&id, beside.honest);
    let lasted = begun.elapsed();
    let after = used(shim).context("the shim ended while its agent lied");
    let end = end(&id)?;
    let (took, answers) = measured?;
    let after = after?;
    let seconds = Duration::from_millis(10 * (after.ticks - before.ticks)).as_secs_f64();
    println!(
        "        {name:13} shim {:.1} MiB at most, {seconds:.2} s of CPU in {:.0} s; honest exec {took} ms, {} ms beside a busy pod, {} ms alone; {answers}; {end}",
        after.peak as f64 / f64::from(1 << 20),
        lasted.as_secs_f64(),
        beside.busy,
        beside.alone
    );
    ensure!(after.peak < MAX_RSS, "the shim had {} bytes", after.peak);
    beside.is_fair(took)
}

/// A container whose command does nothing, with a volume that is copied if the lie is about that.
fn bundle(lie: Lie, volume: &std::path::Path) -> Result<Bundle> {
    let source = volume.join("volumes/kubernetes.io~configmap/v");
    fs::create_dir_all(source.join("..1"))?;
    fs::write(source.join("..1/key"), "value")?;
    std::os::unix::fs::symlink("..1", source.join("..data"))?;
    std::os::unix::fs::symlink("..data/key", source.join("key"))?;
    Bundle::new(&["sleep", "100000"], |spec| {
        if lie == Lie::Mirror {
            let options = ["rbind", "ro"];
            let mount = json!({"destination": "/v", "type": "bind", "source": source, "options": options});
            add_mount(spec, mount);
        }
    })
}

fn run(bundle: &Bundle, id: &str) -> Result<Output> {
    let config = bundle.config()?;
    let config = config.to_str().context("the path is not UTF-8")?;
    let runtime = Run::default().runtime.name();
    ctr_within("60", &["run", "-d", "--runtime", runtime, "--config", config, id])
}

/// Makes each call of a client, and counts those that were answered, that failed with a reason, and that had no end.
fn ask(id: &str) -> Result<String> {
    let (mut answered, mut refused, mut unanswered) = (0, 0, 0);
    for call in [
        &["metrics", id][..],
        &["ps", id],
        &["exec", "--exec-id", "x", id, "true"],
        &["pause", id],
        &["resume", id],
        &["ps", id],
        &["metrics", id],
    ] {
        let answer = ctr_within(PATIENCE, &[&["task"], call].concat())?;
        match answer.code {
            Some(0) => answered += 1,
            Some(124) => unanswered += 1,
            _ => {
                ensure!(
                    !answer.stderr.trim().is_empty(),
                    "{call:?} fails without a reason"
                );
                ensure!(
                    answer.stderr.len() < 64 << 10,
                    "{call:?}: {} bytes",
                    answer.stderr.len()
                );
                refused += 1;
            }
        }
    }
    Ok(format!(
        "{answered} calls answered, {refused} refused, {unanswered} late"
    ))
}

/// Kills the container, removes it and returns how it ended.
fn end(id: &str) -> Result<String> {
    let begun = Instant::now();
    // Refused if it has ended.
    ctr_within(PATIENCE, &["task", "kill", "-s", "SIGKILL", id])?;
    loop {
        let listed = ctr(["task", "list"])?.success()?;
        if listed
            .lines()
            .all(|line| !line.starts_with(id) || line.contains("STOPPED"))
        {
            break;
        }
        ensure!(begun.elapsed() < END, "it runs {END:?} after SIGKILL: {listed}");
    }
    let took = begun.elapsed();
    let mut inspect = Command::new("nacre");
    inspect.args(["inspect", "--json", id]);
    let inspected: Value = serde_json::from_str(&output(inspect)?.success()?)?;
    let reason = inspected["failure"]["reason"].as_str().unwrap_or("killed");
    let deleted = ctr(["task", "delete", id])?;
    ctr(["containers", "delete", id])?.success()?;
    ensure!(reason.len() < 8192, "a reason of {} bytes", reason.len());
    let code = deleted.stderr.rsplit("exit code ").next().unwrap_or_default();
    Ok(format!(
        "ended in {:.1} s with {}: {reason}",
        took.as_secs_f64(),
        code.trim().trim_matches('"')
    ))
}

/// The beginning of the last line.
fn last_line(text: &str) -> String {
    let line = text.trim().lines().last().unwrap_or_default();
    line.chars().take(160).collect()
}
