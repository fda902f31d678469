//! A snapshot's directory: what is refused, and by which name.

use std::fs;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use crate::snapshot::state::tests::state;

/// A kernel, an initramfs and a snapshot of both.
struct Guest {
    directory: TempDir,
}

impl Guest {
    /// A snapshot whose memory has a page of data between holes.
    fn saved() -> Self {
        let guest = Self::images_only();
        let target = Target::create(&guest.path("snapshot"), guest.images(), "a=1").unwrap();
        let memory = target.memory();
        memory.set_len(64 << 20).unwrap();
        memory.write_all_at(&[7; 4096], 1 << 20).unwrap();
        let id = FileId::of(memory).unwrap();
        target.finish(&state(), id).unwrap();
        guest
    }

    fn images_only() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("kernel"), "a kernel").unwrap();
        fs::write(directory.path().join("initramfs"), "an initramfs").unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn images(&self) -> Images<'static> {
        // Leaked, since a test has few.
        let leak = |name| Box::leak(self.path(name).into_boxed_path());
        Images {
            kernel: leak("kernel"),
            initramfs: leak("initramfs"),
        }
    }

    fn open(&self) -> Result<Snapshot, OpenError> {
        Snapshot::open(&self.path("snapshot"), self.images())
    }

    /// Changes the guest, and returns why the snapshot is then refused.
    fn refused(change: impl FnOnce(&Self)) -> String {
        let guest = Self::saved();
        change(&guest);
        let error = guest.open().unwrap_err().to_string();
        error.replace(&format!("{}/", guest.directory.path().display()), "")
    }
}

#[test]
fn a_snapshot_opens_as_often_as_one_likes() {
    let guest = Guest::saved();
    for _ in 0..2 {
        let snapshot = guest.open().unwrap();
        assert_eq!(snapshot.machine.size, state().size);
        assert_eq!(snapshot.memory.metadata().unwrap().len(), 64 << 20);
        assert_eq!(snapshot.extra_cmdline, "a=1");
    }
}

#[test]
fn open_files_are_a_snapshot_wherever_their_positions_are() {
    let guest = Guest::saved();
    let files = ["snapshot/state", "snapshot/memory", "kernel", "initramfs"].map(|name| {
        let mut file = File::open(guest.path(name)).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.seek(SeekFrom::Start(7)).unwrap();
        file
    });
    let open = |files: [&File; 4]| {
        let [state, memory, kernel, initramfs] = files;
        let named = |name, file| Named {
            name: Path::new(name),
            file,
        };
        Snapshot::of_files(Files {
            state: named("the state", state),
            memory: named("the memory", memory),
            kernel: named("the kernel", kernel),
            initramfs: named("the initramfs", initramfs),
        })
    };
    let [state, memory, kernel, initramfs] = &files;
    assert_eq!(
        open([state, memory, kernel, initramfs]).unwrap().machine.size,
        state_size()
    );
    let error = |files| open(files).unwrap_err().to_string();
    assert_eq!(
        error([kernel, memory, kernel, initramfs]),
        "the state: not a snapshot"
    );
    assert_eq!(
        error([state, kernel, kernel, initramfs]),
        "the memory is not the memory of the snapshot: 8 bytes instead of 67108864"
    );
    assert_eq!(
        error([state, memory, initramfs, initramfs]),
        "the kernel is not the kernel of the snapshot: 12 bytes instead of 8"
    );
    assert_eq!(
        error([state, memory, kernel, kernel]),
        "the initramfs is not the initramfs of the snapshot: 8 bytes instead of 12"
    );
    memory.set_permissions(fs::Permissions::from_mode(0o666)).unwrap();
    let text = error([state, memory, kernel, initramfs]);
    assert!(text.starts_with("the memory: must be a regular file"), "{text}");
    let directory = File::open(guest.directory.path()).unwrap();
    let text = error([&directory, memory, kernel, initramfs]);
    assert!(text.starts_with("the state: must be a regular file"), "{text}");
}

fn state_size() -> crate::snapshot::state::Size {
    state().size
}

