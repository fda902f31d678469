//! A look at the sources of a container's mounts by a child process: only the child waits for ever if the server of a
//! file system (NFS, FUSE, …) does not respond. Called by the sandbox's create flow before the shim itself looks at one
//! of them. A host without such a mount has no cost; otherwise a source costs an openat2(2), and a fork if it is on
//! such a mount, or a link or ".." may lead there.

use std::path::{Component, Path};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2, stat};

use super::Error;
use super::restrictions::Mounts;
use crate::mount::HostMount;
use crate::sys;

/// How long the shim waits for all sources of a container. Its one thread does nothing else meanwhile, and containerd
/// gives up a shim that does not respond for 5 s.
const DEADLINE: Duration = Duration::from_secs(3);

/// Whether the files of a file system of the type `kind` are only there while a server responds. virtiofs is not among
/// them: without its server, the host itself has no files.
pub(super) fn is_served(kind: &str) -> bool {
    const SERVED: [&str; 16] = [
        "9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "fuse", "fuseblk", "gfs2", "gpfs", "lustre",
        "nfs", "nfs4", "ocfs2", "smb3",
    ];
    SERVED.contains(&kind) || kind.starts_with("fuse.")
}

/// Looks at the sources of `mounts`.
///
/// # Errors
/// [`Error::Path`] with the first one that does not respond within 3 s. One that is missing is none of them: that is
/// found out when it is mounted.
pub fn check(mounts: &[HostMount], host: &Mounts) -> Result<(), Error> {
    let deadline = Instant::now() + DEADLINE;
    for mount in mounts.iter().filter(|mount| may_wait(&mount.source, host)) {
        let left = deadline.saturating_duration_since(Instant::now());
        look_at(&mount.source, left).map_err(|source| Error::Path {
            what: format!(
                "{}: its file system does not respond, is its server down?",
                mount.source.display()
            ),
            source,
        })?;
    }
    Ok(())
}

/// Whether looking at `source` may wait for a server.
fn may_wait(source: &Path, host: &Mounts) -> bool {
    let mut served = host.served().peekable();
    if served.peek().is_none() {
        return false;
    }
    let goes_up = source.components().any(|part| part == Component::ParentDir);
    if goes_up || served.any(|mount_point| source.starts_with(mount_point)) {
        return true;
    }
    // No component is on such a mount, unless a link leads there.
    let plain = openat2(
        CWD,
        source,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    );
    plain.is_err()
}

fn look_at(source: &Path, deadline: Duration) -> std::io::Result<()> {
    let looked = sys::in_child_blocking(deadline, || {
        // An error is found again when the source is mounted.
        let _ = stat(source);
        Ok(())
    });
    looked?.map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_that_a_server_may_have_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join("plain")).unwrap();
        std::os::unix::fs::symlink("plain", path.join("link")).unwrap();
        let waits = |host: &str, name: &str| may_wait(&path.join(name), &Mounts::parse(host));
        let local = "1 0 8:1 / / rw - ext4 /dev/vda rw\n";
        let served = |at: &str| format!("{local}2 1 0:2 / {at} rw shared:1 - nfs4 server:/ rw\n");
        assert!(!waits(local, "plain") && !waits(local, "link") && !waits(local, "missing"));
        assert!(!waits(&served("/elsewhere"), "plain"));
        assert!(waits(&served("/elsewhere"), "../elsewhere/file"));
        assert!(waits(&served("/elsewhere"), "link"));
        assert!(waits(&served(&path.display().to_string()), "plain"));
        let fuse = local.replace("ext4", "fuse.sshfs");
        assert!(waits(&fuse, "plain"));
    }

    #[test]
    fn a_source_that_responds_passes_and_so_does_one_that_is_missing() {
        look_at(Path::new("/"), DEADLINE).unwrap();
        look_at(Path::new("/nowhere"), DEADLINE).unwrap();
    }
}
