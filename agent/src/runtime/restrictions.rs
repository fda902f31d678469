//! Applies what the host's mounts do not allow (noexec, nosuid, nodev, nosymfollow) to the mounts by which the guest
//! sees them, in a helper and before it creates a container: the container's mounts are copies, and in a user
//! namespace it cannot take the flags off.

use std::mem::size_of;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use libcontainer::syscall::SyscallError;
use libcontainer::syscall::linux::MountAttr;
use libcontainer::syscall::syscall::create_syscall;
use oci_spec::runtime::Spec;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

/// A restricted mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restriction {
    /// Where the guest sees it.
    pub path: PathBuf,
    /// Mount options.
    pub options: Vec<String>,
}

/// Applies `restrictions`. A file that is mounted is part of the guest's mount above it, so that `spec`, which binds
/// it into the container, gets its options.
///
/// # Errors
/// The mount that failed, and why.
pub fn apply(restrictions: &[Restriction], spec: &mut Spec) -> Result<(), String> {
    for restriction in restrictions {
        let failed = |reason: &dyn std::fmt::Display| {
            let options = restriction.options.join(",");
            format!("setting {options} on {}: {reason}", restriction.path.display())
        };
        let attributes = attributes(&restriction.options).map_err(|name| failed(&name))?;
        match set_on_mount(&restriction.path, attributes) {
            // A file; or a mount that the host has hidden by another one.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => {}
            Err(error) => return Err(failed(&error)),
        }
        add_options(spec, restriction);
    }
    Ok(())
}

/// The flags of mount_setattr(2) for `options`. The error is an unknown option.
fn attributes(options: &[String]) -> Result<u64, String> {
    options.iter().try_fold(0, |all, option| {
        let flag = match option.as_str() {
            "noexec" => libc::MOUNT_ATTR_NOEXEC,
            "nosuid" => libc::MOUNT_ATTR_NOSUID,
            "nodev" => libc::MOUNT_ATTR_NODEV,
            "nosymfollow" => libc::MOUNT_ATTR_NOSYMFOLLOW,
            other => return Err(format!("unknown option {other:?}")),
        };
        Ok(all | flag)
    })
}

/// EINVAL if there is no mount at `path`.
fn set_on_mount(path: &Path, attributes: u64) -> Result<(), Errno> {
    // Not a clone; the kernel makes the mount of a directory of virtio-fs now.
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let change = MountAttr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH.unsigned_abs();
    let changed = create_syscall().mount_setattr(
        mount.as_fd(),
        Path::new(""),
        flags,
        &change,
        size_of::<MountAttr>(),
    );
    match changed {
        Err(SyscallError::Nix(errno)) => Err(Errno::from_raw_os_error(errno as i32)),
        Err(_) => Err(Errno::IO),
        Ok(()) => Ok(()),
    }
}

fn add_options(spec: &mut Spec, restriction: &Restriction) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.source().as_ref() != Some(&restriction.path) {
            continue;
        }
        let mut options = mount.options().clone().unwrap_or_default();
        options.extend(restriction.options.iter().map(|option| match option.as_str() {
            // libcontainer knows only the recursive form.
            "nosymfollow" => "rnosymfollow".to_owned(),
            other => other.to_owned(),
        }));
        mount.set_options(Some(options));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restriction(path: &str, options: &[&str]) -> Restriction {
        Restriction {
            path: path.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn the_mount_of_a_source_gets_its_options() {
        let mut spec: Spec = serde_json::from_value(json!({"ociVersion": "1.0", "mounts": [
            {"destination": "/a", "type": "bind", "source": "/no/such/file", "options": ["rbind", "exec"]},
            {"destination": "/b", "type": "bind", "source": "/no/such"}]}))
        .unwrap();
        let restrictions = [restriction("/no/such/file", &["noexec", "nosymfollow"])];
        apply(&restrictions, &mut spec).unwrap();
        let options = |index: usize| spec.mounts().as_ref().unwrap()[index].options().clone();
        assert_eq!(options(0).unwrap(), ["rbind", "exec", "noexec", "rnosymfollow"]);
        assert_eq!(options(1), None);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let error = apply(&[restriction("/x", &["noatime"])], &mut Spec::default()).unwrap_err();
        assert!(error.contains("/x: unknown option \"noatime\""), "{error}");
    }
}
