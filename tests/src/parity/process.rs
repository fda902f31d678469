//! `process` of the specification, and what a process finds itself in.

use super::specs::{DEFAULT, PROCESS, USERS};
use super::{Behaviour, Seen, calls, script};
use crate::containerd::Runtime;
use crate::containerd::bundle::Bundle;
use crate::containerd::ctr::{Run, fresh_id};
use anyhow::Result;
use serde_json::{Value, json};

pub const BEHAVIOURS: &[Behaviour] = &[
    script(
        "an exit code arrives",
        &["process.args", "Task.Wait"],
        &DEFAULT,
        "exit 7",
    ),
    script(
        "standard error is apart",
        &["process.args"],
        &DEFAULT,
        "echo out; echo err >&2; echo out",
    ),
    script(
        "the environment is the specification's",
        &["process.env"],
        &PROCESS,
        "env | grep -v ^SHLVL",
    ),
    script(
        "the environment by default",
        &["process.env"],
        &DEFAULT,
        "env | grep -v ^SHLVL",
    ),
    script(
        "the working directory",
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
    script("umask by default", &["process.user.umask"], &DEFAULT, "umask"),
    script(
        "the five sets of capabilities",
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
        "capabilities by default",
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
        "resource limits by default",
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
        "oomScoreAdj by default",
        &["process.oomScoreAdj"],
        &DEFAULT,
        "cat /proc/1/oom_score_adj",
    )
    .but(
        "it is the runtime's own: containerd's shim for runc adds one to it",
        "0",
    ),
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
        "signals are as by default",
        &["process.args"],
        &DEFAULT,
        // Without 32 and 33, which glibc's posix_spawn ignores, and 3, which sh does.
        "while read -r name set; do case $name in SigBlk:|SigIgn:|SigPnd:|ShdPnd:) echo $name $((0x$set & 0x7ffffffb)) ;; esac; done < /proc/1/status",
    ),
    script(
        "session, group and terminal of the first process",
        &["process.terminal"],
        &DEFAULT,
        "cut -d ' ' -f 1,4-8 /proc/1/stat",
    ),
    script(
        "no descriptor is inherited",
        &["process.args"],
        &DEFAULT,
        "ls /proc/1/fd; ls /proc/self/fd | wc -l",
    ),
    script(
        "streams are pipes that can be opened by name",
        &["process.args"],
        &DEFAULT,
        "readlink /proc/1/fd/1 | cut -d : -f 1; echo by name > /dev/stdout; echo error > /dev/stderr; echo fd > /proc/self/fd/1",
    ),
    script(
        "standard input of nothing",
        &["Task.CloseIO"],
        &DEFAULT,
        "readlink /proc/1/fd/0 | cut -d : -f 1",
    ),
    script(
        "user's streams can be opened by name",
        &["process.user.uid"],
        &PROCESS,
        "echo mine > /dev/stdout",
    ),
    script(
        "parents and names of processes",
        &["linux.namespaces"],
        &DEFAULT,
        "grep -E '^(Name|Pid|PPid|NSpid|NSsid|Threads):' /proc/1/status",
    ),
    script(
        "orphans are the first process's",
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
        "maps of a user namespace",
        &["linux.uidMappings", "linux.gidMappings"],
        &USERS,
        "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u",
    ),
    script(
        "capabilities in a user namespace",
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
    calls("HOME is looked up", &["process.env"], home),
    calls("HOME that is given stays", &["process.env"], home_given),
    calls(
        "a command is searched in the specification's PATH",
        &["process.args", "process.env"],
        path_lookup,
    ),
    calls(
        "a relative command is found from the working directory",
        &["process.args", "process.cwd"],
        relative_command,
    ),
    calls(
        "a working directory that is missing is made",
        &["process.cwd"],
        missing_cwd,
    ),
    calls(
        "the working directory is no directory",
        &["process.cwd"],
        cwd_is_file,
    ),
    calls(
        "a command that does not exist",
        &["process.args"],
        missing_command,
    ),
    calls("a path that does not exist", &["process.args"], missing_path),
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
    .but(
        "as newer versions of runc say it",
        "exec: \"/etc\": is a directory",
    ),
    calls("a file of unknown format", &["process.args"], unknown_format),
];

/// A container running `args` under a changed specification, to its end.
pub fn run_with(runtime: Runtime, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Seen> {
    run_bundle(runtime, &Bundle::new(args, change)?)
}

/// A container in `bundle`, to its end.
pub fn run_bundle(runtime: Runtime, bundle: &Bundle) -> Result<Seen> {
    let id = fresh_id("parity");
    let output = Run {
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    }
    .finish(&id)?;
    let mut seen = Seen::from(output);
    seen.stderr = seen.stderr.replace(&id, "ID");
    Ok(seen)
}

/// What a runtime says of a command that can't be run, without what it says around it.
pub fn reason(mut seen: Seen) -> Seen {
    if let Some(at) = seen.stderr.find("exec: \"") {
        seen.stderr.drain(..at);
    }
    // What gRPC calls it.
    for code in [": unknown", ": invalid argument", ": not found"] {
        seen.stderr
            .truncate(seen.stderr.trim_end().trim_end_matches(code).len());
    }
    seen
}

fn thousand_arguments(runtime: Runtime) -> Result<Seen> {
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

fn large_environment(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["sh", "-c", "env | wc -c; echo ${#V7}"], |spec| {
        if let Some(env) = spec["process"]["env"].as_array_mut() {
            env.extend((0..20).map(|number| json!(format!("V{number}={}", "x".repeat(10_000)))));
        }
    })
}

fn home(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["sh", "-c", "echo $HOME"], |spec| {
        spec["process"]["user"]["uid"] = json!(1000)
    })
}

fn home_given(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["sh", "-c", "echo $HOME"], |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "HOME=/given"]);
    })
}

