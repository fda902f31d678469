//! Loop devices of the host: block devices whose content is a file. Used by tests of disks and of volumes; never
//! mounts one.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::containerd::ctr::{Output, output};

/// A loop device; freed when dropped.
pub struct LoopDevice {
    /// Its device node, such as "/dev/loop0".
    pub node: String,
    /// Its number, major and minor.
    pub number: (u32, u32),
}

impl LoopDevice {
    /// Makes one for `file`.
    ///
    /// # Errors
    /// If the module or losetup fails.
    pub fn new(file: &Path) -> Result<Self> {
        load_module()?;
        let mut setup = Command::new("losetup");
        setup.args(["--find", "--show"]).arg(file);
        let node = output(setup)?.success().context("losetup")?;
        let node = node.trim().to_owned();
        let number = fs::metadata(&node)?.rdev();
        Ok(Self {
            node,
            number: (rustix::fs::major(number), rustix::fs::minor(number)),
        })
    }

    /// Adds it to the container of `spec` as `path`, with a rule for `access`.
    pub fn add(&self, spec: &mut Value, path: &str, access: &str) {
        let (major, minor) = self.number;
        let device = json!({"type": "b", "path": path, "major": major, "minor": minor});
        let rule = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access});
        push(&mut spec["linux"]["devices"], device);
        push(&mut spec["linux"]["resources"]["devices"], rule);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut detach = Command::new("losetup");
        detach.arg("--detach").arg(&self.node);
        if let Err(error) = output(detach).and_then(Output::success) {
            eprintln!("losetup --detach {}: {error:#}", self.node);
        }
    }
}

fn push(list: &mut Value, element: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(element),
        None => *list = json!([element]),
    }
}

/// Loads the kernel's module for loop devices, unless it is there.
///
/// # Errors
/// If modprobe fails.
pub fn load_module() -> Result<()> {
    if Path::new("/dev/loop-control").exists() {
        return Ok(());
    }
    let mut load = Command::new("modprobe");
    load.arg("loop");
    output(load)?.success().context("loading the module loop")?;
    Ok(())
}
