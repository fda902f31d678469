//! The files /etc/hostname, /etc/hosts and /etc/resolv.conf of a pod whose caller leaves them to the engine:
//! with a pause container containerd makes them, with its Sandbox API the shim does. They are written into the
//! pod's directory when the pod is made, and every container sees them that mounts nothing there itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::mount::IdMap;

/// In the pod's directory.
const DIRECTORY: &str = "files";

/// A file of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFile {
    /// Where containers see it.
    pub destination: &'static str,
    /// Where it is on this host.
    pub source: PathBuf,
}

/// Writes the files into the pod's `directory`. Without a `resolv_conf` the pod has this host's; it has this
/// host's /etc/hosts, too. They belong to root in the pod, whose user namespace has the id map `users`.
///
/// # Errors
/// If a file can't be written; the error names it.
pub fn write(
    directory: &Path,
    hostname: &str,
    resolv_conf: Option<&str>,
    users: Option<&IdMap>,
) -> io::Result<Vec<PodFile>> {
    let directory = directory.join(DIRECTORY);
    fs::create_dir_all(&directory).map_err(named(&directory))?;
    let host_names = host_file("/etc/hosts")?;
    let resolver = match resolv_conf {
        Some(text) => text.as_bytes().to_vec(),
        None => host_file("/etc/resolv.conf")?,
    };
    let contents = [
        ("/etc/hostname", format!("{hostname}\n").into_bytes()),
        ("/etc/hosts", host_names),
        ("/etc/resolv.conf", resolver),
    ];
    let mut files = Vec::new();
    for (destination, content) in contents {
        let name = Path::new(destination).file_name().unwrap_or_default();
        let source = directory.join(name);
        fs::write(&source, content).map_err(named(&source))?;
        if let Some(users) = users {
            let (uid, gid) = users.root();
            std::os::unix::fs::chown(&source, uid, gid).map_err(named(&source))?;
        }
        files.push(PodFile { destination, source });
    }
    Ok(files)
}

/// A file of this host; empty if there is none.
fn host_file(path: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(named(Path::new(path))),
    }
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Adds to a checked `spec` the mounts of those `files` whose place no mount has, read-only if the root is.
/// `normalized` is how paths are compared.
pub fn add_mounts(spec: &mut Value, files: &[PodFile], normalized: impl Fn(&Path) -> PathBuf) {
    let access = if spec["root"]["readonly"] == true {
        "ro"
    } else {
        "rw"
    };
    for file in files {
        let is_taken = |mount: &Value| {
            let destination = mount["destination"].as_str().unwrap_or_default();
            normalized(Path::new(destination)) == Path::new(file.destination)
        };
        let mounts = spec["mounts"].as_array();
        if mounts.into_iter().flatten().any(is_taken) {
            continue;
        }
        let mount = json!({
            "destination": file.destination,
            "type": "bind",
            "source": file.source,
            "options": ["rbind", "rprivate", access],
        });
        match spec.get_mut("mounts").and_then(Value::as_array_mut) {
            Some(mounts) => mounts.push(mount),
            None => spec["mounts"] = json!([mount]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_written_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path(), "web-0", Some("nameserver 10.0.0.1\n"), None).unwrap();
        let contents: Vec<_> = files
            .iter()
            .map(|file| (file.destination, fs::read_to_string(&file.source).unwrap()))
            .collect();
        let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let want = [
            ("/etc/hostname", "web-0\n".to_owned()),
            ("/etc/hosts", hosts),
            ("/etc/resolv.conf", "nameserver 10.0.0.1\n".to_owned()),
        ];
        assert_eq!(contents, want);
    }

    #[test]
    fn a_file_that_can_t_be_written_is_named() {
        let error = write(Path::new("/proc/self"), "h", None, None)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/proc/self/files: "), "{error}");
    }

    #[test]
    fn a_container_s_own_mounts_come_first() {
        let file = |destination| PodFile {
            destination,
            source: format!("/p{destination}").into(),
        };
        let files = [file("/etc/hosts"), file("/etc/resolv.conf")];
        let own = json!({"destination": "/etc//hosts/", "type": "bind", "source": "/mine"});
        let mut spec = json!({"root": {"readonly": true}, "mounts": [own]});
        add_mounts(&mut spec, &files, |path| path.components().collect());
        let added = json!({"destination": "/etc/resolv.conf", "type": "bind", "source": "/p/etc/resolv.conf",
            "options": ["rbind", "rprivate", "ro"]});
        assert_eq!(spec["mounts"], json!([own, added]));
        let mut spec = json!({"root": {}});
        add_mounts(&mut spec, &files, |path| path.components().collect());
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(spec["mounts"][0]["options"][2], "rw");
    }
}
