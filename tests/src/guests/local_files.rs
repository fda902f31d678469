//! Files behave as on a local disk, although the guest's kernel asks the server for little: what it changes
//! itself it must see at once, by whatever way, on a root file system and on a volume.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, RenameFlags, XattrFlags};
use rustix::mount::mount_bind;
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::{Value, json};

use super::vm::DEADLINE;
use super::workload::{Parameters, SHARED};
use super::{Build, Options, Test, Workload, test};

/// The test.
pub const TESTS: &[Test] = &[test("files behave as on a local disk", check)];

/// Tries what programs do with files.
pub const WORKLOAD: Workload = Workload {
    name: "local-files",
    run: try_all,
};

/// What the host shares: a container's root file system and its first volume.
const TREES: [&str; 2] = ["c/rootfs", "c/mounts/0"];
/// Where the guest mounts them.
const MOUNT_POINTS: [&str; 2] = ["/rootfs", "/volume"];
/// A user without privileges.
const USER: u32 = 1000;
/// Entries of the directory that is removed while it is listed.
const ENTRIES: usize = 300;

type Behaviour = (&'static str, fn(&Path) -> Result<()>);

const BEHAVIOURS: &[Behaviour] = &[
    (
        "what was written is read, by other descriptors, too",
        written_is_read,
    ),
    ("sizes and times follow writes", sizes_and_times),
    ("O_EXCL fails if the name exists", exclusive),
    ("O_TRUNC truncates, and so does ftruncate", truncation),
    ("O_APPEND of two descriptors", appending),
    ("a deleted file is used until it is closed", deleted),
    ("names come and go", names),
    ("rename replaces, exchanges, and does not replace", renaming),
    ("links count", links),
    ("a directory is removed while it is listed", removal),
    ("holes and allocations", holes),
    ("modes are checked after they have changed", permissions),
    ("a write takes set-user-ID and capabilities away", privileges),
    ("copy_file_range", copies),
];

fn check(build: &Build) -> Result<()> {
    let guest = build.boot(&Options {
        workload: WORKLOAD.name,
        mounts: &TREES,
        ..Options::default()
    })?;
    let trees = TREES.map(|tree| guest.shared().join(tree));
    for tree in &trees {
        fs::write(tree.join("of-the-host"), "text")?;
    }
    let report = guest.finish(DEADLINE)?;
    ensure!(report["tried"] == BEHAVIOURS.len() * TREES.len(), "{report}");
    ensure!(report["wrong"] == json!([]), "{report:#}");
    Ok(())
}

fn try_all(_: &Parameters) -> Result<Value> {
    let (mut tried, mut wrong) = (0, Vec::new());
    for (tree, mount_point) in TREES.into_iter().zip(MOUNT_POINTS) {
        fs::create_dir(mount_point)?;
        mount_bind(Path::new(SHARED).join(tree), mount_point).with_context(|| format!("mounting {tree}"))?;
        for (name, behaviour) in BEHAVIOURS {
            let directory = Path::new(mount_point).join(format!("{tried}"));
            fs::create_dir(&directory)?;
            if let Err(error) = behaviour(&directory) {
                wrong.push(format!("{tree}: {name}: {error:#}"));
            }
            tried += 1;
        }
    }
    Ok(json!({ "tried": tried, "wrong": wrong }))
}

/// Fails unless `result` is the error `kind`.
fn fails<T>(result: std::io::Result<T>, kind: ErrorKind) -> Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(error).with_context(|| format!("expected {kind:?}")),
        Ok(_) => anyhow::bail!("expected {kind:?}, but it succeeded"),
    }
}

/// What `action` returns on a thread of its own, of a user without privileges.
fn as_user<T: Send>(action: impl FnOnce() -> T + Send) -> Result<T> {
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<T> {
            set_thread_groups(&[])?;
            set_thread_res_gid(group, group, group)?;
            set_thread_res_uid(user, user, user)?;
            Ok(action())
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the user's thread panicked"))?
    })
}

fn read_write(file: &Path) -> Result<File> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)?)
}

