//! What a container's process may do: capabilities, seccomp, protected paths, privileged containers.

use serde_json::{Value, json};

use super::{PLAIN, PRIVILEGED, nothing, security};
use crate::cri::{Case, container};

pub const CASES: &[Case] = &[
    container("capabilities: default", &PLAIN, nothing, CAPABILITIES),
    container(
        "capabilities: of another user",
        &PLAIN,
        || security(json!({"run_as_user": {"value": 1000}})),
        CAPABILITIES,
    ),
    container(
        "capabilities: more and less",
        &PLAIN,
        || capabilities(&["NET_ADMIN", "sys_time"], &["CHOWN"]),
        CAPABILITIES,
    ),
    container(
        "capabilities: none",
        &PLAIN,
        || capabilities(&[], &["ALL"]),
        CAPABILITIES,
    ),
    container(
        "capabilities: none but one",
        &PLAIN,
        || capabilities(&["NET_BIND_SERVICE"], &["ALL"]),
        CAPABILITIES,
    ),
    container(
        "capabilities: all",
        &PLAIN,
        || capabilities(&["ALL"], &[]),
        CAPABILITIES,
    ),
    container(
        "no_new_privs",
        &PLAIN,
        || security(json!({"no_new_privs": true})),
        "grep NoNewPrivs /proc/self/status",
    ),
    container(
        "seccomp: the runtime's default",
        &PLAIN,
        || security(json!({"seccomp": {"profile_type": "RuntimeDefault"}})),
        "grep ^Seccomp: /proc/self/status; unshare -U true 2>&1; echo $?",
    ),
    container(
        "seccomp: the runtime's default, without privileges",
        &PLAIN,
        || {
            security(json!({
                "seccomp": {"profile_type": "RuntimeDefault"},
                "run_as_user": {"value": 1000}
            }))
        },
        "id -u; grep ^Seccomp: /proc/self/status; unshare -U true 2>&1; echo $?",
    ),
    container(
        "seccomp: unconfined",
        &PLAIN,
        || security(json!({"seccomp": {"profile_type": "Unconfined"}})),
        "grep ^Seccomp: /proc/self/status",
    ),
    container(
        "root file system: read-only",
        &PLAIN,
        || security(json!({"readonly_rootfs": true})),
        "touch /a 2>&1; echo $?; touch /dev/shm/a && echo shm; touch /dev/a && echo dev",
    ),
    container(
        "masked and read-only paths",
        &PLAIN,
        masked,
        "wc -c </etc/passwd; ls /home | wc -l; touch /root/a 2>&1; touch /var/tmp/a && echo others",
    ),
    container(
        "paths of /proc are protected",
        &PLAIN,
        protected,
        "cat /proc/kcore 2>/dev/null | wc -c; cat /proc/timer_list | wc -c
        (echo 1 >/proc/sys/kernel/panic) 2>&1 | cut -d: -f 3-",
    ),
    container(
        "privileged",
        &PRIVILEGED,
        || security(json!({"privileged": true})),
        "grep -E '^(CapEff|Seccomp):' /proc/self/status
        mount -t tmpfs x /mnt && echo mounted
        test -w /proc/sys/kernel/panic && echo sysctl
        grep -c 'cgroup2 rw' /proc/mounts",
    ),
    container(
        "privileged: a container that is not, in such a pod",
        &PRIVILEGED,
        nothing,
        "grep -E '^(CapEff|Seccomp):' /proc/self/status; mount -t tmpfs x /mnt || echo refused",
    ),
];

const CAPABILITIES: &str = "grep ^Cap /proc/self/status";

fn capabilities(add: &[&str], drop: &[&str]) -> Value {
    security(json!({"capabilities": {"add_capabilities": add, "drop_capabilities": drop}}))
}

fn masked() -> Value {
    security(json!({"masked_paths": ["/etc/passwd", "/home"], "readonly_paths": ["/root"]}))
}

fn protected() -> Value {
    security(json!({
        "masked_paths": ["/proc/acpi", "/proc/kcore", "/proc/timer_list"],
        "readonly_paths": ["/proc/sys", "/proc/irq", "/proc/bus"],
    }))
}
