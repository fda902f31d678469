//! Namespaces, cgroups, system call filters, settings of the kernel.

use anyhow::Result;
use serde_json::{Value, json};

use super::process::{run_bundle, run_with, words};
use super::specs::{DEFAULT, KERNEL, LIMITS};
use super::{Behaviour, Seen, calls, script};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, shared};

const SECCOMP: &[&str] = &["linux.seccomp"];

pub const BEHAVIOURS: &[Behaviour] = &[
    script(
        "seccomp: an error",
        SECCOMP,
        &KERNEL,
        "mkdir /dev/shm/d; grep Seccomp: /proc/1/status",
    ),
    script(
        "seccomp: an errno of its own",
        SECCOMP,
        &KERNEL,
        "chmod 700 /dev/shm",
    ),
    script(
        "seccomp: the process is killed",
        SECCOMP,
        &KERNEL,
        "sync; echo $?",
    ),
    script("seccomp: a trap", SECCOMP, &KERNEL, "hostname x; echo $?"),
    script(
        "seccomp: a condition on an argument",
        SECCOMP,
        &KERNEL,
        "linux32 true; linux64 echo may",
    ),
    script(
        "settings of the kernel",
        &["linux.sysctl"],
        &KERNEL,
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax /proc/sys/kernel/msgmax",
    ),
    script(
        "processes see their own alone",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "set -- /proc/[0-9]*; echo $#; cat /proc/1/comm; kill -0 2; echo $?",
    ),
    script(
        "links of the network namespace",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "ls /sys/class/net; cat /proc/net/route | wc -l",
    ),
    script(
        "IPC of its own",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "cat /proc/sysvipc/shm | wc -l; ls -A /dev/mqueue | grep -v q",
    ),
    script(
        "a setting can't be changed",
        &["process.capabilities.effective"],
        &DEFAULT,
        "hostname x; date -s 1; ip link set lo down",
    ),
    script(
        "the cgroup namespace hides the path",
        &["linux.namespaces[].type"],
        &LIMITS,
        "cat /proc/self/cgroup",
    ),
    script(
        "memory limits",
        &[
            "linux.resources.memory.limit",
            "linux.resources.memory.reservation",
            "linux.resources.memory.swap",
        ],
        &LIMITS,
        "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max",
    ),
    script(
        "CPU limits",
        &[
            "linux.resources.cpu.shares",
            "linux.resources.cpu.quota",
            "linux.resources.cpu.period",
        ],
        &LIMITS,
        "cd /sys/fs/cgroup; cat cpu.max",
    ),
    calls("CPU sets", &["linux.resources.cpu.cpus"], |runtime| {
        limited(runtime, json!({"cpu": {"cpus": "0"}}), "cpuset.cpus.effective")
    }),
    calls("memory nodes", &["linux.resources.cpu.mems"], |runtime| {
        limited(runtime, json!({"cpu": {"mems": "0"}}), "cpuset.mems")
    })
    .but(
        "the guest's memory is one node, wherever the host has put it",
        "linux.resources.cpu.mems",
    ),
    calls("shares of the CPU", &["linux.resources.cpu.shares"], |runtime| {
        limited(runtime, json!({"cpu": {"shares": 512}}), "cpu.weight")
    })
    .but("converted as newer versions of runc do", "59"),
    calls("huge pages", &["linux.resources.hugepageLimits"], |runtime| {
        limited(
            runtime,
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
            "hugetlb.2MB.max",
        )
    }),
    calls(
        "weight of block devices",
        &["linux.resources.blockIO.weight"],
        |runtime| limited(runtime, json!({"blockIO": {"weight": 300}}), "io.weight"),
    )
    .but(
        "the host's disks are not the guest's",
        "linux.resources.blockIO.weight",
    ),
    calls("no limits", &["linux.resources"], |runtime| {
        limited(
            runtime,
            json!({}),
            "memory.max memory.low pids.max cpu.max cpu.weight",
        )
    }),
    calls(
        "a burst of CPU time and an idle cgroup",
        &["linux.resources.cpu.burst", "linux.resources.cpu.idle"],
        |runtime| {
            limited(
                runtime,
                json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000, "idle": 1}}),
                "cpu.max.burst cpu.idle",
            )
        },
    )
    .but(
        "runc 1.1 does not know the fields",
        "20000
1",
    ),
    calls(
        "a negative limit is none",
        &["linux.resources.memory.limit", "linux.resources.pids.limit"],
        |runtime| {
            limited(
                runtime,
                json!({"memory": {"limit": -1}, "pids": {"limit": -1}}),
                "memory.max pids.max",
            )
        },
    ),
    calls(
        "a unified file that does not exist is refused",
        &["linux.resources.unified"],
        |runtime| {
            let seen = limited(
                runtime,
                json!({"unified": {"memory.nonsense": "1"}}),
                "memory.max",
            )?;
            Ok(words(seen, &["memory.nonsense"]))
        },
    ),
    calls(
        "propagation of the root",
        &["linux.rootfsPropagation"],
        propagation,
    )
    .but("runc leaves the root itself private", "shared: shared:"),
    calls("a profile of AppArmor", &["process.apparmorProfile"], |runtime| {
        run_with(runtime, &["echo", "ran"], |spec| {
            spec["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
        })
    })
    .but(
        "the guest has no AppArmor: the profile is named in the log",
        "ran",
    ),
    calls(
        "seccomp: the default is an error, and calls are allowed by name",
        SECCOMP,
        allow_list,
    ),
    calls("seccomp: an unknown action is refused", SECCOMP, |runtime| {
        let seen = run_with(runtime, &["true"], |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NONSENSE"});
        })?;
        Ok(words(seen, &["scmp_act_nonsense"]))
    }),
    calls("hooks: where, when and in which order", &["hooks"], hooks),
    calls("hooks: one that fails", &["hooks"], failing_hook),
    script(
        "the limit of processes",
        &["linux.resources.pids.limit"],
        &LIMITS,
        "cat /sys/fs/cgroup/pids.max; sh -c 'i=0; while [ $i -lt 30 ]; do sleep 3 & i=$((i+1)); done' 2>&1 | head -n 1; sleep 4",
    ),
    script(
        "unified",
        &["linux.resources.unified"],
        &LIMITS,
        "cat /sys/fs/cgroup/memory.high",
    ),
    script(
        "controllers of the cgroup",
        &["linux.cgroupsPath"],
        &LIMITS,
        "for c in cpu cpuset io memory pids; do grep -o -w $c /sys/fs/cgroup/cgroup.controllers; done; head -n 1 /sys/fs/cgroup/cgroup.procs",
    ),
    calls(
        "too much memory: 137",
        &["linux.resources.memory.limit"],
        out_of_memory,
    ),
    calls("domainname", &["domainname"], domainname).but("runc 1.1 does not know the field", "example.org"),
    calls(
        "an unknown setting of the kernel is refused",
        &["linux.sysctl"],
        unknown_sysctl,
    ),
    calls("personality", &["linux.personality"], personality).but("runc 1.1 does not know the field", "i686"),
];

