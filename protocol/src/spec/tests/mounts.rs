//! Mounts and their options.

use serde_json::{Value, json};

use super::*;

#[test]
fn mount_options_by_kind_of_mount() {
    let filtered = |mount: Value| {
        let mut spec = minimal();
        spec["mounts"] = json!([mount]);
        let findings = filter_spec(&mut spec);
        (findings, spec["mounts"][0]["options"].clone())
    };
    let (findings, left) = filtered(json!({"destination": "/a", "type": "tmpfs",
        "options": ["silent", "sync", "size=5", "rshared"]}));
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored[0].path, "mounts[0].options[0]");
    assert_eq!(left, json!(["sync", "size=5", "rshared"]));
    let (findings, left) = filtered(json!({"destination": "/a", "type": "none", "source": "/x",
        "options": ["rbind", "sync", "size=5", "rprivate"]}));
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored.len(), 2);
    assert_eq!(left, json!(["rbind", "rprivate"]));
    for option in OPTIONS {
        for (kind, of_type, handling) in [
            (MountKind::InGuest, "tmpfs", option.in_guest),
            (MountKind::HostBind, "bind", option.host_bind),
        ] {
            assert_eq!(super::option(option.name, kind), handling);
            if kind == MountKind::InGuest && option.name.ends_with("bind") && option.name.len() < 6 {
                continue;
            }
            let (findings, left) = filtered(json!({"destination": "/a", "type": of_type, "source": "/x",
                "options": [option.name]}));
            let at = |list: &[Finding]| list.iter().any(|finding| finding.path == "mounts[0].options[0]");
            let want = match handling {
                OptionHandling::Applied => (false, false),
                OptionHandling::Ignored(_) => (false, true),
                OptionHandling::Refused(_) => (true, false),
            };
            assert_eq!(
                (at(&findings.refused), at(&findings.ignored)),
                want,
                "{} {of_type}",
                option.name
            );
            assert_eq!(left == json!([option.name]), handling == OptionHandling::Applied);
        }
    }
    let (findings, left) =
        filtered(json!({"destination": "/a", "type": "ramfs", "options": ["tmpcopyup", "mode=1"]}));
    assert_eq!(findings.ignored[0].path, "mounts[0].options[0]");
    assert_eq!(left, json!(["mode=1"]));
    let (findings, _) = filtered(json!({"destination": "/a", "type": "tmpfs", "options": ["ridmap"]}));
    assert_eq!(findings.refused.len(), 1);
}

#[test]
fn impossible_mounts_are_refused_by_path() {
    for (mount, path) in [
        (
            json!({"destination": "/a", "type": "nfs", "source": "h:/x"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/a", "type": "overlay", "options": ["lowerdir=/a"]}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "", "type": "proc"}),
            "mounts[0].destination",
        ),
        (json!({"type": "proc"}), "mounts[0].destination"),
        (json!("x"), "mounts[0]"),
    ] {
        let mut spec = minimal();
        spec["mounts"] = json!([mount]);
        let findings = filter_spec(&mut spec);
        assert_eq!(findings.refused.len(), 1, "{mount}: {findings:?}");
        assert_eq!(findings.refused[0].path, path, "{mount}");
    }
}
