//! Behaviours of exec processes, run with `ctr task exec`.

use anyhow::Result;

use super::process::{OOM_SCORE_IS_INHERITED, keep_words};
use super::streams::feed_and_wait;
use super::tasks::{SLEEP, kill_container, state, with_detached};
use super::{Behaviour, Outcome, calls, exec};
use crate::containerd::Runtime;
use crate::containerd::ctr::{Foreground, ctr, wait_until_stopped};

const EXEC: &[&str] = &["Task.Exec", "Task.Start"];

pub const BEHAVIOURS: &[Behaviour] = &[
    exec(
        "exec: output and exit code",
        &["Task.Exec", "Task.Wait"],
        &[],
        &["sh", "-c", "echo out; echo err >&2; exit 9"],
    ),
    exec(
        "exec: environment",
        EXEC,
        &[],
        &["sh", "-c", "env | grep -v ^SHLVL"],
    ),
    exec("exec: working directory", EXEC, &["--cwd", "/tmp"], &["pwd"]),
    exec(
        "exec: user",
        EXEC,
        &["--user", "1000:44"],
        &["sh", "-c", "id -u; id -g; echo $HOME"],
    ),
    exec(
        "exec: capabilities, noNewPrivileges and seccomp mode",
        EXEC,
        &[],
        &["grep", "-E", "^(Cap|NoNewPrivs|Seccomp:)", "/proc/self/status"],
    ),
    exec(
        "exec: resource limits",
        EXEC,
        &[],
        &["grep", "open files", "/proc/self/limits"],
    ),
    exec(
        "exec: oomScoreAdj",
        EXEC,
        &[],
        &["cat", "/proc/self/oom_score_adj"],
    )
    .allow_difference(OOM_SCORE_IS_INHERITED, "0"),
    exec(
        "exec: default signal mask and ignored signals",
        EXEC,
        &[],
        &[
            "sh",
            "-c",
            // Signals 32 and 33 are masked out: glibc's posix_spawn ignores them.
            "while read -r name set; do case $name in SigBlk:|SigIgn:) echo $name $((0x$set & 0x7fffffff)) ;; esac; done < /proc/$$/status",
        ],
    ),
    exec(
        "exec: PID 1 is the container's first process",
        EXEC,
        &[],
        &["cat", "/proc/1/comm"],
    ),
    exec(
        "exec: parent process and terminal",
        EXEC,
        &[],
        &[
            "sh",
            "-c",
            "cut -d ' ' -f 7,8 /proc/self/stat; cut -d ' ' -f 4 /proc/$$/stat",
        ],
    ),
    exec(
        "exec: open file descriptors",
        EXEC,
        &[],
        &["sh", "-c", "ls /proc/$$/fd"],
    ),
    exec(
        "exec: runs in the container's cgroup",
        EXEC,
        &[],
        &["sh", "-c", "cmp /proc/1/cgroup /proc/self/cgroup && echo same"],
    ),
    exec(
        "exec: runs in the container's namespaces",
        EXEC,
        &[],
        &[
            "sh",
            "-c",
            "for n in mnt net pid ipc uts; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] && echo $n; done",
        ],
    ),
    exec(
        "exec: standard streams can be opened by path",
        EXEC,
        &[],
        &["sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr"],
    ),
    exec(
        "exec: 1 MiB of output",
        EXEC,
        &[],
        &["sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x"],
    ),
    exec(
        "exec: killed by a signal",
        &["Task.Exec", "Task.Wait"],
        &[],
        &["sh", "-c", "kill -9 $$"],
    ),
    exec(
        "exec: a command that does not exist",
        EXEC,
        &[],
        &["no-such-command"],
    ),
    exec(
        "exec: a command that is not executable",
        EXEC,
        &[],
        &["/etc/passwd"],
    ),
    calls(
        "kill: a single exec process",
        &["Task.Kill", "Task.Exec"],
        kill_exec,
    ),
    calls(
        "exec: refused after the container has exited",
        &["Task.Exec"],
        exec_after_exit,
    ),
    calls(
        "exec: killed when the container exits",
        &["Task.Exec", "Task.Wait"],
        exec_killed_with_container,
    ),
    calls(
        "exec: an exec id already in use is refused",
        &["Task.Exec"],
        exec_id_in_use,
    ),
    calls(
        "exec: standard input is read to end of file",
        &["Task.Exec", "Task.CloseIO"],
        exec_stdin,
    ),
    calls(
        "exec: detached",
        &["Task.Exec", "Task.Pids", "Task.Delete"],
        exec_detached,
    ),
    calls(
        "pause: exec is refused",
        &["Task.Pause", "Task.Exec"],
        exec_paused,
    ),
];

fn kill_exec(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = spawn(id, "x", "echo up; exec sleep 1000")?;
        let up = running.line()?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        let mut outcome = Outcome::from(running.wait_with_output()?);
        outcome.stdout.insert_str(0, &up);
        outcome.stdout += state(id)?;
        Ok(outcome)
    })
}

fn exec_after_exit(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        kill_container(id)?;
        wait_until_stopped(id)?;
        Ok(keep_words(
            ctr(["task", "exec", "--exec-id", "x", id, "true"])?.into(),
            &["stopped"],
        ))
    })
}

/// Starts `sh -c script` with `ctr task exec` and pipes for its standard streams.
fn spawn(id: &str, exec_id: &str, script: &str) -> Result<Foreground> {
    Foreground::ctr(
        &["task", "exec", "--exec-id", exec_id, id, "sh", "-c", script],
        id,
    )
}

fn exec_killed_with_container(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = spawn(id, "x", "echo up; sleep 1000")?;
        let up = running.line()?;
        kill_container(id)?;
        let mut outcome = Outcome::from(running.wait_with_output()?);
        outcome.stdout.insert_str(0, &up);
        Ok(outcome)
    })
}

fn exec_id_in_use(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = spawn(id, "x", "echo up; sleep 1000")?;
        running.line()?;
        let second = ctr(["task", "exec", "--exec-id", "x", id, "true"])?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        running.wait_with_output()?;
        Ok(keep_words(second.into(), &["already exists"]))
    })
}

fn exec_stdin(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        feed_and_wait(
            spawn(id, "x", "echo up; cat; echo end; exit 4")?,
            b"one\ntwo\n".to_vec(),
        )
    })
}

fn exec_detached(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        let first = ctr(["task", "exec", "-d", "--exec-id", "x", id, "sleep", "1000"])?;
        let two = ctr(["task", "ps", id])?.success()?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        let deleted = ctr(["task", "delete", "--exec-id", "x", id])?;
        let one = ctr(["task", "ps", id])?.success()?;
        let mut outcome = Outcome::from(first);
        outcome.stdout = format!(
            "{} and {} lines; {:?}",
            two.lines().count(),
            one.lines().count(),
            deleted.code
        );
        Ok(outcome)
    })
}

fn exec_paused(runtime: Runtime) -> Result<Outcome> {
    with_detached(runtime, SLEEP, |id| {
        ctr(["task", "pause", id])?.success()?;
        let output = ctr(["task", "exec", "--exec-id", "x", id, "true"])?;
        ctr(["task", "resume", id])?.success()?;
        let after = ctr(["task", "exec", "--exec-id", "y", id, "echo", "after"])?;
        let mut outcome = keep_words(output.into(), &["paused"]);
        outcome.stdout = after.text();
        Ok(outcome)
    })
}
