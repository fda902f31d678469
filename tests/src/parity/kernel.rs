//! Behaviours of namespaces, cgroups, seccomp filters, sysctls and hooks.

use std::fs::File;

use anyhow::Result;
use serde_json::{Value, json};

use super::process::{keep_words, run_bundle, run_with};
use super::specs::{DEFAULT, KERNEL, LIMITS};
use super::{Behaviour, Outcome, calls, script};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, shared_directory};
use crate::loop_device::LoopDevice;

const SECCOMP: &[&str] = &["linux.seccomp"];

pub const BEHAVIOURS: &[Behaviour] = &[
    script(
        "seccomp: SCMP_ACT_ERRNO",
        SECCOMP,
        &KERNEL,
        "mkdir /dev/shm/d; grep Seccomp: /proc/1/status",
    ),
    script("seccomp: errnoRet", SECCOMP, &KERNEL, "chmod 700 /dev/shm"),
    script(
        "seccomp: SCMP_ACT_KILL_PROCESS",
        SECCOMP,
        &KERNEL,
        "sync; echo $?",
    ),
    script("seccomp: SCMP_ACT_TRAP", SECCOMP, &KERNEL, "hostname x; echo $?"),
    script(
        "seccomp: a condition on an argument",
        SECCOMP,
        &KERNEL,
        "linux32 true; linux64 echo may",
    ),
    script(
        "sysctls",
        &["linux.sysctl"],
        &KERNEL,
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax /proc/sys/kernel/msgmax",
    ),
    script(
        "pid namespace: only the container's processes are visible",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "set -- /proc/[0-9]*; echo $#; cat /proc/1/comm; kill -0 2; echo $?",
    ),
    script(
        "network namespace: interfaces and routes",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "ls /sys/class/net; cat /proc/net/route | wc -l",
    ),
    script(
        "IPC namespace: no objects of other namespaces",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "cat /proc/sysvipc/shm | wc -l; ls -A /dev/mqueue | grep -v q",
    ),
    script(
        "changing the host name, clock and interfaces is denied",
        &["process.capabilities.effective"],
        &DEFAULT,
        "hostname x; date -s 1; ip link set lo down",
    ),
    script(
        "cgroup namespace: the cgroup's path is hidden",
        &["linux.namespaces[].type"],
        &LIMITS,
        "cat /proc/self/cgroup",
    ),
    script(
        "a session keyring of the container's own",
        &["Task.Create"],
        &LIMITS,
        "awk '$9 ~ /^_ses[.]/ {print $5, $6, $7, $8}' /proc/keys | sort -u",
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
        cgroup_files(runtime, json!({"cpu": {"cpus": "0"}}), "cpuset.cpus.effective")
    }),
    calls("NUMA memory nodes", &["linux.resources.cpu.mems"], |runtime| {
        cgroup_files(runtime, json!({"cpu": {"mems": "0"}}), "cpuset.mems")
    })
    .allow_difference("the guest has a single NUMA node", "linux.resources.cpu.mems"),
    calls("CPU shares", &["linux.resources.cpu.shares"], |runtime| {
        cgroup_files(runtime, json!({"cpu": {"shares": 512}}), "cpu.weight")
    })
    .allow_difference("Nacre converts shares to cpu.weight as runc 1.4 does", "59"),
    calls(
        "huge page limits",
        &["linux.resources.hugepageLimits"],
        |runtime| {
            cgroup_files(
                runtime,
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
                "hugetlb.2MB.max",
            )
        },
    ),
    calls(
        "block I/O weight",
        &["linux.resources.blockIO.weight"],
        |runtime| cgroup_files(runtime, json!({"blockIO": {"weight": 300}}), "io.weight"),
    )
    .allow_difference(
        "a VM can't share a disk with other VMs by weights",
        "linux.resources.blockIO.weight",
    ),
    calls(
        "limits of a block device",
        &[
            "linux.devices[].major",
            "linux.resources.blockIO.throttleReadBpsDevice[].major",
            "linux.resources.blockIO.throttleReadBpsDevice[].minor",
            "linux.resources.blockIO.throttleReadBpsDevice[].rate",
            "linux.resources.blockIO.throttleWriteBpsDevice[].major",
            "linux.resources.blockIO.throttleWriteBpsDevice[].minor",
            "linux.resources.blockIO.throttleWriteBpsDevice[].rate",
            "linux.resources.blockIO.throttleReadIOPSDevice[].major",
            "linux.resources.blockIO.throttleReadIOPSDevice[].minor",
            "linux.resources.blockIO.throttleReadIOPSDevice[].rate",
            "linux.resources.blockIO.throttleWriteIOPSDevice[].major",
            "linux.resources.blockIO.throttleWriteIOPSDevice[].minor",
            "linux.resources.blockIO.throttleWriteIOPSDevice[].rate",
        ],
        disk_limits,
    ),
    calls(
        "a limit of a disk that is no block device of the container",
        &["linux.resources.blockIO.throttleWriteBpsDevice[].major"],
        |runtime| {
            cgroup_files(
                runtime,
                json!({"blockIO": {"throttleWriteBpsDevice": [{"major": 7, "minor": 99, "rate": 1_048_576}]}}),
                "io.max",
            )
        },
    )
    .allow_difference(
        "the host writes the container's files, where no limit of the guest holds; runc fails only if there is no such disk",
        "7:99",
    ),
    calls("no limits", &["linux.resources"], |runtime| {
        cgroup_files(
            runtime,
            json!({}),
            "memory.max memory.low pids.max cpu.max cpu.weight",
        )
    }),
    calls(
        "CPU burst and idle",
        &["linux.resources.cpu.burst", "linux.resources.cpu.idle"],
        |runtime| {
            cgroup_files(
                runtime,
                json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000, "idle": 1}}),
                "cpu.max.burst cpu.idle",
            )
        },
    )
    .allow_difference(
        "runc 1.1 does not support these fields",
        "20000
1",
    ),
    calls(
        "a limit of -1 means no limit",
        &["linux.resources.memory.limit", "linux.resources.pids.limit"],
        |runtime| {
            cgroup_files(
                runtime,
                json!({"memory": {"limit": -1}, "pids": {"limit": -1}}),
                "memory.max pids.max",
            )
        },
    ),
    calls(
        "unified: an unknown cgroup file is refused",
        &["linux.resources.unified"],
        |runtime| {
            let outcome = cgroup_files(
                runtime,
                json!({"unified": {"memory.nonsense": "1"}}),
                "memory.max",
            )?;
            Ok(keep_words(outcome, &["memory.nonsense"]))
        },
    ),
    calls(
        "mount propagation of the root",
        &["linux.rootfsPropagation"],
        propagation,
    )
    .allow_difference("runc always leaves the root mount private", "shared: shared:"),
    calls("AppArmor profile", &["process.apparmorProfile"], |runtime| {
        run_with(runtime, &["echo", "ran"], |spec| {
            spec["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
        })
    })
    .allow_difference(
        "the guest kernel has no AppArmor; Nacre ignores the profile and logs that",
        "ran",
    ),
    calls("seccomp: allowlist with a default errno", SECCOMP, allow_list),
    calls("seccomp: an unknown action is refused", SECCOMP, |runtime| {
        let outcome = run_with(runtime, &["true"], |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NONSENSE"});
        })?;
        Ok(keep_words(outcome, &["scmp_act_nonsense"]))
    }),
    calls("hooks: order, environment and state", &["hooks"], hooks),
    calls("hooks: a failing createRuntime hook", &["hooks"], failing_hook),
    script(
        "pids limit",
        &["linux.resources.pids.limit"],
        &LIMITS,
        "cat /sys/fs/cgroup/pids.max; sh -c 'i=0; while [ $i -lt 30 ]; do sleep 3 & i=$((i+1)); done' 2>&1 | head -n 1; sleep 4",
    ),
    script(
        "unified: memory.high",
        &["linux.resources.unified"],
        &LIMITS,
        "cat /sys/fs/cgroup/memory.high",
    ),
    script(
        "cgroup controllers",
        &["linux.cgroupsPath"],
        &LIMITS,
        "for c in cpu cpuset io memory pids; do grep -o -w $c /sys/fs/cgroup/cgroup.controllers; done; head -n 1 /sys/fs/cgroup/cgroup.procs",
    ),
    calls(
        "an OOM-killed container exits with 137",
        &["linux.resources.memory.limit"],
        out_of_memory,
    ),
    calls("domainname", &["domainname"], domainname)
        .allow_difference("runc 1.1 does not support this field", "example.org"),
    calls(
        "a sysctl without a namespace is refused",
        &["linux.sysctl"],
        sysctl_without_namespace,
    ),
    calls("personality", &["linux.personality"], personality)
        .allow_difference("runc 1.1 does not support this field", "i686"),
];

