//! What common operations on files cost: a guest makes each of them once, on a root file system and on a
//! volume, and the test compares how many requests of virtio-fs the VMM counted with the table in
//! docs/shared-files.md.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::mount_bind;
use serde_json::{Value, json};

use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{Parameters, SHARED};
use super::{Build, Guest, Options, Test, Workload, test};

/// The test.
pub const TESTS: &[Test] = &[test(
    "each operation on files makes the requests in the table",
    count,
)];

/// Makes the operations that its test asks for.
pub const WORKLOAD: Workload = Workload {
    name: "requests",
    run: serve,
};

/// What the host shares: a container's root file system and its first volume.
pub const TREES: [&str; 2] = ["c/rootfs", "c/mounts/0"];
/// Where the guest mounts them, as the agent does for a container.
pub const MOUNT_POINTS: [&str; 2] = ["/rootfs", "/volume"];
/// Kinds that are not counted: the guest does not wait for them, and sends them when it likes.
const NOT_WAITED_FOR: [&str; 2] = ["Forget", "BatchForget"];
/// How long the name of a directory on the way serves at least: the guest's tick.
const TICK: Duration = Duration::from_millis(10);
/// Files in the directory that is listed.
const LISTED: usize = 100;
/// A directory below others, and how many files it has.
const DEEP: &str = "deep/a/b/c";
const DEEP_FILES: usize = 20;
/// FORGETs of so many files as are listed are at most so many requests.
const BATCHES: u64 = 20;
/// Blocks that are read with O_DIRECT.
const BLOCKS: u64 = 16;
const BLOCK_BYTES: usize = 4096;
const BLOCK: Block = Block([b'x'; BLOCK_BYTES]);

/// A block in memory as O_DIRECT needs it.
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// What is measured, in this order.
const OPERATIONS: &[Operation] = &[
    operation("stat", 1, 1, stat),
    operation("stat again", 0, 1, stat),
    operation("open, read, close", 1, 6, read_host_file),
    operation("the same again", 0, 6, read_host_file),
    operation("make, write, close", 3, 5, make),
    operation("read what was written", 0, 6, read_made),
    operation(
        "make exclusively, write, set times, owner and mode, close",
        3,
        8,
        untar,
    ),
    operation("append", 1, 5, append),
    operation("overwrite 4 KiB", 1, 5, overwrite),
    operation("overwrite 4 KiB, fsync", 2, 6, overwrite_and_fsync),
    operation("truncate by open, write", 2, 6, truncate),
    operation("rename", 2, 3, rename),
    operation("unlink", 1, 2, unlink),
    operation("make it again", 2, 5, make_renamed),
    operation("mkdir, rmdir", 3, 4, make_directory),
    operation("read 16 blocks with O_DIRECT", 17, 19, read_direct),
    operation("stat 20 files below 4 directories", 24, 24, stat_deep).below(4),
    operation("the same again", 0, 24, stat_deep).below(4),
    operation("list 100 files, stat each", 3, 106, list).below(1),
    operation("the same again", 1, 106, list).below(1),
];
/// The number of the order to drop what the kernel has cached of names and inodes.
const DROP: u8 = u8::MAX;

/// An operation and the requests that it may make.
struct Operation {
    name: &'static str,
    /// In a root file system, and the most in a volume if it takes no time.
    requests: [u64; 2],
    /// How many directories it looks up again every 10 to 20 ms in a volume.
    directories: u64,
    run: fn(&Path) -> Result<()>,
}

const fn operation(name: &'static str, rootfs: u64, volume: u64, run: fn(&Path) -> Result<()>) -> Operation {
    Operation {
        name,
        requests: [rootfs, volume],
        directories: 0,
        run,
    }
}

impl Operation {
    const fn below(self, directories: u64) -> Self {
        Self { directories, ..self }
    }

