//! Behaviours of a container's first process: the fields of `process`, and the environment it runs in.

use super::specs::{DEFAULT, PROCESS, USERS};
use super::{Behaviour, Outcome, calls, script};
use crate::containerd::Runtime;
use crate::containerd::bundle::Bundle;
use crate::containerd::ctr::{Run, fresh_id};
use anyhow::Result;
use serde_json::{Value, json};

/// Why `oom_score_adj` differs if the specification does not set it.
pub const OOM_SCORE_IS_INHERITED: &str =
    "inherited from the runtime: containerd's shim for runc adds 1 to its own value, a guest starts with 0";

pub const BEHAVIOURS: &[Behaviour] = &[
    script("exit code", &["process.args", "Task.Wait"], &DEFAULT, "exit 7"),
    script(
        "standard error is separate from standard output",
        &["process.args"],
        &DEFAULT,
        "echo out; echo err >&2; echo out",
    ),
    script(
        "environment from the specification",
        &["process.env"],
        &PROCESS,
        "env | grep -v ^SHLVL",
    ),
    script(
        "default environment",
        &["process.env"],
        &DEFAULT,
        "env | grep -v ^SHLVL",
    ),
    script(
        "working directory",
        &["process.cwd"],
        &PROCESS,
        "pwd; readlink /proc/1/cwd",
    ),
    script(
        "user and groups",
        &[
            "process.user.uid",
            "process.user.gid",
            "process.user.additionalGids",
        ],
        &PROCESS,
        "id -u; id -g; id -G; grep -E '^(Uid|Gid|Groups)' /proc/1/status",
    ),
    script(
        "umask",
        &["process.user.umask"],
        &PROCESS,
        "umask; touch /tmp/f; mkdir /tmp/d; stat -c '%a %u:%g' /tmp/f /tmp/d",
    ),
    script("default umask", &["process.user.umask"], &DEFAULT, "umask"),
    script(
        "all five capability sets",
        &[
            "process.capabilities.bounding",
            "process.capabilities.effective",
            "process.capabilities.permitted",
            "process.capabilities.inheritable",
            "process.capabilities.ambient",
        ],
        &PROCESS,
        "grep ^Cap /proc/1/status; grep ^Cap /proc/self/status",
    ),
    script(
        "default capabilities",
        &["process.capabilities.bounding"],
        &DEFAULT,
        "grep ^Cap /proc/1/status",
    ),
    script(
        "noNewPrivileges off",
        &["process.noNewPrivileges"],
        &PROCESS,
        "grep NoNewPrivs /proc/1/status",
    ),
    script(
        "noNewPrivileges on",
        &["process.noNewPrivileges"],
        &DEFAULT,
        "grep NoNewPrivs /proc/1/status",
    ),
    script(
        "resource limits",
        &["process.rlimits"],
        &PROCESS,
        "grep -E 'open files|core file|stack size|processes|locked' /proc/1/limits",
    ),
    script(
        "default resource limits",
        &["process.rlimits"],
        &DEFAULT,
        "grep -vE 'processes|pending signals|locked|core file|Limit' /proc/1/limits",
    ),
    script(
        "oomScoreAdj",
        &["process.oomScoreAdj"],
        &PROCESS,
        "cat /proc/1/oom_score_adj",
    ),
    script(
        "default oomScoreAdj",
        &["process.oomScoreAdj"],
        &DEFAULT,
        "cat /proc/1/oom_score_adj",
    )
    .allow_difference(OOM_SCORE_IS_INHERITED, "0"),
    script(
        "hostname",
        &["hostname"],
        &PROCESS,
        "hostname; cat /proc/sys/kernel/hostname",
    ),
    script(
        "no domain name",
        &["domainname"],
        &PROCESS,
        "cat /proc/sys/kernel/domainname",
    ),
    script(
        "default signal mask and ignored signals",
        &["process.args"],
        &DEFAULT,
        // Signals 32 and 33 are masked out because glibc's posix_spawn ignores them, and 3 because sh does.
        "while read -r name set; do case $name in SigBlk:|SigIgn:|SigPnd:|ShdPnd:) echo $name $((0x$set & 0x7ffffffb)) ;; esac; done < /proc/1/status",
    ),
    script(
        "session, process group and terminal of the first process",
        &["process.terminal"],
        &DEFAULT,
        "cut -d ' ' -f 1,4-8 /proc/1/stat",
    ),
    script(
        "no file descriptor is inherited",
        &["process.args"],
        &DEFAULT,
        "ls /proc/1/fd; ls /proc/self/fd | wc -l",
    ),
    script(
        "standard streams are pipes and can be opened by path",
        &["process.args"],
        &DEFAULT,
        "readlink /proc/1/fd/1 | cut -d : -f 1; echo by name > /dev/stdout; echo error > /dev/stderr; echo fd > /proc/self/fd/1",
    ),
    script(
        "standard input of a container whose client has none",
        &["Task.CloseIO"],
        &DEFAULT,
        "readlink /proc/1/fd/0 | cut -d : -f 1",
    ),
    script(
        "standard output can be opened by path as a non-root user",
        &["process.user.uid"],
        &PROCESS,
        "echo mine > /dev/stdout",
    ),
    script(
        "name, parent and threads of the first process",
        &["linux.namespaces"],
        &DEFAULT,
        "grep -E '^(Name|Pid|PPid|NSpid|NSsid|Threads):' /proc/1/status",
    ),
    script(
        "orphans are reparented to the first process",
        &["process.args"],
        &DEFAULT,
        "sh -c '(sleep 0.2; cut -d \" \" -f 4 /proc/self/stat) & exit 0'; sleep 1",
    ),
    script(
        "nice value and scheduler",
        &["process.scheduler"],
        &DEFAULT,
        "cut -d ' ' -f 18,19,40,41 /proc/1/stat",
    ),
    script(
        "user namespace: id mappings",
        &["linux.uidMappings", "linux.gidMappings"],
        &USERS,
        "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u",
    ),
    script(
        "user namespace: capabilities",
        &["linux.uidMappings"],
        &USERS,
        "grep ^CapEff /proc/self/status",
    ),
    script(
        "an empty argument and many arguments",
        &["process.args"],
        &DEFAULT,
        "set -- \"\" $(seq 1000); echo $# \"[$1]\" $1000; sh -c 'echo $# $1000' sh \"$@\"",
    ),
    calls("1000 arguments", &["process.args"], thousand_arguments),
    calls("a large environment", &["process.env"], large_environment),
    calls("HOME is looked up in /etc/passwd", &["process.env"], home),
    calls(
        "HOME from the specification is kept",
        &["process.env"],
        home_from_spec,
    ),
    calls(
        "the command is searched in the specification's PATH",
        &["process.args", "process.env"],
        path_lookup,
    ),
    calls(
        "a relative command is resolved from the working directory",
        &["process.args", "process.cwd"],
        relative_command,
    ),
    calls(
        "a missing working directory is created",
        &["process.cwd"],
        missing_cwd,
    ),
    calls(
        "a working directory that is a file",
        &["process.cwd"],
        cwd_is_file,
    ),
    calls(
        "a command that does not exist",
        &["process.args"],
        missing_command,
    ),
    calls(
        "a command path that does not exist",
        &["process.args"],
        missing_path,
    ),
    calls(
        "a command that is not executable",
        &["process.args"],
        not_executable,
    ),
    calls(
        "a command that is a directory",
        &["process.args"],
        directory_command,
    )
    .allow_difference(
        "Nacre reports the error of newer runc versions",
        "exec: \"/etc\": is a directory",
    ),
    calls(
        "a command of unknown file format",
        &["process.args"],
        unknown_format,
    ),
];