fn written_is_read(directory: &Path) -> Result<()> {
    let file = directory.join("file");
    for (at, length) in [
        (0, 5),
        (5, 4096),
        (8000, 10),
        (4090, 20),
        (100_000, 1 << 20),
        (3, 1),
    ] {
        let bytes: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8 + 1).collect();
        read_write(&file)?.write_all_at(&bytes, at)?;
        let mut back = vec![0; bytes.len()];
        File::open(&file)?.read_exact_at(&mut back, at)?;
        ensure!(back == bytes, "{length} bytes at {at}");
    }
    let content = fs::read(&file)?;
    ensure!(content.len() == 100_000 + (1 << 20), "{} bytes", content.len());
    ensure!(
        content
            .get(20_000..100_000)
            .is_some_and(|hole| hole.iter().all(|byte| *byte == 0)),
        "the hole"
    );
    Ok(())
}

fn sizes_and_times(directory: &Path) -> Result<()> {
    let path = directory.join("file");
    let mut file = File::create(&path)?;
    let before = fs::metadata(&path)?;
    ensure!(before.len() == 0, "{} bytes at first", before.len());
    for round in 1..=5_u64 {
        file.write_all(&[1; 1000])?;
        ensure!(
            fs::metadata(&path)?.len() == round * 1000,
            "stat in round {round}"
        );
        ensure!(file.metadata()?.len() == round * 1000, "fstat in round {round}");
        ensure!(
            file.seek(SeekFrom::End(0))? == round * 1000,
            "lseek in round {round}"
        );
    }
    ensure!(
        fs::metadata(&path)?.modified()? >= before.modified()?,
        "mtime went back"
    );
    ensure!(fs::metadata(&path)?.blocks() > 0, "no blocks");
    let directory_before = fs::metadata(directory)?;
    fs::write(directory.join("other"), "")?;
    ensure!(
        fs::metadata(directory)?.modified()? >= directory_before.modified()?,
        "the directory's mtime"
    );
    fs::create_dir(directory.join("sub"))?;
    ensure!(fs::read_dir(directory)?.count() == 3, "entries");
    Ok(())
}

fn exclusive(directory: &Path) -> Result<()> {
    let path = directory.join("file");
    File::create_new(&path)?;
    fails(File::create_new(&path), ErrorKind::AlreadyExists)?;
    fs::remove_file(&path)?;
    File::create_new(&path)?;
    fs::create_dir(directory.join("sub"))?;
    fails(File::create_new(directory.join("sub")), ErrorKind::AlreadyExists)?;
    fails(fs::create_dir(&path), ErrorKind::AlreadyExists)?;
    std::os::unix::fs::symlink("nowhere", directory.join("link"))?;
    fails(File::create_new(directory.join("link")), ErrorKind::AlreadyExists)?;
    fails(
        File::create_new(directory.join("missing/file")),
        ErrorKind::NotFound,
    )?;
    // The guest has not looked at this one before.
    let of_the_host = directory.parent().context("no parent")?.join("of-the-host");
    fails(File::create_new(&of_the_host), ErrorKind::AlreadyExists)?;
    ensure!(fs::read(&of_the_host)? == b"text", "the host's file was changed");
    Ok(())
}

fn truncation(directory: &Path) -> Result<()> {
    let path = directory.join("file");
    fs::write(&path, [1; 10_000])?;
    let open = File::open(&path)?;
    fs::write(&path, "short")?;
    ensure!(open.metadata()?.len() == 5, "fstat after O_TRUNC");
    ensure!(fs::read(&path)? == b"short", "content after O_TRUNC");
    let file = read_write(&path)?;
    file.set_len(3)?;
    ensure!(fs::read(&path)? == b"sho", "content after ftruncate");
    file.set_len(6)?;
    ensure!(fs::read(&path)? == b"sho\0\0\0", "content after it was extended");
    file.write_all_at(b"x", 4095)?;
    file.set_len(4)?;
    file.set_len(5000)?;
    let content = fs::read(&path)?;
    ensure!(
        content.len() == 5000 && content.iter().skip(3).all(|byte| *byte == 0),
        "what was cut off is back"
    );
    Ok(())
}

