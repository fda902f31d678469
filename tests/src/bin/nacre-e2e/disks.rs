//! Disks of the host in a container: block devices in its spec, and a root file system on an image, as a
//! snapshotter such as blockfile gives it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, StartRequest, StartResponse,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::types::mount::Mount;
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::{IMAGE, ctr, fresh_id, output};
use nacre_tests::containerd::pod::Pod;
use nacre_tests::containerd::task;
use nacre_tests::installation::{Config, prefix};
use nacre_tests::loop_device::LoopDevice;
use serde_json::json;

use crate::sizes::AWAIT_COMMON_DEVICES;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core(
        "a block device of the host is a disk of the container",
        block_device,
    ),
    test(
        "containers of a pod share a disk, and one may only read it",
        shared,
    ),
    core("a root file system on an ext4 image", image),
    test(
        "an image without a file system is refused, and nothing is left",
        no_file_system,
    ),
    test("a block device that the host does not have is refused", no_device),
    // Not core: it has a configuration of its own.
    test(
        "the writable layer of an overlay on a disk of its own",
        writable_layer,
    ),
];

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2048;

/// A block device of the host.
struct Loop {
    device: LoopDevice,
    /// The file behind it.
    file: File,
    _directory: tempfile::TempDir,
}

impl Loop {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in("/run")?;
        let path = directory.path().join("disk");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)?;
        file.set_len(BLOCK * BLOCKS)?;
        file.write_all_at(b"of the host\n", 0)?;
        Ok(Self {
            device: LoopDevice::new(&path)?,
            file,
            _directory: directory,
        })
    }

    fn text_at(&self, offset: u64) -> Result<String> {
        let mut text = vec![0; 32];
        self.file.read_exact_at(&mut text, offset)?;
        let text = text.split(|byte| *byte == b'\n' || *byte == 0).next();
        Ok(String::from_utf8_lossy(text.unwrap_or_default()).into_owned())
    }
}

/// The one container of a VM.
fn block_device() -> Result<()> {
    let disk = Loop::new()?;
    let script = "head -n 1 /dev/disk; blockdev --getsize64 /dev/disk
        echo 'of the container' | dd of=/dev/disk bs=4096 seek=2000 conv=notrunc 2>/dev/null; stat -c %F /dev/disk
        mknod /dev/other b 254 77; cat /dev/other 2>&1; true";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        disk.device.add(spec, "/dev/disk", "rwm");
    })?;
    let seen = bundle.output("disk")?.success()?;
    let size = BLOCK * BLOCKS;
    let expected = format!(
        "of the host\n{size}\nblock special file\ncat: can't open '/dev/other': Operation not permitted\n"
    );
    ensure!(seen == expected, "{seen}");
    let written = disk.text_at(2000 * BLOCK)?;
    ensure!(written == "of the container", "the host reads {written:?}");
    Ok(())
}

/// Each writes a block of its own; the second one reads what the first has written. A third one may only read.
fn shared() -> Result<()> {
    let disk = Loop::new()?;
    let pod = Pod::start("disks", |_| {})?;
    // Later figures do not differ by the devices that every VM gets.
    pod.run("first", AWAIT_COMMON_DEVICES, |_| {})?;
    let before = pod.figures()?;
    let run = |word: &str, access: &str, script: &str| -> Result<String> {
        pod.run(word, script, |spec| disk.device.add(spec, "/dev/disk", access))
    };
    let write = |block: u32, text: &str| {
        format!(
            "echo {text} | dd of=/dev/disk bs=4096 seek={block} conv=notrunc 2>&1 | grep -v records; true"
        )
    };
    let holder = pod.member("read line", |spec| disk.device.add(spec, "/dev/disk", "rwm"))?;
    let holder = pod.spawn(&holder, "holder")?;
    run("one", "rwm", &format!("{}; sync", write(1, "first")))?;
    let seen = run(
        "two",
        "rwm",
        &format!(
            "dd if=/dev/disk bs=4096 skip=1 count=1 2>/dev/null | head -n 1; {}",
            write(2, "second")
        ),
    )?;
    ensure!(seen == "first\n", "{seen}");
    let seen = run(
        "three",
        "rm",
        &format!("{}; head -n 1 /dev/disk", write(3, "third")),
    )?;
    ensure!(
        seen.contains("Operation not permitted") && seen.ends_with("of the host\n"),
        "{seen}"
    );
    holder.kill("SIGKILL")?;
    holder.wait_with_output()?;
    before.compare(&pod.figures()?)?;
    let found = [
        disk.text_at(BLOCK)?,
        disk.text_at(2 * BLOCK)?,
        disk.text_at(3 * BLOCK)?,
    ];
    ensure!(found == ["first", "second", ""], "{found:?}");
    pod.remove()
}

