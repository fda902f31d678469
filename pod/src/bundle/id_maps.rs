//! Id maps of a spec's mounts. The host makes them before it places a mount, because the guest's kernel cannot
//! id-map files that it shares with the host; the guest's spec has none. Pure.

use nacre_protocol::spec::Findings;
use serde_json::Value;

use crate::mount::IdMap;

/// The options that ask for an id map; the second one includes the mounts below.
const OPTIONS: [&str; 2] = ["idmap", "ridmap"];

/// The id map of mount `index` of `spec`, and whether it also applies to the mounts below its source. As in
/// runc, an option without mappings means those of the container's user namespace.
pub fn of_mount(spec: &Value, index: usize, is_bind: bool, findings: &mut Findings) -> Option<(IdMap, bool)> {
    let mount = &spec["mounts"][index];
    let own = IdMap::parse(mount);
    let has_option = |name: &str| {
        let options = mount["options"].as_array();
        options.into_iter().flatten().any(|option| option == name)
    };
    let recursive = has_option(OPTIONS[1]);
    if own.is_empty() && !recursive && !has_option(OPTIONS[0]) {
        return None;
    }
    let mut refuse = |field: &str, reason: &str| {
        findings.refuse(format!("mounts[{index}].{field}"), reason);
        None
    };
    if !is_bind {
        return refuse("uidMappings", "only a bind mount can be id-mapped");
    }
    let map = if own.is_empty() {
        IdMap::parse(&spec["linux"])
    } else {
        own
    };
    match (map.uids.is_empty(), map.gids.is_empty()) {
        (false, false) => Some((map, recursive)),
        (true, true) => refuse(
            "options",
            "an id map is requested, but neither the mount nor linux has uidMappings and gidMappings",
        ),
        (true, false) => refuse("uidMappings", "missing, and gidMappings is present"),
        (false, true) => refuse("gidMappings", "missing, and uidMappings is present"),
    }
}

/// Removes from `mount` what the host has done.
pub fn remove(mount: &mut Value) {
    if let Some(mount) = mount.as_object_mut() {
        mount.remove("uidMappings");
        mount.remove("gidMappings");
    }
    if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
        options.retain(|option| !option.as_str().is_some_and(|option| OPTIONS.contains(&option)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::IdRange;
    use serde_json::json;

    fn mapped(mount: Value, linux: Value) -> (Option<(IdMap, bool)>, String) {
        let mut findings = Findings::default();
        let is_bind = mount["type"] == "bind";
        let spec = json!({"linux": linux, "mounts": [mount]});
        let map = of_mount(&spec, 0, is_bind, &mut findings);
        (map, findings.refusals())
    }

    fn ids(host: u32) -> Value {
        json!([{"containerID": 0, "hostID": host, "size": 5}])
    }

    #[test]
    fn a_map_is_the_mount_s_or_the_container_s() {
        let range = |host| {
            vec![IdRange {
                container: 0,
                host,
                size: 5,
            }]
        };
        let map = |uids, gids| IdMap {
            uids: range(uids),
            gids: range(gids),
        };
        let mount = json!({"type": "bind", "uidMappings": ids(7), "gidMappings": ids(8)});
        assert_eq!(mapped(mount, json!({})).0, Some((map(7, 8), false)));
        let linux = json!({"uidMappings": ids(1), "gidMappings": ids(2)});
        for (option, recursive) in [("idmap", false), ("ridmap", true)] {
            let mount = json!({"type": "bind", "options": ["rbind", option]});
            assert_eq!(mapped(mount, linux.clone()).0, Some((map(1, 2), recursive)));
        }
        let plain = json!({"type": "bind", "options": ["rbind"]});
        assert_eq!(mapped(plain, linux), (None, String::new()));
    }

    #[test]
    fn a_map_that_cannot_be_made_is_refused_by_path() {
        for (mount, path) in [
            (
                json!({"type": "bind", "options": ["idmap"]}),
                "mounts[0].options: ",
            ),
            (
                json!({"type": "bind", "uidMappings": ids(1)}),
                "mounts[0].gidMappings: missing",
            ),
            (
                json!({"type": "bind", "gidMappings": ids(1)}),
                "mounts[0].uidMappings: missing",
            ),
            (
                json!({"type": "tmpfs", "uidMappings": ids(1)}),
                "mounts[0].uidMappings: only a bind",
            ),
        ] {
            let (map, refusals) = mapped(mount, json!({}));
            assert!(map.is_none() && refusals.starts_with(path), "{refusals}");
        }
    }

    #[test]
    fn the_guest_gets_no_map() {
        let mut mount =
            json!({"options": ["rbind", "ridmap", "ro"], "uidMappings": ids(1), "gidMappings": []});
        remove(&mut mount);
        assert_eq!(mount, json!({"options": ["rbind", "ro"]}));
    }
}