/// Runs `args` in a container to its end, with containerd's default specification modified by `change`.
pub fn run_with(runtime: Runtime, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Outcome> {
    run_bundle(runtime, &Bundle::new(args, change)?)
}

/// Runs the container of `bundle` to its end. Its id in standard error is replaced by `ID`.
pub fn run_bundle(runtime: Runtime, bundle: &Bundle) -> Result<Outcome> {
    let id = fresh_id("parity");
    let output = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .output(&id)?;
    let mut outcome = Outcome::from(output);
    outcome.stderr = outcome.stderr.replace(&id, "ID");
    Ok(outcome)
}

/// Reduces an error about a command that can't be run to the part that both runtimes share: it removes the
/// text before `exec: "`, and the gRPC code after it.
pub fn strip_error_context(mut outcome: Outcome) -> Outcome {
    if let Some(at) = outcome.stderr.find("exec: \"") {
        outcome.stderr.drain(..at);
    }
    // The name of the gRPC code, which containerd appends.
    for code in [": unknown", ": invalid argument", ": not found"] {
        outcome
            .stderr
            .truncate(outcome.stderr.trim_end().trim_end_matches(code).len());
    }
    outcome
}

fn thousand_arguments(runtime: Runtime) -> Result<Outcome> {
    let numbers: Vec<String> = (0..1000).map(|number| format!("argument {number}")).collect();
    let mut args = vec![
        "sh",
        "-c",
        r#"echo $# "$1" "$2"; for last; do :; done; echo "$last""#,
        "sh",
        "",
        "日本",
    ];
    args.extend(numbers.iter().map(String::as_str));
    run_with(runtime, &args, |_| ())
}

fn large_environment(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["sh", "-c", "env | wc -c; echo ${#V7}"], |spec| {
        if let Some(env) = spec["process"]["env"].as_array_mut() {
            env.extend((0..20).map(|number| json!(format!("V{number}={}", "x".repeat(10_000)))));
        }
    })
}

