//! The cases, by subject. A pod takes seconds in the lab, so cases share one unless they are
//! about pods.

mod bulk;
mod containers;
mod ends;
mod execs;
mod kubelet_volumes;
mod limits;
mod logs;
mod many;
mod mounts;
mod namespaces;
mod network;
mod pods;
mod process;
mod refused;
mod rights;
mod shaping;
mod software;
mod special_files;
mod streams;
mod users;

pub use kubelet_volumes::print_changes;
pub use network::echo_datagrams;
pub use special_files::{connect_to, serve_at};

use super::{Case, PodKind};
use serde_json::{Value, json};

/// All cases.
pub fn cases() -> Vec<&'static Case> {
    [
        process::CASES,
        rights::CASES,
        pods::CASES,
        containers::CASES,
        ends::CASES,
        execs::CASES,
        streams::CASES,
        logs::CASES,
        namespaces::CASES,
        users::CASES,
        mounts::CASES,
        kubelet_volumes::CASES,
        special_files::CASES,
        limits::CASES,
        network::CASES,
        bulk::CASES,
        refused::CASES,
        many::CASES,
        software::CASES,
        shaping::CASES,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A pod with a name for everything that can have one.
static PLAIN: PodKind = PodKind {
    name: "plain",
    change: || {
        json!({
            "hostname": "web-0",
            "dns_config": {
                "servers": ["10.96.0.10", "fd88::10"],
                "searches": ["a.svc.cluster.local", "svc.cluster.local"],
                "options": ["ndots:5", "timeout:1"],
            },
            "linux": {"sysctls": {"net.core.somaxconn": "1234", "kernel.msgmax": "16384"}},
        })
    },
};

/// A pod that may have privileged containers.
static PRIVILEGED: PodKind = PodKind {
    name: "privileged",
    change: || json!({"linux": {"security_context": {"privileged": true}}}),
};

/// A pod without changes.
const fn plain_pod(name: &'static str) -> PodKind {
    PodKind {
        name,
        change: nothing,
    }
}

/// No change.
fn nothing() -> Value {
    Value::Null
}

/// A change of a container's security context.
fn security(change: Value) -> Value {
    json!({"linux": {"security_context": change}})
}

/// An error's text without what differs from run to run: ids become ID, other numbers N.
fn without_numbers(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hexadecimal = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let decimal = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let taken = if hexadecimal >= 32 {
            plain.push_str("ID");
            hexadecimal
        } else if decimal > 0 {
            plain.push('N');
            decimal
        } else {
            plain.push(first);
            first.len_utf8()
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_replaced() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let text = format!("task {id}: no é12 in pod-3, added");
        assert_eq!(without_numbers(&text), "task ID: no éN in pod-N, added");
    }
}
