//! Namespaces, cgroups, system call filters, settings of the kernel.

use anyhow::Result;
use serde_json::json;

use super::process::run_with;
use super::specs::{DEFAULT, KERNEL, LIMITS};
use super::{Behaviour, Seen, calls, script};
use crate::containerd::Runtime;

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
        "ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; kill -0 2; echo $?",
    ),
    script(
        "links of the network namespace",
        &["linux.namespaces[].type"],
        &DEFAULT,
        "ls /sys/class/net; ls /proc/net | grep -c .",
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
        "cd /sys/fs/cgroup; cat cpu.max cpu.weight",
    ),
    script(
        "CPU and memory sets",
        &["linux.resources.cpu.cpus", "linux.resources.cpu.mems"],
        &LIMITS,
        "cd /sys/fs/cgroup; cat cpuset.cpus cpuset.mems; grep -E 'Cpus_allowed_list|Mems_allowed_list' /proc/self/status",
    ),
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
        "cat /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/cgroup.procs | head -n 2",
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

fn unknown_sysctl(runtime: Runtime) -> Result<Seen> {
    let seen = run_with(runtime, &["true"], |spec| {
        spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"})
    })?;
    Ok(super::process::words(seen, &["vm.swappiness"]))
}

fn personality(runtime: Runtime) -> Result<Seen> {
    run_with(runtime, &["uname", "-m"], |spec| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32"})
    })
}
