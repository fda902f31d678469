//! The writable layer of an overlay on a disk of its own: a sparse file in the snapshot's upper directory, which is a
//! copy of a template. The host mounts only the layers below it, read-only, and the guest puts the overlay together.
//! Called by the flow of Create; never looks into the disk.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::seek;

use super::Error;

/// The disk's file in the upper directory.
pub const FILE: &str = ".nacre-writable-layer";

/// Whether a layer in the upper directory `upper` can be on a disk: the directory must be as a snapshotter makes it,
/// or have nothing but the disk, from an earlier run of the container. If not, the host writes the layer.
#[must_use]
pub fn fits(upper: &Path) -> bool {
    let is_empty = || {
        let mut entries = fs::read_dir(upper)?;
        Ok::<_, io::Error>(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE)))
    };
    // The root directory of the disk's layer belongs to root, too.
    let is_plain = fs::symlink_metadata(upper)
        .is_ok_and(|metadata| (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777) == (0, 0, 0o755));
    is_plain && is_empty().unwrap_or(false)
}

/// Makes the disk `file` as a copy of `template`, unless it exists. The holes of the template are not copied.
///
/// # Errors
/// If the template can't be read, or the file not be made. No part of it is left then.
pub fn make(template: &Path, file: &Path) -> Result<(), Error> {
    if file.exists() {
        return Ok(());
    }
    copy(template, file).map_err(|source| Error::Path {
        what: format!("making the disk {} from {}", file.display(), template.display()),
        source,
    })
}

fn copy(template: &Path, file: &Path) -> io::Result<()> {
    let from = File::open(template)?;
    let unfinished = Unfinished(file.with_extension("new"));
    let to = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&unfinished.0)?;
    to.set_len(from.metadata()?.len())?;
    let mut end = 0;
    while let Some(start) = next_data(&from, end)? {
        end = seek(&from, rustix::fs::SeekFrom::Hole(start))?;
        copy_range(&from, &to, start..end)?;
    }
    fs::rename(&unfinished.0, file)
}

/// Where data begin, at or after `offset`; None if there are no more.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(start) => Ok(Some(start)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(mut from: &File, mut to: &File, range: Range<u64>) -> io::Result<()> {
    from.seek(SeekFrom::Start(range.start))?;
    to.seek(SeekFrom::Start(range.start))?;
    let length = range.end.saturating_sub(range.start);
    if io::copy(&mut from.take(length), &mut to)? == length {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// A file that is removed unless it gets its name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is not there if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (template, file) = (directory.path().join("template"), directory.path().join(FILE));
        let original = File::create_new(&template).unwrap();
        original.set_len(1 << 30).unwrap();
        for (offset, text) in [(0, "first"), (300 << 20, "second"), ((1 << 30) - 5, "third")] {
            original.write_all_at(text.as_bytes(), offset).unwrap();
        }
        make(&template, &file).unwrap();
        let copied = File::open(&file).unwrap();
        let metadata = copied.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (1 << 30, 0o600));
        assert!(metadata.blocks() <= 64, "{} blocks", metadata.blocks());
        for (offset, text) in [(0, "first"), (300 << 20, "second"), ((1 << 30) - 5, "third")] {
            let mut found = vec![0; text.len()];
            copied.read_exact_at(&mut found, offset).unwrap();
            assert_eq!(found, text.as_bytes());
        }
        // One that is there is kept.
        fs::write(&file, "kept").unwrap();
        make(&template, &file).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn nothing_is_left_of_a_disk_that_could_not_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        let error = make(Path::new("/none/template"), &file).unwrap_err().to_string();
        assert!(error.contains("/none/template"), "{error}");
        let error = make(directory.path(), &file).unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_a_fresh_upper_directory_fits() {
        let directory = tempfile::tempdir().unwrap();
        let upper = directory.path().join("fs");
        assert!(!fits(&upper));
        fs::create_dir(&upper).unwrap();
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).unwrap();
        let is_root = rustix::process::getuid().is_root();
        assert_eq!(fits(&upper), is_root);
        fs::write(upper.join(FILE), "").unwrap();
        assert_eq!(fits(&upper), is_root);
        fs::write(upper.join("file"), "").unwrap();
        assert!(!fits(&upper));
        fs::remove_file(upper.join("file")).unwrap();
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!fits(&upper));
    }
}