/// Makes an image of 16 MiB with an ext4 file system, which has the files of `root`.
fn make_image(image: &Path, root: &Path) -> Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-d"]).arg(root).arg(image).arg("16M");
    output(mkfs)?.success().map(drop)
}

/// Reads a file of an image.
fn file_of(image: &Path, path: &str) -> Result<String> {
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", &format!("cat {path}")]).arg(image);
    output(debugfs)?.success()
}

/// Creates a container of `pod` whose root file system is `image`, by the call that containerd makes for a
/// snapshotter of images.
fn create(
    pod: &Pod,
    bundle: &Bundle,
    image: &Path,
    id: &str,
) -> Result<Result<CreateTaskResponse, ttrpc::Status>> {
    let config = bundle.config()?;
    let mut mount = Mount::new();
    mount.type_ = "ext4".to_owned();
    mount.source = image.display().to_string();
    mount.options = vec!["loop".to_owned(), "rw".to_owned()];
    let request = CreateTaskRequest {
        id: id.to_owned(),
        bundle: config
            .parent()
            .context("config.json has no directory")?
            .display()
            .to_string(),
        rootfs: vec![mount],
        ..CreateTaskRequest::default()
    };
    task::call(&pod.id, "Create", &request)
}

fn refused(status: ttrpc::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Runs a container of `pod` on `image` to its end; returns its exit status.
fn run_on_image(pod: &Pod, bundle: &Bundle, image: &Path) -> Result<u32> {
    let id = fresh_id("image");
    create(pod, bundle, image, &id)?.map_err(refused)?;
    let start = StartRequest {
        id: id.clone(),
        ..StartRequest::default()
    };
    let _: StartResponse = task::call(&pod.id, "Start", &start)?.map_err(refused)?;
    let wait = WaitRequest {
        id: id.clone(),
        ..WaitRequest::default()
    };
    let ended: WaitResponse = task::call(&pod.id, "Wait", &wait)?.map_err(refused)?;
    let delete = DeleteRequest {
        id,
        ..DeleteRequest::default()
    };
    let _: DeleteResponse = task::call(&pod.id, "Delete", &delete)?.map_err(refused)?;
    Ok(ended.exit_status)
}

fn image() -> Result<()> {
    let pod = Pod::start("image", |_| {})?;
    let script = "grep -q ' / ext4 rw' /proc/mounts && mkdir /made && cp /etc/passwd /made/copy && ln /made/copy /made/link \
        && mv /tmp /made/tmp && setfattr 2>/dev/null; echo done >/made/end; cat /made/copy | wc -l >/made/lines; exit 3";
    let bundle = pod.member(script, |_| {})?;
    let directory = tempfile::tempdir_in("/run")?;
    let image = directory.path().join("image");
    make_image(&image, &bundle.root())?;
    pod.run("first", AWAIT_COMMON_DEVICES, |_| {})?;
    let before = pod.figures()?;
    for _ in 0..2 {
        let status = run_on_image(&pod, &bundle, &image)?;
        ensure!(status == 3, "exit status {status}");
        let found = file_of(&image, "/made/end")? + &file_of(&image, "/made/lines")?;
        ensure!(found == "done\n2\n", "the host reads {found:?}");
        let mut fsck = Command::new("fsck.ext4");
        fsck.args(["-f", "-n"]).arg(&image);
        output(fsck)?.success().context("the image after the container")?;
    }
    before.compare(&pod.figures()?)?;
    ensure!(
        !bundle.root().join("made").exists(),
        "the bundle's directory was used"
    );
    pod.remove()
}

fn no_file_system() -> Result<()> {
    let pod = Pod::start("empty", |_| {})?;
    let bundle = pod.member("true", |_| {})?;
    let directory = tempfile::tempdir_in("/run")?;
    pod.run("first", AWAIT_COMMON_DEVICES, |_| {})?;
    let before = pod.figures()?;
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    fs::write(path("zeros"), vec![0; 1 << 20])?;
    fs::write(path("short"), b"x")?;
    make_image(&path("cut"), &bundle.root())?;
    File::options().write(true).open(path("cut"))?.set_len(1 << 20)?;
    // The rest was never written: the file has its size, but not the inodes.
    make_image(&path("half"), &bundle.root())?;
    let half = File::options().write(true).open(path("half"))?;
    half.set_len(64 << 10)?;
    half.set_len(16 << 20)?;
    for (image, named) in [
        ("zeros", "no valid file system"),
        ("short", "expected at least 512 bytes"),
        ("cut", "larger than the disk"),
        ("half", "no valid file system"),
        ("missing", "missing"),
        ("", "expected a regular file or a block device"),
    ] {
        match create(&pod, &bundle, &path(image), &fresh_id("bad"))? {
            Ok(_) => bail!("{image}: created"),
            Err(status) => ensure!(status.message().contains(named), "{image}: {}", status.message()),
        }
    }
    before.compare(&pod.figures()?)?;
    // The pod has not suffered.
    make_image(&path("good"), &bundle.root())?;
    ensure!(run_on_image(&pod, &bundle, &path("good"))? == 0);
    pod.remove()
}

fn no_device() -> Result<()> {
    let bundle = Bundle::new(&["true"], |spec| {
        spec["linux"]["devices"] = json!([{"type": "b", "path": "/dev/disk", "major": 4000, "minor": 7}]);
    })?;
    let seen = bundle.output("no-device")?;
    ensure!(
        seen.code != Some(0) && seen.stderr.contains("the host has no block device 4000:7"),
        "{seen:?}"
    );
    Ok(())
}

/// A container that runs twice finds the second time what it has changed the first time: of its own files, and of
/// those of the image.
fn writable_layer() -> Result<()> {
    let template = prefix()?.join("share/nacre/writable-layer.ext4");
    let _config = Config::with(&format!("writable_layer = {template:?}\n"))?;
    let script = r#"
        if [ -e /made/file ]; then
            cat /made/file; tail -n 1 /etc/passwd; ls /etc/group /root 2>&1; stat -c '%a %u:%g' / /made/file
            rm -r /made; exit 5
        fi
        grep -q '^overlay / overlay rw' /proc/mounts || exit 9
        mkdir /made && echo kept >/made/file && chmod 640 /made/file && chown 7:8 /made/file
        echo added >>/etc/passwd; rm /etc/group; mv /root /made/root
        dd if=/dev/zero of=/made/large bs=1M count=20 2>/dev/null && rm /made/large
        exit 3"#;
    let id = fresh_id("layer");
    let runtime = Runtime::Nacre.name();
    let first = ctr(["run", "--runtime", runtime, IMAGE, &id, "sh", "-c", script])?;
    ensure!(first.code == Some(3), "the first run: {first:?}");
    let second = ctr(["task", "start", &id])?;
    let expected = "kept\nadded\nls: /etc/group: No such file or directory\nls: /root: No such file or directory\n\
        755 0:0\n640 7:8\n";
    ensure!(
        second.code == Some(5) && second.text() == expected,
        "the second run: {second:?}"
    );
    ctr(["containers", "delete", &id])?.success().map(drop)
}