fn path_lookup(runtime: Runtime) -> Result<Seen> {
    let bundle = Bundle::new(&["tool", "an argument"], |spec| {
        spec["process"]["env"] = json!(["PATH=/no/such:/tools:/bin"]);
    })?;
    bundle.file("tools/tool", 0o755, "#!/bin/sh\necho \"$0 with $1\"\n")?;
    run_bundle(runtime, &bundle)
}

fn relative_command(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["./busybox", "echo", "relative"], |spec| {
        spec["process"]["cwd"] = json!("/bin")
    })
}

fn missing_cwd(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["sh", "-c", "pwd; stat -c '%a %u:%g' ."], |spec| {
        spec["process"]["cwd"] = json!("/not/there");
    })
}

fn cwd_is_file(runtime: Runtime) -> Result<Seen> {
    let seen = run_with(runtime, &["true"], |spec| {
        spec["process"]["cwd"] = json!("/etc/passwd")
    })?;
    Ok(words(seen, &["not a directory"]))
}

/// Which of `words` an error says, and whether there was one.
pub fn words(seen: Seen, words: &[&str]) -> Seen {
    let text = seen.stderr.to_lowercase();
    Seen {
        code: seen.code,
        stdout: seen.stdout,
        stderr: words
            .iter()
            .filter(|word| text.contains(**word))
            .copied()
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn missing_command(runtime: Runtime) -> Result<Seen> {
    Ok(reason(run_with(runtime, &["no-such-command"], |_| ())?))
}

fn missing_path(runtime: Runtime) -> Result<Seen> {
    Ok(reason(run_with(runtime, &["/no/such/command"], |_| ())?))
}

fn not_executable(runtime: Runtime) -> Result<Seen> {
    Ok(reason(run_with(runtime, &["/etc/passwd"], |_| ())?))
}

fn directory_command(runtime: Runtime) -> Result<Seen> {
    Ok(reason(run_with(runtime, &["/etc"], |_| ())?))
}

fn unknown_format(runtime: Runtime) -> Result<Seen> {
    let bundle = Bundle::new(&["/bin/words"], |_| ())?;
    bundle.file("bin/words", 0o755, "no program at all\n")?;
    Ok(words(run_bundle(runtime, &bundle)?, &["exec format error"]))
}
