//! Every field of the OCI runtime specification (1.2), and whether a guest's container gets it. What is not accepted is
//! refused by its JSON path when it asks for something; a key that the specification does not know is reported.
//! A table and the walk over it; pure.

use serde_json::Value;

/// What becomes of a field.
#[derive(Debug)]
enum Rule {
    /// Applied, with all below it.
    Accept,
    /// Refused, for this reason, where it is not empty.
    Refuse(&'static str),
    /// An object with these keys.
    Keys(&'static [(&'static str, Rule)]),
    /// An array whose elements follow the rule.
    Each(&'static Rule),
}

use Rule::{Accept, Each, Keys, Refuse};

const LATER: &str = "not supported yet";
const V1: &str = "a control of cgroup v1; the guest has cgroup v2";
const HOST_NUMBER: &str = "it names a resource of the host, which the guest does not have";
const NOT_LINUX: &str = "for another platform";

static SPEC: Rule = Keys(&[
    ("ociVersion", Accept),
    ("hostname", Accept),
    ("domainname", Accept),
    ("annotations", Accept),
    ("root", Keys(&[("path", Accept), ("readonly", Accept)])),
    ("process", PROCESS),
    ("mounts", Each(&MOUNT)),
    ("hooks", HOOKS),
    ("linux", LINUX),
    ("solaris", Refuse(NOT_LINUX)),
    ("windows", Refuse(NOT_LINUX)),
    ("vm", Refuse("the VM is configured in config.toml")),
    ("zos", Refuse(NOT_LINUX)),
    ("freebsd", Refuse(NOT_LINUX)),
]);

const PROCESS: Rule = Keys(&[
    ("terminal", Refuse(LATER)),
    ("consoleSize", Refuse(LATER)),
    ("user", Accept),
    ("args", Accept),
    ("commandLine", Refuse(NOT_LINUX)),
    ("env", Accept),
    ("cwd", Accept),
    ("capabilities", Accept),
    ("rlimits", Accept),
    ("noNewPrivileges", Accept),
    ("apparmorProfile", Refuse("the guest's kernel has no AppArmor")),
    ("oomScoreAdj", Accept),
    ("scheduler", Accept),
    ("selinuxLabel", Refuse("the guest's kernel has no SELinux")),
    ("ioPriority", Accept),
    ("execCPUAffinity", Refuse(LATER)),
]);

static MOUNT: Rule = Keys(&[
    ("destination", Accept),
    ("type", Accept),
    ("source", Accept),
    ("options", Accept),
    ("uidMappings", Refuse(LATER)),
    ("gidMappings", Refuse(LATER)),
]);

const HOOKS: Rule = Keys(&[
    ("prestart", Refuse(LATER)),
    ("createRuntime", Refuse(LATER)),
    ("createContainer", Refuse(LATER)),
    ("startContainer", Refuse(LATER)),
    ("poststart", Refuse(LATER)),
    ("poststop", Refuse(LATER)),
]);

const LINUX: Rule = Keys(&[
    ("uidMappings", Refuse(LATER)),
    ("gidMappings", Refuse(LATER)),
    ("timeOffsets", Refuse(LATER)),
    ("sysctl", Accept),
    ("resources", RESOURCES),
    ("cgroupsPath", Accept),
    (
        "namespaces",
        Each(&Keys(&[
            ("type", Accept),
            (
                "path",
                Refuse("a namespace of the host can't be entered from a guest"),
            ),
        ])),
    ),
    ("devices", Accept),
    ("netDevices", Refuse(LATER)),
    ("seccomp", SECCOMP),
    ("rootfsPropagation", Accept),
    ("maskedPaths", Accept),
    ("readonlyPaths", Accept),
    ("mountLabel", Refuse("the guest's kernel has no SELinux")),
    ("intelRdt", Refuse(LATER)),
    (
        "personality",
        Keys(&[("domain", Accept), ("flags", Refuse(LATER))]),
    ),
    ("memoryPolicy", Refuse(LATER)),
]);

const SECCOMP: Rule = Keys(&[
    ("defaultAction", Accept),
    ("defaultErrnoRet", Accept),
    ("architectures", Accept),
    ("flags", Accept),
    (
        "listenerPath",
        Refuse("a listener on the host can't be reached from a guest"),
    ),
    (
        "listenerMetadata",
        Refuse("a listener on the host can't be reached from a guest"),
    ),
    ("syscalls", Accept),
]);

const RESOURCES: Rule = Keys(&[
    ("devices", Accept),
    (
        "memory",
        Keys(&[
            ("limit", Accept),
            ("reservation", Accept),
            ("swap", Accept),
            ("kernel", Refuse(V1)),
            ("kernelTCP", Refuse(V1)),
            ("swappiness", Refuse(V1)),
            ("disableOOMKiller", Refuse(V1)),
            ("useHierarchy", Refuse(V1)),
            ("checkBeforeUpdate", Refuse(LATER)),
        ]),
    ),
    (
        "cpu",
        Keys(&[
            ("shares", Accept),
            ("quota", Accept),
            ("period", Accept),
            ("burst", Accept),
            ("realtimeRuntime", Refuse(V1)),
            ("realtimePeriod", Refuse(V1)),
            ("cpus", Refuse(HOST_NUMBER)),
            ("mems", Refuse(HOST_NUMBER)),
            ("idle", Accept),
        ]),
    ),
    ("pids", Keys(&[("limit", Accept)])),
    ("blockIO", Refuse(HOST_NUMBER)),
    ("hugepageLimits", Accept),
    ("network", Refuse(LATER)),
    ("rdma", Refuse(LATER)),
    ("unified", Accept),
]);