#[test]
fn a_copy_opens() {
    let guest = Guest::saved();
    for name in ["kernel", "initramfs", "snapshot/memory", "snapshot/state"] {
        let (file, copy) = (guest.path(name), guest.path("copy"));
        fs::copy(&file, &copy).unwrap();
        fs::rename(&copy, &file).unwrap();
    }
    guest.open().unwrap();
}

#[test]
fn what_differs_is_named() {
    let write = |name: &'static str, content: &'static str| {
        Guest::refused(|guest| fs::write(guest.path(name), content).unwrap())
    };
    assert_eq!(
        write("kernel", "A kernel"),
        "kernel is not the kernel of the snapshot: the content differs"
    );
    assert_eq!(
        write("initramfs", "none"),
        "initramfs is not the initramfs of the snapshot: 4 bytes instead of 12"
    );
    assert_eq!(
        write("snapshot/memory", "short"),
        "snapshot/memory is not the memory of the snapshot: 5 bytes instead of 67108864"
    );
    assert_eq!(write("snapshot/state", ""), "snapshot/state: not a snapshot");
    let flip = |name: &'static str, at| {
        Guest::refused(|guest| {
            let file = File::options().read(true).write(true).open(guest.path(name));
            let file = file.unwrap();
            let before = fstat(&file).unwrap().st_ctime_nsec;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            // The change time has the resolution of the kernel's tick.
            while fstat(&file).unwrap().st_ctime_nsec == before {
                file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            }
        })
    };
    assert_eq!(
        flip("snapshot/memory", (1 << 20) + 4095),
        "snapshot/memory is not the memory of the snapshot: the content differs"
    );
    assert_eq!(
        flip("snapshot/memory", 5 << 20),
        "snapshot/memory is not the memory of the snapshot: the content differs"
    );
    assert_eq!(
        flip("snapshot/state", 100),
        "snapshot/state: damaged: the sum of the content is another"
    );
}

#[test]
fn files_that_others_can_replace_or_write_are_refused() {
    let expected = |name: &str| {
        format!(
            "snapshot/{name}: must be a regular file that belongs to the user of this process and that no other can write"
        )
    };
    for name in ["state", "memory"] {
        let text = Guest::refused(|guest| {
            let file = guest.path("snapshot").join(name);
            fs::set_permissions(file, fs::Permissions::from_mode(0o622)).unwrap();
        });
        assert_eq!(text, expected(name));
        let text = Guest::refused(|guest| {
            let file = guest.path("snapshot").join(name);
            fs::remove_file(&file).unwrap();
            fs::create_dir(file).unwrap();
        });
        assert_eq!(text, expected(name));
        let text = Guest::refused(|guest| {
            let file = guest.path("snapshot").join(name);
            fs::rename(&file, guest.path("elsewhere")).unwrap();
            symlink(guest.path("elsewhere"), file).unwrap();
        });
        assert!(text.contains("Too many levels of symbolic links"), "{text}");
        let text = Guest::refused(|guest| fs::remove_file(guest.path("snapshot").join(name)).unwrap());
        assert!(text.contains("No such file"), "{text}");
    }
}

#[test]
fn a_snapshot_that_was_not_completed_is_refused() {
    let guest = Guest::images_only();
    let target = Target::create(&guest.path("snapshot"), guest.images(), "a=1").unwrap();
    drop(target);
    let error = guest.open().unwrap_err().to_string();
    assert!(error.ends_with("snapshot/state: not a snapshot"), "{error}");
}

#[test]
fn a_directory_that_exists_is_not_written() {
    let guest = Guest::saved();
    let error = Target::create(&guest.path("snapshot"), guest.images(), "a=1").unwrap_err();
    assert!(
        error.to_string().ends_with("snapshot: File exists (os error 17)"),
        "{error}"
    );
    guest.open().unwrap();
    let missing = Images {
        kernel: Path::new("/no/kernel"),
        ..guest.images()
    };
    let error = Target::create(&guest.path("other"), missing, "").unwrap_err();
    assert!(
        error.to_string().starts_with("/no/kernel: No such file"),
        "{error}"
    );
    assert!(!guest.path("other").exists());
}
