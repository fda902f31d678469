//! Specs whose mounts and working directory get their places.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::*;

/// A root with /etc, and a link of each name in `links` to its target.
fn root(links: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    for (name, target) in links {
        symlink(target, root.path().join(name)).unwrap();
    }
    root
}

fn spec(root: &tempfile::TempDir, cwd: &str, mounts: Value) -> Spec {
    serde_json::from_value(
        json!({"ociVersion": "1.0", "root": {"path": root.path()}, "mounts": mounts,
        "process": {"cwd": cwd, "user": {"uid": 0, "gid": 0}, "args": ["a"]}}),
    )
    .unwrap()
}

fn destinations(mounts: &[Mount]) -> Vec<&str> {
    let paths = mounts.iter().map(|mount| mount.destination().to_str().unwrap());
    paths.collect()
}

fn bind(destination: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": "/no/such/source", "options": ["rbind"]})
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "options": options})
}

#[test]
fn mounts_are_where_their_links_lead() {
    let root = root(&[("localtime", "/usr/zone"), ("proc", "etc"), ("sub", "volume/sub")]);
    let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
    let mounts = json!([
        proc,
        bind("/localtime"),
        bind("/sub"),
        tmpfs("/etc/../sub/t", &[])
    ]);
    let mut spec = spec(&root, "/", mounts);
    let arranged = arrange(&mut spec).unwrap();
    assert_eq!(arranged.working_directory_in_mount, None);
    let placed = spec.mounts().clone().unwrap();
    // A link at /proc is refused later.
    assert_eq!(
        destinations(&placed),
        ["/proc", "/usr/zone", "/volume/sub", "/volume/sub/t"]
    );
}

#[test]
fn a_loop_of_links_is_refused_by_its_field() {
    let root = root(&[("a", "b"), ("b", "a")]);
    let refused = |cwd: &str, mounts: Value| match arrange(&mut spec(&root, cwd, mounts)) {
        Err(Failure::Field(field, reason)) => (field, reason),
        other => panic!("{other:?}"),
    };
    let (field, reason) = refused("/", json!([bind("/a/x")]));
    assert!(
        field == "mounts" && reason.contains("/a/x: Too many levels"),
        "{reason}"
    );
    let (field, reason) = refused("/b", json!([]));
    assert!(
        field == "process.cwd" && reason.contains("/b: Too many levels"),
        "{reason}"
    );
}

#[test]
fn a_tmpfs_without_a_mode_has_that_of_the_directory_that_it_covers() {
    let root = root(&[]);
    let etc = root.path().join("etc");
    std::fs::set_permissions(&etc, std::os::unix::fs::PermissionsExt::from_mode(0o2711)).unwrap();
    let mounts = json!([
        tmpfs("/etc", &["nosuid"]),
        tmpfs("/etc/new", &[]),
        tmpfs("/etc", &["mode=700"]),
        tmpfs("/x/y", &[]),
        tmpfs("/x", &[])
    ]);
    let mut spec = spec(&root, "/", mounts);
    arrange(&mut spec).unwrap();
    let options = |mount: &Mount| mount.options().clone().unwrap_or_default();
    let given: Vec<Vec<String>> = spec.mounts().iter().flatten().map(options).collect();
    let want: [&[&str]; 5] = [&["nosuid", "mode=2711"], &[], &["mode=700"], &[], &["mode=755"]];
    assert_eq!(given, want);
}

#[test]
fn a_working_directory_is_made_where_it_is_seen() {
    let root = root(&[("link", "/volume"), ("config", "/etc")]);
    let mounts = || json!([bind("/volume"), tmpfs("/run", &[]), tmpfs("/run/lock", &[])]);
    let of = |cwd: &str| {
        let arranged = arrange(&mut spec(&root, cwd, mounts())).unwrap();
        let early = arranged.working_directory;
        (
            early.map(|directory| (directory.tree, directory.path)),
            arranged.working_directory_in_mount,
        )
    };
    let in_tree = |tree: &str, path: &str| (Some((PathBuf::from(tree), PathBuf::from(path))), None);
    let in_root = |path: &str| in_tree(root.path().to_str().unwrap(), path);
    assert_eq!(of("/x/../y"), in_root("y"));
    assert_eq!(of("/config/x"), in_root("etc/x"));
    assert_eq!(of("/volume"), in_tree("/no/such/source", ""));
    assert_eq!(of("/link/b"), in_tree("/no/such/source", "b"));
    assert_eq!(of("/run/app"), (None, Some("/run/app".into())));
    assert_eq!(of("/run"), (None, None));
    assert_eq!(of("/run/lock"), (None, None));
}

#[test]
fn a_tmpfs_with_a_copy_shows_what_it_covers() {
    let root = root(&[("config", "etc")]);
    std::fs::create_dir(root.path().join("etc/app")).unwrap();
    symlink("app/real", root.path().join("etc/link")).unwrap();
    let etc = root.path().join("etc");
    std::fs::set_permissions(&etc, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    let mounts = || {
        json!([
            bind("/etc/data"),
            tmpfs("/config", &["tmpcopyup"]),
            bind("/etc/link"),
            tmpfs("/etc/app", &["tmpcopyup", "mode=700"])
        ])
    };
    let mut placed = spec(&root, "/", mounts());
    arrange(&mut placed).unwrap();
    let placed = placed.mounts().clone().unwrap();
    assert_eq!(
        destinations(&placed),
        ["/etc/data", "/etc", "/etc/app/real", "/etc/app"]
    );
    let options: Vec<_> = placed
        .iter()
        .filter_map(|mount| mount.options().clone())
        .collect();
    assert_eq!(options[1], ["tmpcopyup", "mode=751"]);
    assert_eq!(options[3], ["tmpcopyup", "mode=700"]);
    // Not in the image, of which the copy is made, but in the copy.
    for (cwd, want) in [
        ("/config/new", Some("/etc/new")),
        ("/etc/app/new/er", Some("/etc/app/new/er")),
        ("/etc/app", None),
    ] {
        let arranged = arrange(&mut spec(&root, cwd, mounts())).unwrap();
        assert_eq!(arranged.working_directory, None, "{cwd}");
        assert_eq!(
            arranged.working_directory_in_mount,
            want.map(PathBuf::from),
            "{cwd}"
        );
    }
}