    /// The most requests in a volume if it takes `time`.
    fn most(&self, time: Duration) -> u64 {
        let ticks = time.as_millis() / TICK.as_millis();
        self.requests[1] + self.directories * u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

fn count(build: &Build) -> Result<()> {
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        mounts: &TREES,
        arguments: &["--commands"],
        ..Options::default()
    })?;
    let mut stream = guest.connect()?;
    let mut wrong = Vec::new();
    for (number, tree) in (0_u8..).zip(TREES) {
        prepare(&guest.shared().join(tree))?;
        for (index, operation) in (0_u8..).zip(OPERATIONS) {
            let before = requests(&mut guest)?;
            let started = Instant::now();
            order(&mut stream, [number, index]).with_context(|| format!("{}: {}", tree, operation.name))?;
            let time = started.elapsed();
            let after = requests(&mut guest)?;
            let made = difference(&before, &after);
            let total: u64 = made.iter().map(|(_, count)| count).sum();
            let kinds: Vec<String> = made
                .iter()
                .map(|(kind, count)| format!("{count} {kind}"))
                .collect();
            println!(
                "        {tree}: {}: {total}: {}",
                operation.name,
                kinds.join(", ")
            );
            let (expected, is_right) = if number == 0 {
                let expected = operation.requests[0];
                (expected, total == expected)
            } else {
                let most = operation.most(time);
                (most, total <= most)
            };
            if !is_right {
                wrong.push(format!(
                    "{tree}: {}: {total}, expected {expected}",
                    operation.name
                ));
            }
        }
        if number == 0 {
            check_batches(&mut guest, &mut stream)?;
        }
    }
    drop(stream);
    guest.finish(DEADLINE)?;
    ensure!(wrong.is_empty(), "requests:\n{}", wrong.join("\n"));
    Ok(())
}

/// What the guest forgets at once, it sends in few requests, a moment later.
fn check_batches(guest: &mut Guest, stream: &mut UnixStream) -> Result<()> {
    let sent = |guest: &mut Guest| -> Result<[u64; 2]> {
        let counts = requests(guest)?;
        Ok(NOT_WAITED_FOR.map(|kind| counts.get(kind).copied().unwrap_or_default()))
    };
    let before = sent(guest)?;
    order(stream, [0, DROP])?;
    let started = Instant::now();
    loop {
        let now = sent(guest)?;
        let [alone, batches] = [0, 1].map(|kind| now[kind] - before[kind]);
        ensure!(
            alone + batches <= BATCHES,
            "{alone} FORGETs, {batches} BATCH_FORGETs"
        );
        if batches > 0 {
            println!("        {LISTED} files forgotten: {alone} FORGETs, {batches} BATCH_FORGETs");
            return Ok(());
        }
        ensure!(started.elapsed() < DEADLINE, "no BATCH_FORGET");
    }
}

/// Files that the host has made before the guest looks at them.
fn prepare(tree: &Path) -> Result<()> {
    fs::write(tree.join("host"), "made by the host")?;
    fs::create_dir(tree.join("list"))?;
    for number in 0..LISTED {
        fs::write(tree.join(format!("list/file-{number}")), "x")?;
    }
    fs::create_dir_all(tree.join(DEEP))?;
    for number in 0..DEEP_FILES {
        fs::write(tree.join(DEEP).join(number.to_string()), "x")?;
    }
    Ok(fs::write(
        tree.join("blocks"),
        BLOCK.0.repeat(usize::try_from(BLOCKS)?),
    )?)
}

/// What the VMM has counted so far, by kind.
fn requests(guest: &mut Guest) -> Result<BTreeMap<String, u64>> {
    guest.command("requests")?;
    let line = guest.wait_for("requests:", DEADLINE)?;
    let (_, counts) = line.split_once("requests:").context("no counts")?;
    let counts = counts.split_whitespace().map(|word| {
        let (kind, count) = word
            .split_once('=')
            .with_context(|| format!("{word:?} in {line:?}"))?;
        Ok((kind.to_owned(), count.parse()?))
    });
    counts.collect()
}

fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let made = after.iter().map(|(kind, count)| {
        let earlier = before.get(kind).copied().unwrap_or_default();
        (kind.clone(), count.saturating_sub(earlier))
    });
    made.filter(|(kind, count)| *count > 0 && !NOT_WAITED_FOR.contains(&kind.as_str()))
        .collect()
}

/// Has the guest make an operation, and waits until it has.
fn order(stream: &mut UnixStream, order: [u8; 2]) -> Result<()> {
    stream.write_all(&order)?;
    let mut answer = [0; 2];
    stream
        .read_exact(&mut answer)
        .context("the guest did not answer")?;
    ensure!(answer == order, "the guest answered {answer:?}");
    Ok(())
}

/// Mounts [`TREES`] at [`MOUNT_POINTS`].
///
/// # Errors
/// If that fails.
pub fn mount_trees() -> Result<()> {
    for (tree, mount_point) in TREES.into_iter().zip(MOUNT_POINTS) {
        fs::create_dir(mount_point)?;
        mount_bind(Path::new(SHARED).join(tree), mount_point).with_context(|| format!("mounting {tree}"))?;
    }
    Ok(())
}

