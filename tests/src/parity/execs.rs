//! `ctr task exec`.

use anyhow::Result;

use super::process::words;
use super::streams::fed;
use super::tasks::{SLEEP, end, state, with_detached};
use super::{Behaviour, Seen, calls, exec};
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
        "exec: capabilities, limits and flags",
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
    .but(
        "it is the runtime's own: containerd's shim for runc adds one to it",
        "0",
    ),
    exec(
        "exec: signals are as by default",
        EXEC,
        &[],
        &[
            "sh",
            "-c",
            // Without 32 and 33, which glibc's posix_spawn ignores.
            "while read -r name set; do case $name in SigBlk:|SigIgn:) echo $name $((0x$set & 0x7fffffff)) ;; esac; done < /proc/$$/status",
        ],
    ),
    exec(
        "exec: the container's first process is 1",
        EXEC,
        &[],
        &["cat", "/proc/1/comm"],
    ),
    exec(
        "exec: a parent outside",
        EXEC,
        &[],
        &[
            "sh",
            "-c",
            "cut -d ' ' -f 7,8 /proc/self/stat; cut -d ' ' -f 4 /proc/$$/stat",
        ],
    ),
    exec("exec: descriptors", EXEC, &[], &["sh", "-c", "ls /proc/$$/fd"]),
    exec(
        "exec: the container's cgroup",
        EXEC,
        &[],
        &["sh", "-c", "cmp /proc/1/cgroup /proc/self/cgroup && echo same"],
    ),
    exec(
        "exec: the container's namespaces",
        EXEC,
        &[],
        &[
            "sh",
            "-c",
            "for n in mnt net pid ipc uts; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] && echo $n; done",
        ],
    ),
    exec(
        "exec: streams can be opened by name",
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
        "exec: ended by a signal",
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
    calls("kill: one exec", &["Task.Kill", "Task.Exec"], kill_exec),
    calls("an exec after the end is refused", &["Task.Exec"], exec_after_end),
    calls(
        "an exec ends with the container",
        &["Task.Exec", "Task.Wait"],
        exec_ends_too,
    ),
    calls(
        "an exec's id that is taken is refused",
        &["Task.Exec"],
        taken_exec,
    ),
    calls(
        "an exec reads its standard input to the end",
        &["Task.Exec", "Task.CloseIO"],
        exec_stdin,
    ),
    calls(
        "an exec in the background",
        &["Task.Exec", "Task.Pids", "Task.Delete"],
        exec_detached,
    ),
    calls(
        "pause: an exec is refused",
        &["Task.Pause", "Task.Exec"],
        exec_paused,
    ),
];

fn kill_exec(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = spawn(id, "x", "echo up; exec sleep 1000")?;
        let up = running.line()?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        let mut seen = Seen::from(running.finish()?);
        seen.stdout.insert_str(0, &up);
        seen.stdout += state(id)?;
        Ok(seen)
    })
}

fn exec_after_end(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        end(id)?;
        wait_until_stopped(id)?;
        Ok(words(
            ctr(["task", "exec", "--exec-id", "x", id, "true"])?.into(),
            &["stopped"],
        ))
    })
}

/// `sh -c script` by `ctr task exec`, with its streams.
fn spawn(id: &str, exec_id: &str, script: &str) -> Result<Foreground> {
    Foreground::ctr(
        &["task", "exec", "--exec-id", exec_id, id, "sh", "-c", script],
        id,
    )
}

fn exec_ends_too(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = spawn(id, "x", "echo up; sleep 1000")?;
        let up = running.line()?;
        end(id)?;
        let mut seen = Seen::from(running.finish()?);
        seen.stdout.insert_str(0, &up);
        Ok(seen)
    })
}

fn taken_exec(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let mut running = spawn(id, "x", "echo up; sleep 1000")?;
        running.line()?;
        let second = ctr(["task", "exec", "--exec-id", "x", id, "true"])?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        running.finish()?;
        Ok(words(second.into(), &["already exists"]))
    })
}

fn exec_stdin(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        fed(
            spawn(id, "x", "echo up; cat; echo end; exit 4")?,
            b"one\ntwo\n".to_vec(),
        )
    })
}

fn exec_detached(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        let first = ctr(["task", "exec", "-d", "--exec-id", "x", id, "sleep", "1000"])?;
        let two = ctr(["task", "ps", id])?.success()?;
        ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", id])?.success()?;
        let deleted = ctr(["task", "delete", "--exec-id", "x", id])?;
        let one = ctr(["task", "ps", id])?.success()?;
        let mut seen = Seen::from(first);
        seen.stdout = format!(
            "{} and {} lines; {:?}",
            two.lines().count(),
            one.lines().count(),
            deleted.code
        );
        Ok(seen)
    })
}

fn exec_paused(runtime: Runtime) -> Result<Seen> {
    with_detached(runtime, SLEEP, |id| {
        ctr(["task", "pause", id])?.success()?;
        let output = ctr(["task", "exec", "--exec-id", "x", id, "true"])?;
        ctr(["task", "resume", id])?.success()?;
        let after = ctr(["task", "exec", "--exec-id", "y", id, "echo", "after"])?;
        let mut seen = words(output.into(), &["paused"]);
        seen.stdout = after.text();
        Ok(seen)
    })
}
