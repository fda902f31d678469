//! Tests of a container's root file system and its mounts.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::{IMAGE, Run, ctr, fresh_id, shell};

use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core(
        "a write to the rootfs is visible and discarded with the container",
        rootfs_write,
    ),
    core("a bind mount shows the writes of both sides", bind_both_ways),
    test("file owners, modes, links and sizes are kept", metadata),
    test("a rootfs of the native snapshotter works", native_snapshotter),
    test("the snapshot's diff has what the container wrote", diff),
    test("--rootfs with a directory works", rootfs_directory),
    test("host files are not visible in the guest", host_is_hidden),
];

fn rootfs_write() -> Result<()> {
    let output = shell("write", "echo data > /new && cat /new && ls -d /new")?.success()?;
    ensure!(output == "data\n/new\n", "{output:?}");
    let second = shell("again", "ls /new")?;
    ensure!(
        second.code == Some(1),
        "the next container sees the file: {second:?}"
    );
    Ok(())
}

/// What `nerdctl commit` does first: containerd compares the container's snapshot with the image's.
fn diff() -> Result<()> {
    let id = fresh_id("diff");
    let script = "mkdir /made && echo of-the-container >/made/file && rm /etc/group";
    let runtime = Runtime::Nacre.name();
    ctr(["run", "--runtime", runtime, IMAGE, &id, "sh", "-c", script])?.success()?;
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let archive = ctr(["snapshots", "diff", "--media-type", media_type, &id])?.success()?;
    for part in ["made/file\0", "of-the-container\n", "etc/.wh.group\0"] {
        ensure!(archive.contains(part), "{part:?} is not in the archive");
    }
    ctr(["containers", "delete", &id])?.success().map(drop)
}

fn mount_flag(source: &Path, target: &str, options: &str) -> String {
    format!(
        "type=bind,src={},dst={target},options={options}",
        source.display()
    )
}

fn bind_both_ways() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("from-host"), "host\n")?;
    let mount = mount_flag(directory.path(), "/data", "rbind:rw");
    let script = "cat /data/from-host; echo guest > /data/from-guest; echo ready; read x; cat /data/later";
    let run = Run {
        flags: &["--mount", &mount],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id("bind"))?;
    ensure!(running.line()? == "host");
    ensure!(running.line()? == "ready");
    let guest = fs::read_to_string(directory.path().join("from-guest"))?;
    ensure!(guest == "guest\n", "{guest:?}");
    fs::write(directory.path().join("later"), "while it runs\n")?;
    running.feed(b"\n".to_vec())?;
    let output = running.wait_with_output()?;
    ensure!(output.text() == "while it runs\n", "{output:?}");
    Ok(())
}

fn metadata() -> Result<()> {
    let script = "cd /tmp; touch f; chown 1000:65534 f; chmod 4751 f; ln -s f s; ln f h; mkfifo p; \
        stat -c '%a %u:%g %h %F' f s p; truncate -s 3G big; stat -c %s big; rm -r /tmp/*; ls -A /tmp | wc -l";
    let output = shell("metadata", script)?.success()?;
    let want =
        "4751 1000:65534 2 regular empty file\n777 0:0 1 symbolic link\n644 0:0 1 fifo\n3221225472\n0\n";
    ensure!(output == want, "{output}");
    Ok(())
}

fn native_snapshotter() -> Result<()> {
    // Mounting the image unpacks it for this snapshotter. Unmounting keeps the unpacked layers.
    let image = nacre_tests::containerd::ctr::IMAGE;
    let run = Run {
        flags: &["--snapshotter", "native"],
        command: &["sh", "-c", "echo native > /x; cat /x"],
        ..Run::default()
    };
    let directory = tempfile::tempdir()?;
    let target = directory.path().display().to_string();
    ctr(["images", "mount", "--snapshotter", "native", image, &target])?.success()?;
    ctr(["images", "unmount", "--rm", "--snapshotter", "native", &target])?.success()?;
    let output = run.output(&fresh_id("native"))?.success()?;
    ensure!(output == "native\n", "{output}");
    Ok(())
}

fn rootfs_directory() -> Result<()> {
    let bundle = Bundle::new(&[], |_| ())?;
    let root = bundle.root();
    let path = root.display().to_string();
    let output = ctr([
        "run",
        "--rm",
        "--runtime",
        Runtime::Nacre.name(),
        "--rootfs",
        &path,
        &fresh_id("rootfs"),
        "/bin/sh",
        "-c",
        "echo in; echo x > /made",
    ])?
    .success()?;
    ensure!(output == "in\n", "{output}");
    ensure!(fs::read_to_string(root.join("made"))? == "x\n");
    Ok(())
}

fn tmpfs() -> Result<&'static Path> {
    let run = Path::new("/run");
    run.is_dir().then_some(run).context("/run does not exist")
}

fn host_is_hidden() -> Result<()> {
    let marker = tempfile::tempdir_in(tmpfs()?)?;
    let name = marker
        .path()
        .file_name()
        .context("the marker has no name")?
        .to_string_lossy()
        .into_owned();
    let output = shell("hidden", &format!("find / -name {name} 2>/dev/null | wc -l"))?.success()?;
    ensure!(output.trim() == "0", "{output}");
    Ok(())
}
