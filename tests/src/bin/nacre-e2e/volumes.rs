//! Mounts of host directories that the host changes before the guest sees them: recursive read-only mounts and
//! id-mapped ones.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::bundle::{Bundle, shared_directory};
use nacre_tests::containerd::ctr::{Run, fresh_id, output};
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use crate::{Test, test};

pub const TESTS: &[Test] = &[
    test(
        "a recursive read-only mount includes submounts",
        recursive_read_only,
    ),
    test("id-mapped mounts show other owners", id_mapped),
    test("a container with its own users owns its image", own_users),
];

/// A mount on the host, unmounted on drop.
struct HostMount(PathBuf);

impl HostMount {
    fn new(arguments: &[&str], target: &Path) -> Result<Self> {
        fs::create_dir(target)?;
        let mut command = Command::new("mount");
        command.args(arguments).arg(target);
        output(command)?.success()?;
        Ok(Self(target.to_owned()))
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let unmounted = umount2(&self.0, MntFlags::MNT_DETACH);
        let removed = unmounted
            .map_err(std::io::Error::from)
            .and_then(|()| fs::remove_dir(&self.0));
        if let Err(error) = removed {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

fn add_mount(spec: &mut Value, mount: Value) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(mount);
    }
}

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
    fs::write(below.0.join("file"), "below\n")?;
    let seen = bundle.output("rro")?;
    ensure!(seen.text() == "below\nwritten\n", "{seen:?}");
    let refused = seen.stderr.matches("Read-only file system").count();
    ensure!(refused == 2, "{seen:?}");
    ensure!(!below.0.join("new").exists(), "the submount was written");
    drop(below);
    Ok(())
}

/// A file system on a loop device: on the oldest kernels that Nacre supports, tmpfs has no id maps.
fn ext4(directory: &Path) -> Result<HostMount> {
    let image = directory.join("image");
    fs::File::create(&image)?.set_len(16 << 20)?;
    let image = image.to_str().context("the image's path is not UTF-8")?;
    // Nothing else has loaded the module: until then there is no loop device.
    let mut command = Command::new("modprobe");
    command.arg("loop");
    output(command)?.success()?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", image]);
    output(command)?.success()?;
    HostMount::new(&["-o", "loop", image], &directory.join("mapped"))
}

fn id_mapped() -> Result<()> {
    let directory = tempfile::tempdir_in("/run")?;
    let volume = ext4(directory.path())?;
    fs::write(volume.0.join("file"), "the host's\n")?;
    std::os::unix::fs::chown(volume.0.join("file"), Some(5), Some(6))?;
    let script = "stat -c %u:%g /data /data/file; echo mine > /data/new; stat -c %u:%g /data/new";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let ids = |host| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
        add_mount(
            spec,
            json!({"destination": "/data", "type": "bind", "source": volume.0, "options": ["rbind"],
                "uidMappings": ids(3000), "gidMappings": ids(4000)}),
        );
        spec["process"]["user"] = json!({"uid": 3000, "gid": 4000});
    })?;
    let seen = bundle.output("idmap")?.success()?;
    ensure!(seen == "3000:4000\n3005:4006\n3000:4000\n", "{seen}");
    let new = fs::metadata(volume.0.join("new"))?;
    ensure!(
        (new.uid(), new.gid()) == (0, 0),
        "{}:{} on the host",
        new.uid(),
        new.gid()
    );
    drop(volume);
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
