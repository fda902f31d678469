//! The process of a container: its command, environment, user, and what it sees of its pod.

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
        r#"printf '%s|' "$A" "$EMPTY" "$B" "$PATH"; env | grep -c ^EMPTY="#,
    ),
    container(
        "process: a working directory that is missing is made",
        &PLAIN,
        || json!({"working_dir": "/no/such"}),
        "pwd; ls -ld /no | cut -c 1-10",
    ),
    container(
        "process: killed by itself",
        &PLAIN,
        nothing,
        "sh -c 'kill -9 $$'; echo $?; exit 42",
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
        || security(json!({"run_as_username": "nobody", "run_as_group": {"value": 77}})),
        "id; echo $HOME",
    ),
    container(
        "user: supplemental groups",
        &PLAIN,
        || security(json!({"run_as_user": {"value": 1000}, "supplemental_groups": [11, 22, 33]})),
        "id -G",
    ),
    exec(
        "pod: hostname",
        &PLAIN,
        "hostname; cat /proc/sys/kernel/hostname; cat /etc/hostname",
    ),
    exec(
        "pod: without a hostname it has the host's",
        &PRIVILEGED,
        "hostname; cat /etc/hostname",
    ),
    exec("pod: resolv.conf", &PLAIN, "cat /etc/resolv.conf"),
    exec("pod: hosts", &PLAIN, "grep -v web-0 /etc/hosts | sort"),
    exec(
        "pod: sysctls",
        &PLAIN,
        "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax
        cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range",
    ),
    exec(
        "pod: /dev/shm",
        &PLAIN,
        "df -k /dev/shm | tail -n 1 | awk '{print $2, $6}'; stat -c %a /dev/shm; grep -c ' /dev/shm tmpfs' /proc/mounts",
    ),
    exec(
        "pod: interfaces",
        &PLAIN,
        "ip -o link | grep -v sit0 | awk '{print $2, $4, $5}' | sed 's/@if[0-9]*//'; cat /sys/class/net/eth0/operstate",
    ),
    exec(
        "pod: addresses",
        &PLAIN,
        "ip -o -4 addr show | awk '{print $2}'; ip -o -6 addr show scope global | awk '{print $2}'
        ip -o addr | grep -c tentative; true",
    ),
    exec(
        "pod: routes",
        &PLAIN,
        "ip route | awk '{print $1, $2, $3, $4, $5}' | sed 's/[0-9.]*$//'
        ip -6 route show default | awk '{print $1, $2, $3, $4, $5}'",
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
        "ps -o pid,comm | awk '$1 == 1'; ps -o comm | grep -c '^sleep$'",
    ),
];

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
