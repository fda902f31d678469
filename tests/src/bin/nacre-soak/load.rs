//! What comes and goes: one pod after the other, of four kinds, drawn by a seeded generator. In each, what ctr prints is
//! checked, and the pod is gone when it returns.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Foreground, Run, ctr, fresh_id, remove_detached, wait_until_stopped};
use nacre_tests::containerd::ends;
use nacre_tests::containerd::pod::Pod;
use nacre_tests::containerd::restart::restart_containerd;
use nacre_tests::leaks::{nacre_processes, send_sigkill, wait_for_exit};
use nacre_tests::posix::exercise::Random;
use nacre_tests::soak::figures::LongLived;

/// One pod in this many is killed.
const KILLED: usize = 20;
/// A pod is killed at a moment of its start, or of an exec, of these many ms.
const MOMENTS: u64 = 4000;
/// Where ctr makes FIFOs, a directory for each task and exec process.
const FIFOS: &str = "/run/containerd/fifo";
/// How long a pod may take to end after it was killed.
const END: Duration = Duration::from_secs(15);

/// How a pod lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `ctr run --rm`.
    Foreground,
    /// `ctr run -d`, execs, a signal, a delete.
    Detached,
    /// A sandbox with two containers, one after the other and one beside.
    Pod,
    /// SIGKILL to its shim or its VMM while it starts, or while a process starts in it.
    Killed,
}

/// What has come and gone.
#[derive(Debug, Default)]
pub struct Counts {
    pub pods: u64,
    pub containers: u64,
    pub execs: u64,
    pub killed_shims: u64,
    pub killed_vmms: u64,
    pub restarts: u64,
}

/// Makes pods.
pub struct Load {
    random: Random,
    long_lived: LongLived,
    pub counts: Counts,
}

impl Load {
    pub fn new(seed: u64, long_lived: LongLived) -> Self {
        Self {
            random: Random(seed),
            long_lived,
            counts: Counts::default(),
        }
    }

    /// The next kind.
    pub fn draw(&mut self) -> Kind {
        match self.random.below(KILLED) {
            0 => Kind::Killed,
            1..=8 => Kind::Foreground,
            9..=16 => Kind::Detached,
            _ => Kind::Pod,
        }
    }

    /// A pod of this kind comes and goes, and a process in the pod that lives throughout.
    pub fn live(&mut self, kind: Kind) -> Result<()> {
        self.counts.pods += 1;
        match kind {
            Kind::Foreground => self.foreground(),
            Kind::Detached => self.detached(false),
            Kind::Pod => self.pod(),
            Kind::Killed => self.killed(),
        }?;
        let script = "seq 2000 >/tmp/f; wc -l </tmp/f; rm /tmp/f";
        let id = self.long_lived.id.clone();
        self.exec(&id, script, "2000\n")
    }