fn appending(directory: &Path) -> Result<()> {
    let path = directory.join("file");
    let open = || OpenOptions::new().append(true).create(true).open(&path);
    let (mut first, mut second) = (open()?, open()?);
    for _ in 0..100 {
        first.write_all(b"first ")?;
        second.write_all(b"second ")?;
    }
    ensure!(
        fs::read_to_string(&path)? == "first second ".repeat(100),
        "lost or out of order"
    );
    Ok(())
}

fn deleted(directory: &Path) -> Result<()> {
    let path = directory.join("file");
    let mut file = read_write(&path)?;
    file.write_all(b"text")?;
    fs::remove_file(&path)?;
    fails(File::open(&path), ErrorKind::NotFound)?;
    ensure!(file.metadata()?.nlink() == 0, "links");
    file.write_all(b" and more")?;
    file.sync_all()?;
    let mut content = String::new();
    file.rewind()?;
    file.read_to_string(&mut content)?;
    ensure!(content == "text and more", "{content:?}");
    // Another file of this name is another file.
    fs::write(&path, "new")?;
    file.write_all_at(b"T", 0)?;
    ensure!(fs::read(&path)? == b"new", "the new file was changed");
    Ok(())
}

fn names(directory: &Path) -> Result<()> {
    for round in 0..3 {
        for name in ["a", "b", "c"] {
            let path = directory.join(name);
            ensure!(!path.exists(), "{name} in round {round}");
            fs::write(&path, name)?;
            ensure!(fs::read_to_string(&path)? == name, "{name} in round {round}");
        }
        ensure!(fs::read_dir(directory)?.count() == 3, "entries in round {round}");
        for name in ["a", "b", "c"] {
            fs::remove_file(directory.join(name))?;
        }
        ensure!(fs::read_dir(directory)?.count() == 0, "left in round {round}");
        let sub = directory.join("sub");
        fs::create_dir(&sub)?;
        fails(fs::remove_file(&sub), ErrorKind::IsADirectory)?;
        fs::remove_dir(&sub)?;
        fails(fs::metadata(&sub), ErrorKind::NotFound)?;
    }
    Ok(())
}

fn renaming(directory: &Path) -> Result<()> {
    let (a, b) = (directory.join("a"), directory.join("b"));
    fs::write(&a, "a")?;
    fs::write(&b, "b")?;
    let replaced = File::open(&b)?;
    fs::rename(&a, &b)?;
    fails(fs::metadata(&a), ErrorKind::NotFound)?;
    ensure!(fs::read(&b)? == b"a", "the new file");
    let mut old = [0; 1];
    replaced.read_exact_at(&mut old, 0)?;
    ensure!(old == *b"b", "the replaced file");
    fs::write(&a, "again")?;
    let rename = |flags| rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags);
    fails(
        rename(RenameFlags::NOREPLACE).map_err(Into::into),
        ErrorKind::AlreadyExists,
    )?;
    rename(RenameFlags::EXCHANGE)?;
    ensure!(fs::read(&a)? == b"a" && fs::read(&b)? == b"again", "the exchange");
    // A temporary file that replaces the real one, again and again.
    for round in 0..20 {
        fs::write(&a, format!("{round}"))?;
        fs::rename(&a, &b)?;
        ensure!(fs::read_to_string(&b)? == format!("{round}"), "round {round}");
    }
    fs::create_dir(directory.join("sub"))?;
    fs::rename(directory.join("sub"), directory.join("moved"))?;
    fs::write(directory.join("moved/file"), "")?;
    fails(fs::rename(&b, directory.join("moved")), ErrorKind::IsADirectory)
}

fn links(directory: &Path) -> Result<()> {
    let (first, second) = (directory.join("first"), directory.join("second"));
    fs::write(&first, "text")?;
    fs::hard_link(&first, &second)?;
    ensure!(fs::metadata(&first)?.nlink() == 2, "links of the first");
    fs::write(&second, "changed")?;
    ensure!(fs::read(&first)? == b"changed", "content by the other name");
    fs::remove_file(&first)?;
    ensure!(fs::metadata(&second)?.nlink() == 1, "links of the second");
    ensure!(fs::read(&second)? == b"changed", "content of the second");
    Ok(())
}