fn out_of_memory(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["sh", "-c", "echo up; exec tail /dev/zero"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16_777_216});
    })
}

fn domainname(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["cat", "/proc/sys/kernel/domainname"], |spec| {
        spec["domainname"] = json!("example.org")
    })
}

/// The `files` of the container's cgroup under `resources`.
fn limited(runtime: Runtime, resources: Value, files: &str) -> Result<Seen> {
    let script = format!("cd /sys/fs/cgroup; cat {files}");
    run_with(runtime, &["sh", "-c", &script], |spec| {
        (super::specs::LIMITS.change)(spec);
        spec["linux"]["resources"] = resources;
    })
}

fn propagation(runtime: Runtime) -> Result<Seen> {
    let mut all = Seen::default();
    for word in ["shared", "slave", "private"] {
        let script = "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo | tr -d '0-9'";
        let seen = run_with(runtime, &["sh", "-c", script], |spec| {
            spec["linux"]["rootfsPropagation"] = json!(word);
        })?;
        all.stdout += &format!("{word}: {}{}", seen.stdout, seen.stderr);
    }
    Ok(all)
}

/// What busybox needs for `echo`, `ls` and `uname`, so that `mkdir` and `uname` fail.
fn allow_list(runtime: Runtime) -> Result<Seen> {
    let script = "echo may; mkdir /tmp/x; ln -s a /tmp/b; grep Seccomp_filters /proc/self/status";
    run_with(runtime, &["sh", "-c", script], |spec| {
        let allowed: Vec<&str> = "access arch_prctl brk capget capset chdir clone clone3 close close_range dup dup2 dup3 epoll_ctl \
            epoll_pwait execve exit exit_group faccessat2 fchdir fcntl fork fstat fstatfs futex getcwd \
            getdents64 getegid geteuid getgid getpid getppid getrandom gettid getuid ioctl lseek lstat madvise \
            mmap mprotect mremap munmap nanosleep newfstatat open openat pipe pipe2 poll ppoll prctl pread64 \
            prlimit64 read readlink readlinkat readv rseq rt_sigaction rt_sigprocmask rt_sigreturn \
            sched_getaffinity sched_yield sendmsg set_robust_list set_tid_address setgid setgroups setuid \
            sigaltstack stat statfs statx tgkill umask vfork wait4 waitid write writev"
            .split(' ')
            .collect();
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 95,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}]
        });
    })
}