    /// containerd is killed and started again while a container runs.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.counts.pods += 1;
        self.detached(true)
    }

    fn foreground(&mut self) -> Result<()> {
        self.counts.containers += 1;
        let run = Run {
            command: &["sh", "-c", "seq 500; exit 3"],
            ..Run::default()
        };
        let output = run.output(&fresh_id("foreground"))?;
        ensure!(output.code == Some(3), "{output:?}");
        ensure!(output.text().ends_with("\n499\n500\n"), "{output:?}");
        Ok(())
    }

    fn detached(&mut self, restarts: bool) -> Result<()> {
        self.counts.containers += 1;
        let id = fresh_id("detached");
        sleeping().detach(&id)?;
        self.exec(&id, "echo 1", "1\n")?;
        if restarts {
            restart_containerd()?;
            self.counts.restarts += 1;
        }
        self.exec(&id, "cat /proc/self/comm", "cat\n")?;
        ctr(["task", "kill", "-s", "SIGKILL", &id])?.success()?;
        wait_until_stopped(&id)?;
        let deleted = ctr(["task", "delete", &id])?;
        ensure!(deleted.stderr.contains("exit code 137"), "{deleted:?}");
        ctr(["containers", "delete", &id])?.success().map(drop)
    }

    fn pod(&mut self) -> Result<()> {
        self.counts.containers += 3;
        let pod = Pod::start("pod", |_| {})?;
        let beside = pod.member("echo up; read line; echo $line", |_| {})?;
        let mut beside = pod.spawn(&beside, "beside")?;
        ensure!(beside.line()? == "up");
        ensure!(pod.run("member", "echo $((6 * 7))", |_| {})? == "42\n");
        beside.feed(b"bye\n".to_vec())?;
        let output = beside.wait_with_output()?;
        ensure!(output.code == Some(0) && output.text() == "bye\n", "{output:?}");
        pod.remove()
    }

    fn killed(&mut self) -> Result<()> {
        self.counts.containers += 1;
        let id = fresh_id("killed");
        let moment = Duration::from_millis(self.random.number() % MOMENTS);
        let victim = match (self.counts.killed_shims + self.counts.killed_vmms) % 2 {
            0 => "containerd-shim-nacre",
            _ => "nacre-vmm",
        };
        let call = if self.random.below(2) == 0 {
            let name = Run::default().runtime.name();
            let image = nacre_tests::containerd::ctr::IMAGE;
            Foreground::ctr(
                &["run", "-d", "--runtime", name, image, &id, "sleep", "1000"],
                &id,
            )?
        } else {
            sleeping().detach(&id)?;
            self.counts.execs += 1;
            // FIFOs are named after the exec id: `remove_fifos` finds them by the container's.
            Foreground::ctr(&["task", "exec", "--exec-id", &id, &id, "sleep", "3"], &id)?
        };
        // It ends early if the call does.
        call.readable(Instant::now() + moment);
        // A start may not have come so far; then it comes to its end first.
        let mut pid = self.victim(victim)?;
        if pid.is_none() {
            call.readable(Instant::now() + END);
            pid = self.victim(victim)?;
        }
        send_sigkill(pid.with_context(|| format!("no {victim} of {id} after {moment:?}"))?)?;
        *(match victim {
            "nacre-vmm" => &mut self.counts.killed_vmms,
            _ => &mut self.counts.killed_shims,
        }) += 1;
        call.wait_with_output()?;
        // Fails if the task has ended or was never made.
        ctr(["task", "kill", "-s", "SIGKILL", &id])?;
        ends::wait_for_end(&id, END)?;
        ends::remove(&id, END).with_context(|| format!("{victim} was killed after {moment:?}"))?;
        remove_fifos(&id)
    }

    /// Waits until the pod that lives throughout is the only one: the last one's shim exits a moment after Delete.
    pub fn until_alone(&self) -> Result<()> {
        let until = Instant::now() + END;
        for (pid, name) in self.others()? {
            wait_for_exit(pid, until).with_context(|| format!("{name}, pid {pid}, does not exit"))?;
        }
        Ok(())
    }

    /// The process of this name that is not the long-lived pod's.
    fn victim(&self, name: &str) -> Result<Option<u32>> {
        let mut others = self.others()?.into_iter();
        Ok(others
            .find(|(_, found)| found.starts_with(name))
            .map(|(pid, _)| pid))
    }

    /// The processes of other pods than the long-lived one.
    fn others(&self) -> Result<Vec<(u32, String)>> {
        let mut others = nacre_processes()?;
        others.retain(|(pid, _)| *pid != self.long_lived.shim && *pid != self.long_lived.vmm);
        Ok(others)
    }

    fn exec(&mut self, id: &str, script: &str, want: &str) -> Result<()> {
        self.counts.execs += 1;
        let exec_id = format!("e{}", self.counts.execs);
        let text = ctr(["task", "exec", "--exec-id", &exec_id, id, "sh", "-c", script])?.success()?;
        ensure!(text == want, "{id}: {text:?} instead of {want:?}");
        Ok(())
    }
}

const fn sleeping() -> Run<'static> {
    Run {
        flags: &[],
        command: &["sleep", "1000"],
        config: None,
        runtime: nacre_tests::containerd::Runtime::Nacre,
    }
}

/// Removes the FIFOs that ctr made for container `id` and the exec process of the same id: ctr removes them with the task
/// and the process, but not if containerd has deleted the task before, as it does when the shim dies.
fn remove_fifos(id: &str) -> Result<()> {
    for directory in fs::read_dir(FIFOS)? {
        let directory = directory?.path();
        if directory.join(format!("{id}-stdout")).exists() {
            fs::remove_dir_all(directory)?;
        }
    }
    Ok(())
}

/// Starts the pod that lives until [`end`].
pub fn begin(id: &str) -> Result<LongLived> {
    let run = Run {
        command: &["sleep", "1000000"],
        ..Run::default()
    };
    run.detach(id)?;
    Ok(LongLived {
        id: id.to_owned(),
        shim: nacre_tests::leaks::only_process("containerd-shim-nacre")?,
        vmm: nacre_tests::leaks::only_process("nacre-vmm")?,
    })
}

/// Removes the pod that lived throughout.
pub fn end(id: &str) -> Result<()> {
    remove_detached(id)
}
