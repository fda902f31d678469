//! The process of a container: its command, environment, user, rights, and what it sees of its pod.

use serde_json::{Value, json};

use super::{PLAIN, PRIVILEGED, nothing, security};
use crate::cri::{Case, container, exec};

pub const CASES: &[Case] = &[
    container("process: arguments follow the command", &PLAIN, arguments, ""),
    container(
        "process: arguments replace the image's command",
        &PLAIN,
        replaced,
        "",
    ),
    container("process: what the image says", &PLAIN, configured, ""),
    container("process: a user beats the image's", &PLAIN, configured_user, ""),
    container(
        "process: environment",
        &PLAIN,
        environment,
        "printf '%s|' \"$A\" \"$EMPTY\" \"$B\" \"$PATH\"; env | grep -c ^EMPTY=",
    ),
    container(
        "process: working directory",
        &PLAIN,
        || json!({"working_dir": "/tmp"}),
        "pwd",
    ),
    container(
        "process: a working directory that is missing is made",
        &PLAIN,
        || json!({"working_dir": "/no/such"}),
        "pwd; ls -ld /no | cut -c 1-10",
    ),
    container("process: exit code", &PLAIN, nothing, "exit 42"),
    container(
        "process: killed by itself",
        &PLAIN,
        nothing,
        "sh -c 'kill -9 $$'; echo $?; exit 3",
    ),
    container(
        "process: standard input is empty",
        &PLAIN,
        nothing,
        "cat; echo end $?; readlink /proc/self/fd/0",
    ),
    container(
        "process: a terminal",
        &PLAIN,
        || json!({"tty": true}),
        "test -t 0 && test -t 1 && test -t 2 && echo terminal; tty",
    ),
    container(
        "process: oom_score_adj",
        &PLAIN,
        || json!({"linux": {"resources": {"oom_score_adj": 321}}}),
        "cat /proc/self/oom_score_adj",
    ),
    container("process: limits", &PLAIN, nothing, "ulimit -n -u -c"),
    container(
        "user: number",
        &PLAIN,
        || security(json!({"run_as_user": {"value": 1234}})),
        "id; grep -E '^(Uid|Gid|Groups)' /proc/self/status",
    ),
    container(
        "user: number with a group",
        &PLAIN,
        || security(json!({"run_as_user": {"value": 1234}, "run_as_group": {"value": 77}})),
        "id; touch /tmp/a; ls -ln /tmp/a | awk '{print $3, $4}'",
    ),
    container(
        "user: name",
        &PLAIN,
        || security(json!({"run_as_username": "nobody"})),
        "id; echo $HOME",
    ),
    container(
        "user: name with a group",
        &PLAIN,
        || security(json!({"run_as_username": "nobody", "run_as_group": {"value": 77}})),
        "id",
    ),
    container(
        "user: supplemental groups",
        &PLAIN,
        || security(json!({"run_as_user": {"value": 1000}, "supplemental_groups": [11, 22, 33]})),
        "id -G",
    ),
    container("capabilities: default", &PLAIN, nothing, CAPABILITIES),
    container(
        "capabilities: of another user",
        &PLAIN,
        || security(json!({"run_as_user": {"value": 1000}})),
        CAPABILITIES,
    ),
    container(
        "capabilities: one more",
        &PLAIN,
        || capabilities(json!({"add_capabilities": ["NET_ADMIN", "sys_time"]})),
        CAPABILITIES,
    ),
    container(
        "capabilities: some less",
        &PLAIN,
        || capabilities(json!({"drop_capabilities": ["CHOWN", "NET_RAW"]})),
        CAPABILITIES,
    ),
    container(
        "capabilities: none",
        &PLAIN,
        || capabilities(json!({"drop_capabilities": ["ALL"]})),
        CAPABILITIES,
    ),
    container(
        "capabilities: none but one",
        &PLAIN,
        || capabilities(json!({"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]})),
        CAPABILITIES,
    ),
    container(
        "capabilities: all",
        &PLAIN,
        || capabilities(json!({"add_capabilities": ["ALL"]})),
        "grep CapEff /proc/self/status | cut -c 1-16",
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
        "cat /etc/passwd | wc -c; ls /home | wc -l; touch /root/a 2>&1; touch /var/tmp/a && echo others",
    ),
    container(
        "paths of /proc are protected",
        &PLAIN,
        protected,
        "cat /proc/kcore 2>&1 | wc -c; ls /proc/acpi 2>&1 | wc -l; (echo 1 >/proc/sys/kernel/panic) 2>&1 | cut -d: -f 3-; cat /proc/timer_list | wc -c",
    ),
    container(
        "privileged",
        &PRIVILEGED,
        || security(json!({"privileged": true})),
        "grep -E '^(CapEff|Seccomp):' /proc/self/status | cut -c 1-16; mount -t tmpfs x /mnt && echo mounted; test -w /proc/sys/kernel/panic && echo sysctl; grep -c 'cgroup2 rw' /proc/mounts; grep 'sysfs' /proc/mounts | grep -c 'rw,'",
    ),
    exec(
        "pod: hostname",
        &PLAIN,
        "hostname; cat /proc/sys/kernel/hostname; cat /etc/hostname",
    ),
    exec("pod: resolv.conf", &PLAIN, "cat /etc/resolv.conf"),
    exec("pod: hosts", &PLAIN, "grep -v web-0 /etc/hosts | sort"),
    exec(
        "pod: sysctls",
        &PLAIN,
        "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start",
    ),
    exec(
        "pod: /dev/shm",
        &PLAIN,
        "df -k /dev/shm | tail -n 1 | awk '{print $2, $6}'; stat -c %a /dev/shm; mount | grep -c ' /dev/shm type tmpfs'",
    ),
    exec(
        "pod: interfaces",
        &PLAIN,
        "ip -o link | awk '{print $2, $3, $4, $5}' | sed 's/@if[0-9]*//'; cat /sys/class/net/eth0/operstate",
    ),
    exec(
        "pod: addresses",
        &PLAIN,
        "ip -o -4 addr show | awk '{print $2}'; ip -o -6 addr show scope global | awk '{print $2}'; ip -o addr | grep -c tentative; true",
    ),
    exec(
        "pod: routes",
        &PLAIN,
        "ip route | awk '{print $1, $2, $3, $4, $5}' | sed 's/[0-9.]*$//'; ip -6 route show default | awk '{print $1, $2, $3, $4, $5}'",
    ),
    exec(
        "exec: exit code, both streams",
        &PLAIN,
        "echo out; echo err >&2; exit 7",
    ),
    exec(
        "exec: a megabyte",
        &PLAIN,
        "dd if=/dev/zero bs=1k count=1024 2>/dev/null | tr '\\0' x",
    ),
    exec(
        "exec: environment and directory",
        &PLAIN,
        "pwd; env | grep -E '^(PATH|HOSTNAME)='",
    ),
    exec(
        "exec: its processes",
        &PLAIN,
        "ps -o comm | sort | uniq; cat /proc/1/comm",
    ),
    exec("exec: files stay", &PLAIN, "echo a >/tmp/stays; cat /tmp/stays"),
];

const CAPABILITIES: &str = "grep ^Cap /proc/self/status";

fn capabilities(change: Value) -> Value {
    security(json!({"capabilities": change}))
}

fn arguments() -> Value {
    json!({"command": ["echo", "-n"], "args": ["a b", "", "$HOME", "*"]})
}

fn replaced() -> Value {
    json!({"args": ["echo", "instead of sh"]})
}

fn configured() -> Value {
    json!({"image": {"image": "localhost/configured:lab"}})
}

fn configured_user() -> Value {
    json!({
        "image": {"image": "localhost/configured:lab"},
        "working_dir": "/mnt",
        "envs": [{"key": "IMAGE_A", "value": "2"}],
        "linux": {"security_context": {"run_as_user": {"value": 5}}},
    })
}

fn environment() -> Value {
    json!({"envs": [
        {"key": "A", "value": "with spaces = and 'quotes'"},
        {"key": "EMPTY", "value": ""},
        {"key": "B", "value": "ünï\ncode"},
    ]})
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