/// Each hook writes its name to a file of the host's, which the container sees as /shared.
fn with_hooks(args: &[&str], kinds: &[&str], failing: &str) -> Result<Bundle> {
    Bundle::new(args, |spec| {
        let host = shared(spec);
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({
                "destination": "/shared", "type": "bind", "source": host, "options": ["rbind"]
            }));
        }
        for kind in kinds {
            let log = if *kind == "startContainer" {
                "/shared"
            } else {
                &host
            };
            let end = if *kind == failing {
                "; echo because >&2; exit 3"
            } else {
                ""
            };
            // The state comes on standard input.
            let script = format!(
                "read -r state; case $state in *'\"ociVersion\"'*) ok=state ;; esac; echo {kind} $WORD $ok >> {log}/log{end}"
            );
            spec["hooks"][kind] = json!([{
                "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin", "WORD=word"], "timeout": 60
            }]);
        }
    })
}

const HOOKS: [&str; 5] = [
    "prestart",
    "createRuntime",
    "startContainer",
    "poststart",
    "poststop",
];

fn hooks(runtime: Runtime) -> Result<Seen> {
    let bundle = with_hooks(&["sh", "-c", "sleep 1; echo command >> /shared/log"], &HOOKS, "")?;
    let mut seen = run_bundle(runtime, &bundle)?;
    let log = std::fs::read_to_string(bundle.shared().join("log"))?;
    let lines: Vec<&str> = log.lines().collect();
    let at = |word: &str| lines.iter().position(|line| line.starts_with(word));
    // Nothing says which of startContainer and poststart is first.
    for (first, second) in [
        ("prestart", "createRuntime"),
        ("createRuntime", "startContainer"),
        ("createRuntime", "poststart"),
        ("startContainer", "command"),
        ("command", "poststop"),
    ] {
        seen.stdout += &format!("{first} before {second}: {}\n", at(first) < at(second));
    }
    let mut sorted = lines;
    sorted.sort_unstable();
    seen.stdout += &sorted.join("\n");
    Ok(seen)
}

fn failing_hook(runtime: Runtime) -> Result<Seen> {
    let bundle = with_hooks(&["echo", "ran"], &["createRuntime"], "createRuntime")?;
    let seen = run_bundle(runtime, &bundle)?;
    Ok(words(seen, &["because", "hook"]))
}

fn unknown_sysctl(runtime: Runtime) -> Result<Seen> {
    let seen = run_with(runtime, &["true"], |spec| {
        spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"})
    })?;
    Ok(words(seen, &["vm.swappiness"]))
}

fn personality(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["uname", "-m"], |spec| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32"})
    })
}
