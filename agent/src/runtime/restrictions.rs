//! Applies what the host's mounts do not allow (noexec, nosuid, nodev, nosymfollow) to the mounts by which
//! the guest sees them, in the agent's mount namespace and before a container is created: the container's
//! mounts are copies, and in a user namespace it cannot take the flags off.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount_attributes::Change;

/// A restricted mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restriction {
    /// Where the guest sees it.
    pub path: PathBuf,
    /// Mount options.
    pub options: Vec<String>,
}

/// Applies `restrictions`. A file that is mounted is part of the guest's mount above it, so that `spec`,
/// which binds it into the container, gets its options.
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
            Ok(()) => {}
            // A file; or a mount that the host has hidden by another one.
            Err(error) if is_hidden(&error) => {}
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

fn is_hidden(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::EINVAL)
    )
}

/// EINVAL if there is no mount at `path`.
fn set_on_mount(path: &Path, attributes: u64) -> io::Result<()> {
    // Not a clone; the kernel makes the mount of a directory of virtio-fs now.
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    Change::set(attributes).apply(mount.as_fd(), false)
}

fn add_options(spec: &mut Spec, restriction: &Restriction) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.source().as_ref() != Some(&restriction.path) {
            continue;
        }
        let mut options = mount.options().clone().unwrap_or_default();
        for option in &restriction.options {
            // Also as an option for the mounts below: an option such as rexec, which is applied last, would
            // take it off again.
            options.extend([option.clone(), format!("r{option}")]);
        }
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
        assert_eq!(
            options(0).unwrap(),
            [
                "rbind",
                "exec",
                "noexec",
                "rnoexec",
                "nosymfollow",
                "rnosymfollow"
            ]
        );
        assert_eq!(options(1), None);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let error = apply(&[restriction("/x", &["noatime"])], &mut Spec::default()).unwrap_err();
        assert!(error.contains("/x: unknown option \"noatime\""), "{error}");
    }
}
