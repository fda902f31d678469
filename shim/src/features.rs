//! What Nacre supports of the OCI specification, as the specification's own "features" document, generated
//! from the table of fields (`nacre_protocol::spec`). containerd's CRI reads it in `-info` and offers kubelet
//! accordingly: `rro` in `mountOptions` for recursive read-only mounts, the namespace `user` together with
//! `mountExtensions.idmap` for user namespaces. Called by `command::info`. Pure.

use nacre_protocol::spec::{self, Handling, Kind, Leaf, MountKind, OptionHandling, SPEC};
use serde_json::{Value, json};

/// The type URL of the document in `RuntimeInfo.features`; its content is JSON.
pub const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The document.
pub fn features() -> Value {
    let (actions, _) = names("linux.seccomp.defaultAction");
    let (flags, refused_flags) = names("linux.seccomp.flags[]");
    let known_flags = [flags.clone(), refused_flags].concat();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": hooks(),
        "mountOptions": mount_options(),
        "linux": {
            "namespaces": names("linux.namespaces[].type").0,
            "capabilities": names("process.capabilities.bounding[]").0,
            "cgroup": {"v1": false, "v2": true},
            "seccomp": {
                "enabled": true,
                "actions": actions,
                "operators": names("linux.seccomp.syscalls[].args[].op").0,
                "archs": names("linux.seccomp.architectures[]").0,
                "knownFlags": known_flags,
                "supportedFlags": flags,
            },
            "apparmor": {"enabled": is_applied("process.apparmorProfile")},
            "selinux": {"enabled": is_applied("process.selinuxLabel")},
            "intelRdt": {"enabled": is_applied("linux.intelRdt.schemata[]")},
            "netDevices": {"enabled": is_applied("linux.netDevices.*.name")},
            "mountExtensions": {"idmap": {"enabled": has_mount_option("idmap")}},
        },
    })
}

/// The hooks that run, wherever that is.
fn hooks() -> Vec<String> {
    let leaves = spec::leaves(&SPEC, "").into_iter();
    leaves
        .filter(|(_, leaf)| matches!(leaf.handling, Handling::Applied(_)))
        .filter_map(|(path, _)| {
            let name = path.strip_prefix("hooks.")?.strip_suffix("[].path")?;
            Some(name.to_owned())
        })
        .collect()
}

/// The options that have their effect on some mount.
fn mount_options() -> Vec<&'static str> {
    let options = spec::OPTIONS.iter().map(|option| option.name);
    let mut options: Vec<&str> = options.chain(["ridmap"]).collect();
    options.retain(|name| has_mount_option(name));
    options.sort_unstable();
    options
}

fn has_mount_option(name: &str) -> bool {
    [MountKind::HostBind, MountKind::InGuest]
        .into_iter()
        .any(|kind| spec::option(name, kind) == OptionHandling::Applied)
}

/// The names that the field at `path` accepts, and those that it refuses.
fn names(path: &str) -> (Vec<&'static str>, Vec<&'static str>) {
    match leaf(path).map(|leaf| leaf.kind) {
        Some(Kind::OneOf(names) | Kind::OneOfOrIgnored(names)) => (names.to_vec(), Vec::new()),
        Some(Kind::OneOfExcept(names, refused)) => {
            (names.to_vec(), refused.iter().map(|(name, _)| *name).collect())
        }
        _ => (Vec::new(), Vec::new()),
    }
}

fn is_applied(path: &str) -> bool {
    leaf(path).is_some_and(|leaf| matches!(leaf.handling, Handling::Applied(_)))
}

fn leaf(path: &str) -> Option<Leaf> {
    let found = spec::leaves(&SPEC, "").into_iter().find(|(of, _)| of == path);
    found.map(|(_, leaf)| leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_has_names_of_the_table() {
        let features = features();
        for (path, name) in [
            ("/hooks", "poststop"),
            ("/mountOptions", "noexec"),
            ("/mountOptions", "rro"),
            ("/mountOptions", "tmpcopyup"),
            ("/linux/namespaces", "user"),
            ("/linux/capabilities", "CAP_NET_RAW"),
            ("/linux/seccomp/actions", "SCMP_ACT_ERRNO"),
            ("/linux/seccomp/operators", "SCMP_CMP_EQ"),
            ("/linux/seccomp/archs", "SCMP_ARCH_X86_64"),
            ("/linux/seccomp/supportedFlags", "SECCOMP_FILTER_FLAG_LOG"),
            (
                "/linux/seccomp/knownFlags",
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
            ),
        ] {
            let list = features.pointer(path).and_then(Value::as_array);
            assert!(
                list.is_some_and(|list| list.contains(&json!(name))),
                "{path}: {list:?}"
            );
        }
    }

    #[test]
    fn what_is_refused_is_not_listed() {
        let features = features();
        for (path, name) in [
            ("/hooks", "createContainer"),
            ("/mountOptions", "remount"),
            ("/linux/seccomp/actions", "SCMP_ACT_NOTIFY"),
            (
                "/linux/seccomp/supportedFlags",
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
            ),
        ] {
            let list = features.pointer(path).and_then(Value::as_array);
            assert!(
                list.is_some_and(|list| !list.contains(&json!(name))),
                "{path}: {list:?}"
            );
        }
        for name in ["apparmor", "selinux", "intelRdt", "netDevices"] {
            assert_eq!(features["linux"][name]["enabled"], false, "{name}");
        }
    }

    #[test]
    fn id_mapped_mounts_are_announced_in_both_places() {
        let features = features();
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        let options = features["mountOptions"].as_array().unwrap();
        for name in ["idmap", "ridmap"] {
            assert!(options.contains(&json!(name)), "{name}");
        }
    }
}
