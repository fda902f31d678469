//! Reads and writes a pod's files below /run/nacre; `nacre_protocol::state` has their types and paths. Each
//! file is replaced atomically, by rename(2). Called by the sandbox, and by the commands `start` and
//! `delete`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nacre_protocol::state::{
    self, Failure, MAX_FAILURES, POD_FILE, Pod, SOCKET_FILE, TIMELINE_FILE, Timeline,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file that could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct Error {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// For `map_err` on an operation on `path`.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { path, source }
}

/// Makes `path` and its missing parents, accessible to root only.
///
/// # Errors
/// [`Error`] with the directory.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at(path))
}

/// Writes `value` as JSON, all of it or nothing.
///
/// # Errors
/// [`Error`] with the file.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let new = path.with_extension("new");
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(io::Error::other)
        .map_err(at(path))?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(at(&new))?;
    file.write_all(&bytes).map_err(at(&new))?;
    fs::rename(&new, path).map_err(at(path))
}

/// Writes `pod.json` in the pod's `directory`.
///
/// # Errors
/// [`Error`] with the file.
pub fn write_pod(directory: &Path, pod: &Pod) -> Result<(), Error> {
    write(&directory.join(POD_FILE), pod)
}

/// Reads `pod.json`; None if the pod's directory or the file does not exist.
///
/// # Errors
/// [`Error`] with the file.
pub fn read_pod(directory: &Path) -> Result<Option<Pod>, Error> {
    read(&directory.join(POD_FILE))
}

/// Reads a file that [`write()`] has written; None if it does not exist.
///
/// # Errors
/// [`Error`] with the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(io::Error::other)
            .map_err(at(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Writes `timeline.json` in the pod's `directory`.
///
/// # Errors
/// [`Error`] with the file.
pub fn write_timeline(directory: &Path, timeline: &Timeline) -> Result<(), Error> {
    write(&directory.join(TIMELINE_FILE), timeline)
}

/// Writes `failure` as the record of the pod with `key`, and removes all but the newest [`MAX_FAILURES`]
/// records.
///
/// # Errors
/// [`Error`] with the file.
pub fn record_failure(key: &str, failure: &Failure) -> Result<(), Error> {
    let file = state::failure_file(key);
    let directory = file.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    write(&file, failure)?;
    keep_newest(directory, MAX_FAILURES)
}

fn keep_newest(directory: &Path, count: usize) -> Result<(), Error> {
    let mut records = Vec::new();
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        // Another pod's shim may remove it at the same time.
        if let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) {
            records.push((modified, entry.path()));
        }
    }
    records.sort();
    let surplus = records.len().saturating_sub(count);
    for (_, path) in records.into_iter().take(surplus) {
        remove_file(&path)?;
    }
    Ok(())
}

/// Removes a file, if it exists.
///
/// # Errors
/// [`Error`] with the file.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Removes a pod's `directory`, if it exists, and its socket, if that is elsewhere.
///
/// # Errors
/// [`Error`] with the directory or the socket.
pub fn remove_directory(directory: &Path) -> Result<(), Error> {
    // Fails unless the socket is elsewhere.
    if let Ok(socket) = fs::read_link(directory.join(SOCKET_FILE)) {
        remove_file(&socket)?;
    }
    remove_tree(directory)
}

/// Removes a directory with all that is in it, if it exists.
///
/// # Errors
/// [`Error`] with the directory.
pub fn remove_tree(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(directory)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::state::PodState;

    #[test]
    fn only_the_newest_records_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        for n in 0..5_u64 {
            let path = directory.path().join(format!("{n}.json"));
            fs::write(&path, "").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(n);
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(time)
                .unwrap();
        }
        keep_newest(directory.path(), 2).unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["3.json", "4.json"]);
    }

    #[test]
    fn a_socket_elsewhere_is_removed_with_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let (directory, socket) = (root.path().join("pod"), root.path().join("socket"));
        fs::create_dir(&directory).unwrap();
        fs::write(&socket, "").unwrap();
        std::os::unix::fs::symlink(&socket, directory.join(SOCKET_FILE)).unwrap();
        remove_directory(&directory).unwrap();
        assert!(!socket.exists() && !directory.exists());
        remove_directory(&directory).unwrap();
    }

    #[test]
    fn a_written_pod_is_read_back_and_a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_pod(directory.path()).unwrap(), None);
        let pod = Pod {
            id: "a".into(),
            namespace: "default".into(),
            containerd_address: "/run/c.sock".into(),
            bundle: "/b".into(),
            shim_pid: 7,
            shim_start_time: None,
            vmm_pid: None,
            cgroup: Some("/sys/fs/cgroup/x".into()),
            network: None,
            size: None,
            silent_since: None,
            created: 1,
            state: PodState::Creating,
        };
        write_pod(directory.path(), &pod).unwrap();
        assert_eq!(read_pod(directory.path()).unwrap(), Some(pod));
        fs::write(directory.path().join(POD_FILE), "{").unwrap();
        assert!(
            read_pod(directory.path())
                .unwrap_err()
                .to_string()
                .contains("pod.json")
        );
    }
}