fn out_of_memory(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["sh", "-c", "echo up; exec tail /dev/zero"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16_777_216});
    })
}

fn domainname(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["cat", "/proc/sys/kernel/domainname"], |spec| {
        spec["domainname"] = json!("example.org")
    })
}

/// Prints `files` of the container's cgroup, created with `resources`.
fn cgroup_files(runtime: Runtime, resources: Value, files: &str) -> Result<Outcome> {
    let script = format!("cd /sys/fs/cgroup; cat {files}");
    run_with(runtime, &["sh", "-c", &script], |spec| {
        (LIMITS.change)(spec);
        spec["linux"]["resources"] = resources;
    })
}

/// Prints the limits without the number of the device, and whether reading takes as long as it must.
fn disk_limits(runtime: Runtime) -> Result<Outcome> {
    let directory = tempfile::tempdir_in("/run")?;
    let file = directory.path().join("disk");
    File::create_new(&file)?.set_len(4 << 20)?;
    let device = LoopDevice::new(&file)?;
    let script = "cut -d ' ' -f 2- /sys/fs/cgroup/io.max
        begun=$(cut -d . -f 1 /proc/uptime)
        dd if=/dev/disk of=/dev/null bs=64k iflag=direct 2>&1 | head -n 1
        test $(($(cut -d . -f 1 /proc/uptime) - begun)) -ge 3 && echo limited";
    let (major, minor) = device.number;
    let limit = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let limits = json!({"throttleReadBpsDevice": limit(1 << 20), "throttleWriteBpsDevice": limit(2 << 20),
        "throttleReadIOPSDevice": limit(4096), "throttleWriteIOPSDevice": limit(50)});
    run_with(runtime, &["sh", "-c", script], |spec| {
        (LIMITS.change)(spec);
        device.add(spec, "/dev/disk", "rwm");
        spec["linux"]["resources"]["blockIO"] = limits;
    })
}