/// As `rm -r` does, and with another reader beside it.
fn removal(directory: &Path) -> Result<()> {
    let many = directory.join("many");
    fs::create_dir(&many)?;
    for number in 0..ENTRIES {
        File::create(many.join(format!("a-long-name-{number}")))?;
    }
    for (number, entry) in fs::read_dir(&many)?.enumerate() {
        fs::remove_file(entry?.path())?;
        if number % 100 == 0 {
            fs::read_dir(&many)?.next().transpose()?;
        }
    }
    Ok(fs::remove_dir(&many)?)
}

fn holes(directory: &Path) -> Result<()> {
    let file = read_write(&directory.join("file"))?;
    file.set_len(1 << 20)?;
    file.write_all_at(b"data", 512 << 10)?;
    let seek = |from| rustix::fs::seek(&file, from);
    ensure!(
        seek(rustix::fs::SeekFrom::Data(0))? >= 500 << 10,
        "data before the data"
    );
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 << 20)?;
    ensure!(file.metadata()?.len() == 2 << 20, "the size after fallocate");
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 512 << 10, 4096)?;
    let mut content = [1; 4];
    file.read_exact_at(&mut content, 512 << 10)?;
    ensure!(content == [0; 4], "the hole has {content:?}");
    Ok(())
}

fn permissions(directory: &Path) -> Result<()> {
    let secret = directory.join("secret");
    fs::create_dir(&secret)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755))?;
    fs::write(secret.join("file"), "text")?;
    let read = || as_user(|| fs::read(secret.join("file")));
    ensure!(read()?? == b"text", "a file for all");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700))?;
    fails(read()?, ErrorKind::PermissionDenied)?;
    fails(
        as_user(|| File::create_new(secret.join("new")))?,
        ErrorKind::PermissionDenied,
    )?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o777))?;
    as_user(|| File::create_new(secret.join("new")))??;
    ensure!(
        fs::metadata(secret.join("new"))?.uid() == USER,
        "the owner of a user's file"
    );
    fails(
        as_user(|| OpenOptions::new().write(true).open(secret.join("file")))?,
        ErrorKind::PermissionDenied,
    )
}

fn privileges(directory: &Path) -> Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777))?;
    let path = directory.join("program");
    // VFS_CAP_REVISION_2, with CAP_NET_BIND_SERVICE.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let name = "security.capability";
    let has_capability = || rustix::fs::getxattr(&path, name, &mut [0; 64]).is_ok();
    fs::write(&path, "text")?;
    ensure!(!has_capability(), "a new file has capabilities");
    rustix::fs::setxattr(&path, name, capability, XattrFlags::empty())?;
    ensure!(has_capability(), "the capabilities are not there");
    OpenOptions::new().append(true).open(&path)?.write_all(b"more")?;
    ensure!(!has_capability(), "a write left the capabilities");
    rustix::fs::setxattr(&path, name, capability, XattrFlags::empty())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
    as_user(|| OpenOptions::new().append(true).open(&path)?.write_all(b"more"))??;
    let mode = fs::metadata(&path)?.mode() & 0o7777;
    ensure!(mode == 0o777, "the mode is {mode:o} after another user's write");
    ensure!(!has_capability(), "another user's write left the capabilities");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4777))?;
    as_user(|| OpenOptions::new().write(true).truncate(true).open(&path))??;
    let mode = fs::metadata(&path)?.mode() & 0o7777;
    ensure!(mode == 0o777, "the mode is {mode:o} after another user's O_TRUNC");
    Ok(())
}

fn copies(directory: &Path) -> Result<()> {
    let (from, to) = (directory.join("from"), directory.join("to"));
    fs::write(&from, [b'x'; 10_000])?;
    let target = read_write(&to)?;
    let mut left = 10_000;
    while left > 0 {
        let copied = rustix::fs::copy_file_range(&File::open(&from)?, None, &target, None, left)?;
        ensure!(copied > 0, "nothing was copied, {left} are left");
        left -= copied;
    }
    ensure!(fs::read(&to)? == [b'x'; 10_000], "the copy");
    ensure!(target.metadata()?.len() == 10_000, "the size of the copy");
    Ok(())
}
