//! What containerd's snapshotters of images need: a scratch image for blockfile, and kernel modules that containerd
//! expects to be loaded. Called by `containerd` before it starts containerd; never makes a snapshot.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::containerd::DIRECTORY;
use super::run_quietly;
use crate::wire::Snapshotter;

const ALL: [Snapshotter; 2] = [Snapshotter::Blockfile, Snapshotter::Erofs];

/// The size of a snapshot, bytes. containerd copies it for each layer and each container, to a tmpfs without holes.
const SNAPSHOT_SIZE: u64 = 128 << 20;

/// The plugins of the snapshotters that are not `used`, for containerd's `disabled_plugins`.
pub fn unused_plugins(used: Option<Snapshotter>) -> String {
    ALL.into_iter()
        .filter(|snapshotter| used != Some(*snapshotter))
        .map(|snapshotter| format!("  \"{}\",\n", plugin(snapshotter)))
        .collect()
}

/// The sections of containerd's configuration for the snapshotter. `ctr` of 2.x has the transfer service unpack images,
/// which does so for configured snapshotters only.
pub fn configuration(used: Option<Snapshotter>) -> String {
    let Some(snapshotter) = used else {
        return String::new();
    };
    let mut text = format!(
        "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux/amd64\"\n  \
         snapshotter = \"{}\"\n  differ = \"walking\"\n",
        snapshotter.name()
    );
    if snapshotter == Snapshotter::Blockfile {
        text.push_str(&format!(
            "[plugins.\"{}\"]\n  scratch_file = \"{}\"\n  fs_type = \"ext4\"\n",
            plugin(snapshotter),
            scratch_file().display()
        ));
    }
    text
}

fn plugin(snapshotter: Snapshotter) -> String {
    format!("io.containerd.snapshotter.v1.{}", snapshotter.name())
}

fn scratch_file() -> PathBuf {
    Path::new(DIRECTORY).join("scratch.ext4")
}

/// Makes what the snapshotter needs before containerd starts.
///
/// # Errors
/// If a program fails.
pub fn prepare(used: Option<Snapshotter>) -> Result<()> {
    match used {
        Some(Snapshotter::Blockfile) => {
            // For the layers of an image, which containerd unpacks itself.
            run_quietly("modprobe", &["-a", "loop", "ext4"])?;
            let scratch = scratch_file();
            File::create_new(&scratch)?.set_len(SNAPSHOT_SIZE)?;
            let scratch = scratch.to_string_lossy();
            // Blocks of 4 KiB, as a larger image would have.
            run_quietly(
                "mkfs.ext4",
                &["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", &scratch],
            )
        }
        Some(Snapshotter::Erofs) => run_quietly("modprobe", &["-a", "loop", "erofs"]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_snapshotter_that_is_used_is_configured() {
        let unused = unused_plugins(Some(Snapshotter::Blockfile));
        assert!(
            !unused.contains("blockfile") && unused.contains("erofs"),
            "{unused}"
        );
        assert!(configuration(Some(Snapshotter::Blockfile)).contains("scratch_file"));
        assert!(configuration(Some(Snapshotter::Erofs)).contains("snapshotter = \"erofs\""));
        assert_eq!(unused_plugins(None).matches("snapshotter").count(), 2);
        assert_eq!(configuration(None), "");
    }
}
