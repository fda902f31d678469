//! The cases, by subject. A pod takes seconds in the lab, so cases that need the same pod share it.

mod containers;
mod process;

use super::{Case, PodKind};
use serde_json::{Value, json};

/// All cases.
pub fn cases() -> Vec<&'static Case> {
    [process::CASES, containers::CASES]
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

/// No change.
fn nothing() -> Value {
    Value::Null
}

/// A change of a container's security context.
fn security(change: Value) -> Value {
    json!({"linux": {"security_context": change}})
}
