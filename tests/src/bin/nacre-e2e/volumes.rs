//! Mounts of host directories that the host changes before the guest sees them: recursive read-only mounts and
//! the image of a container with a user namespace.

use std::fs;

use anyhow::{Result, ensure};
use nacre_tests::containerd::bundle::{Bundle, add_mount, shared_directory};
use nacre_tests::containerd::ctr::{Run, fresh_id};
use nacre_tests::host_mount::HostMount;
use serde_json::json;

use crate::{Test, test};

pub const TESTS: &[Test] = &[
    test(
        "a recursive read-only mount includes submounts",
        recursive_read_only,
    ),
    test("a container with its own users owns its image", own_users),
];

fn recursive_read_only() -> Result<()> {
    let script = "cat /data/below/file; for d in /data /data/below; do touch $d/new; done; \
        touch /written/new && echo written";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let host = shared_directory(spec);
        for (destination, option) in [("/data", "rro"), ("/written", "rw")] {
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": host, "options": ["rbind", option]}),
            );
        }
    })?;
    let below = HostMount::new(
        &["-t", "tmpfs", "tmpfs"],
        &bundle.shared_directory().join("below"),
    )?;
    fs::write(below.path().join("file"), "below\n")?;
    let seen = bundle.output("rro")?;
    ensure!(seen.text() == "below\nwritten\n", "{seen:?}");
    let refused = seen.stderr.matches("Read-only file system").count();
    ensure!(refused == 2, "{seen:?}");
    ensure!(!below.path().join("new").exists(), "the submount was written");
    drop(below);
    Ok(())
}

/// ctr has containerd change the owners of the image's files, or passes id maps with the root file system.
fn own_users() -> Result<()> {
    let script = "cat /proc/self/uid_map; stat -c %u:%g /bin; touch /new; stat -c %u:%g /new";
    let map = "0:100000:65536";
    let run = Run {
        flags: &["--uidmap", map, "--gidmap", map],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let seen = run.output(&fresh_id("users"))?.success()?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    ensure!(words == ["0", "100000", "65536", "0:0", "0:0"], "{seen}");
    Ok(())
}