fn home(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["sh", "-c", "echo $HOME"], |spec| {
        spec["process"]["user"]["uid"] = json!(1000)
    })
}

fn home_from_spec(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["sh", "-c", "echo $HOME"], |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "HOME=/given"]);
    })
}

fn path_lookup(runtime: Runtime) -> Result<Outcome> {
    let bundle = Bundle::new(&["tool", "an argument"], |spec| {
        spec["process"]["env"] = json!(["PATH=/no/such:/tools:/bin"]);
    })?;
    bundle.add_file("tools/tool", 0o755, "#!/bin/sh\necho \"$0 with $1\"\n")?;
    run_bundle(runtime, &bundle)
}

fn relative_command(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["./busybox", "echo", "relative"], |spec| {
        spec["process"]["cwd"] = json!("/bin")
    })
}

fn missing_cwd(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["sh", "-c", "pwd; stat -c '%a %u:%g' ."], |spec| {
        spec["process"]["cwd"] = json!("/not/there");
    })
}

fn cwd_is_file(runtime: Runtime) -> Result<Outcome> {
    let outcome = run_with(runtime, &["true"], |spec| {
        spec["process"]["cwd"] = json!("/etc/passwd")
    })?;
    Ok(keep_words(outcome, &["not a directory"]))
}

/// Reduces standard error to those of `words` that it contains in any case, for errors whose full text may
/// differ.
pub fn keep_words(outcome: Outcome, words: &[&str]) -> Outcome {
    let text = outcome.stderr.to_lowercase();
    Outcome {
        code: outcome.code,
        stdout: outcome.stdout,
        stderr: words
            .iter()
            .filter(|word| text.contains(**word))
            .copied()
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn missing_command(runtime: Runtime) -> Result<Outcome> {
    Ok(strip_error_context(run_with(
        runtime,
        &["no-such-command"],
        |_| (),
    )?))
}

fn missing_path(runtime: Runtime) -> Result<Outcome> {
    Ok(strip_error_context(run_with(
        runtime,
        &["/no/such/command"],
        |_| (),
    )?))
}

fn not_executable(runtime: Runtime) -> Result<Outcome> {
    Ok(strip_error_context(run_with(runtime, &["/etc/passwd"], |_| ())?))
}

fn directory_command(runtime: Runtime) -> Result<Outcome> {
    Ok(strip_error_context(run_with(runtime, &["/etc"], |_| ())?))
}

fn unknown_format(runtime: Runtime) -> Result<Outcome> {
    let bundle = Bundle::new(&["/bin/words"], |_| ())?;
    bundle.add_file("bin/words", 0o755, "no program at all\n")?;
    Ok(keep_words(run_bundle(runtime, &bundle)?, &["exec format error"]))
}
