//! `ctr task exec`.

use super::{Behaviour, exec};

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
];
