//! A build of Nacre, whose `nacre-vmm` runs without a shim.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use nacre_tests::guests::{Build, until_connected};
use tempfile::TempDir;

use super::Vmm;

/// Guests of a build: those that boot, and a saved one.
pub struct Guests {
    build: Build,
    snapshot: PathBuf,
    /// The tree that a guest shares, as a pod does.
    shared: PathBuf,
    _directory: TempDir,
}

impl Guests {
    /// Boots the installed guest image of the build at `prefix`, and saves it when its agent is ready.
    ///
    /// # Errors
    /// If it is not saved.
    pub fn save(prefix: &Path) -> Result<Self> {
        let build = Build::at(prefix)?;
        let build = build.with_initramfs(build.agent_initramfs());
        let directory = tempfile::tempdir()?;
        let snapshot = directory.path().join("snapshot");
        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared)?;
        build.run_vmm(&["--save", &snapshot.to_string_lossy()])?;
        Ok(Self {
            build,
            snapshot,
            shared,
            _directory: directory,
        })
    }

    /// nacre-vmm, which ends when the agent has connected.
    fn vmm(&self) -> Command {
        let mut command = self.build.vmm(&["--until-ready", "--share"]);
        command.arg(&self.shared);
        command
    }
}

/// Milliseconds from the execution of `vmm` until the agent connects.
fn milliseconds(vmm: Command) -> Result<f64> {
    let (connected, _) = until_connected(vmm)?;
    Ok(connected.as_secs_f64() * 1e3)
}

impl Vmm for Guests {
    fn boot(&self) -> Result<f64> {
        milliseconds(self.vmm())
    }

    fn restore(&self) -> Result<f64> {
        let mut vmm = self.vmm();
        vmm.arg("--restore").arg(&self.snapshot);
        milliseconds(vmm)
    }
}