fn propagation(runtime: Runtime) -> Result<Outcome> {
    let mut all = Outcome::default();
    for word in ["shared", "slave", "private"] {
        let script = "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo | tr -d '0-9'";
        let outcome = run_with(runtime, &["sh", "-c", script], |spec| {
            spec["linux"]["rootfsPropagation"] = json!(word);
        })?;
        all.stdout += &format!("{word}: {}{}", outcome.stdout, outcome.stderr);
    }
    Ok(all)
}

/// A filter that allows by name what busybox's shell, `echo`, `ln` and `grep` call, so that `mkdir` and
/// `symlink` fail with the default errno.
fn allow_list(runtime: Runtime) -> Result<Outcome> {
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

/// Each hook of `kinds` appends its kind to the file `log` in the bundle's shared directory, which is
/// bind-mounted at /shared in the container. The hook of kind `failing` then exits with 3.
fn with_hooks(args: &[&str], kinds: &[&str], failing: &str) -> Result<Bundle> {
    Bundle::new(args, |spec| {
        let host = shared_directory(spec);
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
            let exit = if *kind == failing {
                "; echo because >&2; exit 3"
            } else {
                ""
            };
            // A hook reads the container's state from standard input.
            let script = format!(
                "read -r state; case $state in *'\"ociVersion\"'*) ok=state ;; esac; echo {kind} $WORD $ok >> {log}/log{exit}"
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

fn hooks(runtime: Runtime) -> Result<Outcome> {
    let bundle = with_hooks(&["sh", "-c", "sleep 1; echo command >> /shared/log"], &HOOKS, "")?;
    let mut outcome = run_bundle(runtime, &bundle)?;
    let log = std::fs::read_to_string(bundle.shared_directory().join("log"))?;
    let lines: Vec<&str> = log.lines().collect();
    let at = |word: &str| lines.iter().position(|line| line.starts_with(word));
    // The specification does not order startContainer and poststart.
    for (first, second) in [
        ("prestart", "createRuntime"),
        ("createRuntime", "startContainer"),
        ("createRuntime", "poststart"),
        ("startContainer", "command"),
        ("command", "poststop"),
    ] {
        outcome.stdout += &format!("{first} before {second}: {}\n", at(first) < at(second));
    }
    let mut sorted = lines;
    sorted.sort_unstable();
    outcome.stdout += &sorted.join("\n");
    Ok(outcome)
}

fn failing_hook(runtime: Runtime) -> Result<Outcome> {
    let bundle = with_hooks(&["echo", "ran"], &["createRuntime"], "createRuntime")?;
    let outcome = run_bundle(runtime, &bundle)?;
    Ok(keep_words(outcome, &["because", "hook"]))
}

fn sysctl_without_namespace(runtime: Runtime) -> Result<Outcome> {
    let outcome = run_with(runtime, &["true"], |spec| {
        spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"})
    })?;
    Ok(keep_words(outcome, &["vm.swappiness"]))
}

fn personality(runtime: Runtime) -> Result<Outcome> {
    run_with(runtime, &["uname", "-m"], |spec| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32"})
    })
}