/// A field that can't be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its JSON path.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What the walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Fields that ask for what is not done.
    pub refusals: Vec<Refusal>,
    /// Keys that the specification does not have.
    pub unknown: Vec<String>,
}

/// Looks at every field of `spec`.
pub fn check(spec: &Value) -> Findings {
    let mut findings = Findings::default();
    walk(&SPEC, spec, "", &mut findings);
    findings
}

fn walk(rule: &Rule, value: &Value, path: &str, findings: &mut Findings) {
    let refuse = |findings: &mut Findings, reason: &str| {
        let path = if path.is_empty() { "the spec" } else { path };
        findings.refusals.push(Refusal {
            path: path.into(),
            reason: reason.into(),
        });
    };
    match (rule, value) {
        (Accept, _) | (Keys(_) | Each(_), Value::Null) => {}
        (Refuse(reason), value) => {
            if !asks_for_nothing(value) {
                refuse(findings, reason);
            }
        }
        (Keys(keys), Value::Object(object)) => {
            for (key, value) in object {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match keys.iter().find(|(name, _)| name == key) {
                    Some((_, rule)) => walk(rule, value, &path, findings),
                    None => findings.unknown.push(path),
                }
            }
        }
        (Each(rule), Value::Array(elements)) => {
            for (index, value) in elements.iter().enumerate() {
                walk(rule, value, &format!("{path}[{index}]"), findings);
            }
        }
        (Keys(_), _) => refuse(findings, "not an object"),
        (Each(_), _) => refuse(findings, "not an array"),
    }
}

/// Generators write empty fields for what they don't want.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(object) => object.values().all(asks_for_nothing),
        Value::Number(_) | Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_refused_field_is_named_by_its_path() {
        let spec = json!({
            "process": {"terminal": true, "args": ["a"], "execCPUAffinity": {"initial": "0"}},
            "hooks": {"poststop": [{"path": "/bin/true"}], "prestart": []},
            "mounts": [{"destination": "/a"}, {"destination": "/b", "uidMappings": [{"hostID": 1}]}],
            "linux": {
                "resources": {"cpu": {"cpus": "0-1", "quota": 5}, "blockIO": {"weight": 10}, "unified": {"memory.high": "1"}},
                "namespaces": [{"type": "network", "path": "/proc/1/ns/net"}]
            }
        });
        let mut paths: Vec<String> = check(&spec)
            .refusals
            .into_iter()
            .map(|refusal| refusal.path)
            .collect();
        paths.sort();
        let want = [
            "hooks.poststop",
            "linux.namespaces[0].path",
            "linux.resources.blockIO",
            "linux.resources.cpu.cpus",
            "mounts[1].uidMappings",
            "process.execCPUAffinity",
            "process.terminal",
        ];
        assert_eq!(paths, want);
    }

    /// Rows of the table in the documentation: path and reason of every refused field.
    fn rows(rule: &Rule, path: &str, found: &mut Vec<String>) {
        match rule {
            Accept => {}
            Refuse(reason) => found.push(format!("| `{path}` | {reason} |")),
            Each(rule) => rows(rule, &format!("{path}[]"), found),
            Keys(keys) => {
                for (key, rule) in *keys {
                    let path = if path.is_empty() {
                        (*key).to_owned()
                    } else {
                        format!("{path}.{key}")
                    };
                    rows(rule, &path, found);
                }
            }
        }
    }

    #[test]
    fn the_documentation_lists_what_is_refused() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/refused-fields.md");
        let text = std::fs::read_to_string(file).unwrap();
        let listed: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
        let mut want = Vec::new();
        rows(&SPEC, "", &mut want);
        assert_eq!(listed, want, "the table in {file}");
    }

    #[test]
    fn what_is_empty_asks_for_nothing() {
        let spec = json!({
            "process": {"terminal": false, "apparmorProfile": "", "consoleSize": null},
            "hooks": {}, "windows": null,
            "linux": {"resources": {"rdma": {}, "network": {}}, "seccomp": null}
        });
        assert_eq!(check(&spec), Findings::default());
    }

    #[test]
    fn keys_of_no_specification_are_reported() {
        let findings = check(&json!({"x": 1, "process": {"y": 2}, "mounts": [{"z": 3}]}));
        assert_eq!(findings.unknown, ["mounts[0].z", "process.y", "x"]);
        assert!(findings.refusals.is_empty());
    }

    #[test]
    fn a_wrong_shape_is_refused() {
        let findings = check(&json!({"process": "x", "mounts": {}}));
        let paths: Vec<_> = findings
            .refusals
            .iter()
            .map(|refusal| refusal.path.as_str())
            .collect();
        assert_eq!(paths, ["mounts", "process"]);
        assert_eq!(check(&json!([])).refusals.len(), 1);
    }
}
