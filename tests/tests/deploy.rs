//! The files in `deploy/`: they parse, nothing in them is left to be filled in, and they say what docs/kubernetes.md
//! promises of them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The files of `deploy/` and of its folders that end with `.EXTENSION`, with their text.
fn files(extension: &str) -> Vec<(PathBuf, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut found = Vec::new();
    let mut directories = vec![top];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// The Kubernetes objects, each with its file.
fn objects() -> Vec<(PathBuf, Value)> {
    let parse = |(path, text): (PathBuf, String)| {
        let object =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, object)
    };
    files("yaml").into_iter().map(parse).collect()
}

/// The number before `unit` in a quantity, such as 64 in `64Mi`.
fn quantity(value: &Value, unit: &str) -> Option<u32> {
    value.as_str()?.strip_suffix(unit)?.parse().ok()
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    let all = [files("yaml"), files("toml")].concat();
    assert_eq!(all.len(), 7);
    for (path, text) in all {
        for mark in ["…", "...", "TODO", "XXX"] {
            assert!(!text.contains(mark), "{} has {mark:?}", path.display());
        }
    }
}

#[test]
fn the_runtime_class_has_an_overhead() {
    let all = objects();
    let classes: Vec<&Value> = all
        .iter()
        .map(|(_, object)| object)
        .filter(|object| object["kind"] == "RuntimeClass")
        .collect();
    let [class] = classes[..] else {
        panic!("{classes:?}");
    };
    assert_eq!(class["apiVersion"], "node.k8s.io/v1");
    assert_eq!(class["metadata"]["name"], "nacre");
    assert_eq!(class["handler"], "nacre");
    assert_eq!(class["scheduling"]["nodeSelector"], json!({"nacre": "true"}));
    let fixed = &class["overhead"]["podFixed"];
    let memory = quantity(&fixed["memory"], "Mi").expect("memory in MiB");
    assert!((8..=256).contains(&memory), "{memory} MiB");
    let cpu = quantity(&fixed["cpu"], "m").expect("thousandths of a CPU");
    assert!((1..=250).contains(&cpu), "{cpu} m");
}

#[test]
fn pods_have_the_runtime_class_and_containers_with_images() {
    let mut names = Vec::new();
    for (path, pod) in objects() {
        if pod["kind"] != "Pod" {
            continue;
        }
        let at = path.display();
        assert_eq!(pod["apiVersion"], "v1", "{at}");
        let name = pod["metadata"]["name"].as_str().expect("a name");
        assert!(
            path.ends_with(format!("deploy/pods/{name}.yaml")),
            "{at} is the pod {name}"
        );
        let spec = &pod["spec"];
        assert_eq!(spec["runtimeClassName"], "nacre", "{at}");
        let containers = spec["containers"].as_array().expect("containers");
        assert!(!containers.is_empty(), "{at}");
        for container in containers
            .iter()
            .chain(spec["initContainers"].as_array().into_iter().flatten())
        {
            assert!(
                container["name"].is_string() && container["image"].is_string(),
                "{at}: {container}"
            );
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                let volumes = spec["volumes"].as_array().expect("volumes");
                assert!(
                    volumes.iter().any(|volume| volume["name"] == mount["name"]),
                    "{at}: {mount}"
                );
            }
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    assert_eq!(names, ["hello", "shared", "sized"]);
}

#[test]
fn containerds_configurations_have_the_runtime_at_the_place_of_their_version() {
    let mut seen = Vec::new();
    for (path, text) in files("toml") {
        let at = path.display();
        let parsed: toml::Value = toml::from_str(&text).unwrap_or_else(|error| panic!("{at}: {error}"));
        let name = path.file_stem().unwrap().to_str().unwrap();
        // containerd 2.0 renamed the plugin, and has sandboxers. Before 2.3 a pod that asks for hostNetwork ends it
        // with the sandboxer "shim".
        let plugin = match name.starts_with("1.") {
            true => "io.containerd.grpc.v1.cri",
            false => "io.containerd.cri.v1.runtime",
        };
        let sandboxer = (name == "2.3").then_some("shim");
        let runtime = &parsed["plugins"][plugin]["containerd"]["runtimes"]["nacre"];
        assert_eq!(
            runtime["runtime_type"].as_str(),
            Some("io.containerd.nacre.v2"),
            "{at}"
        );
        let found = runtime.get("sandboxer").and_then(toml::Value::as_str);
        assert_eq!(found, sandboxer, "{at}");
        assert_eq!(
            runtime["privileged_without_host_devices"].as_bool(),
            Some(true),
            "{at}"
        );
        seen.push(name.to_owned());
    }
    seen.sort_unstable();
    assert_eq!(seen, ["1.6-1.7", "2.0-2.2", "2.3"]);
}