fn serve(_: &Parameters) -> Result<Value> {
    mount_trees()?;
    let mut conversation = Conversation::accept()?;
    let mut order = [0; 2];
    while conversation.stream.read(&mut order)? == order.len() {
        if order[1] == DROP {
            fs::write("/proc/sys/vm/drop_caches", "2")?;
            conversation.stream.write_all(&order)?;
            continue;
        }
        let [tree, index] = order.map(usize::from);
        let (Some(mount_point), Some(operation)) = (MOUNT_POINTS.get(tree), OPERATIONS.get(index)) else {
            bail!("unknown order {order:?}");
        };
        (operation.run)(Path::new(mount_point))
            .with_context(|| format!("{mount_point}: {}", operation.name))?;
        conversation.stream.write_all(&order)?;
    }
    Ok(json!({}))
}

fn stat(tree: &Path) -> Result<()> {
    fs::metadata(tree.join("host"))?;
    Ok(())
}

fn read_host_file(tree: &Path) -> Result<()> {
    read(&tree.join("host"), b"made by the host")
}

/// As `cat` does: reads until there is no more.
fn read(file: &Path, expected: &[u8]) -> Result<()> {
    let mut file = File::open(file)?;
    let (mut content, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => content.extend_from_slice(buffer.get(..count).context("a read of too much")?),
        }
    }
    ensure!(
        content == expected,
        "{} bytes, expected {}",
        content.len(),
        expected.len()
    );
    Ok(())
}

fn make(tree: &Path) -> Result<()> {
    Ok(fs::write(tree.join("made"), "made by the guest")?)
}

fn read_made(tree: &Path) -> Result<()> {
    read(&tree.join("made"), b"made by the guest")
}

/// As `tar` makes a file.
fn untar(tree: &Path) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(tree.join("untarred"))?;
    file.write_all(&BLOCK.0)?;
    file.set_modified(SystemTime::UNIX_EPOCH)?;
    rustix::fs::fchown(&file, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn append(tree: &Path) -> Result<()> {
    let mut file = OpenOptions::new().append(true).open(tree.join("made"))?;
    Ok(file.write_all(b", and more")?)
}

fn overwrite(tree: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(tree.join("untarred"))?;
    Ok(file.write_all_at(&BLOCK.0, 0)?)
}

fn overwrite_and_fsync(tree: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(tree.join("untarred"))?;
    file.write_all_at(&BLOCK.0, 0)?;
    Ok(file.sync_all()?)
}

fn truncate(tree: &Path) -> Result<()> {
    Ok(fs::write(tree.join("untarred"), "new")?)
}

fn rename(tree: &Path) -> Result<()> {
    Ok(fs::rename(tree.join("made"), tree.join("renamed"))?)
}

fn unlink(tree: &Path) -> Result<()> {
    Ok(fs::remove_file(tree.join("renamed"))?)
}

fn make_renamed(tree: &Path) -> Result<()> {
    Ok(fs::write(tree.join("renamed"), "again")?)
}

fn make_directory(tree: &Path) -> Result<()> {
    fs::create_dir(tree.join("directory"))?;
    Ok(fs::remove_dir(tree.join("directory"))?)
}

fn read_direct(tree: &Path) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(tree.join("blocks"))?;
    let mut block = Block([0; BLOCK_BYTES]);
    for number in 0..BLOCKS {
        file.read_exact_at(&mut block.0, number * BLOCK_BYTES as u64)?;
        ensure!(block.0 == BLOCK.0, "block {number} is another one");
    }
    Ok(())
}

fn stat_deep(tree: &Path) -> Result<()> {
    for number in 0..DEEP_FILES {
        fs::metadata(tree.join(DEEP).join(number.to_string()))?;
    }
    Ok(())
}

/// As `ls -l` does.
fn list(tree: &Path) -> Result<()> {
    let entries: Vec<_> = fs::read_dir(tree.join("list"))?.collect::<Result<_, _>>()?;
    ensure!(entries.len() == LISTED, "{} files", entries.len());
    for entry in entries {
        ensure!(
            entry.metadata()?.len() == 1,
            "{:?} has another size",
            entry.path()
        );
    }
    Ok(())
}
