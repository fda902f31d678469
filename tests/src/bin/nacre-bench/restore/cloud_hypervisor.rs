//! Cloud Hypervisor as a peer, version 52 or later: it resumes a guest that it has restored, and resets the guest's
//! vsock connections. A boot and a restore are each a command line without an API; only the guest that is saved has one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use nacre_protocol::guest::TEMPLATE;
use nacre_protocol::vsock::GUEST_CID;
use serde_json::json;

use super::sockets::Sockets;
use super::{Differences, Image, PARAMETERS, Vmm};

/// The memory of a guest that boots.
const MEMORY: &str = "size=512M";
/// The memory of the guest that is saved, and so of those restored. Of shared memory, Cloud Hypervisor saves only
/// the pages that were touched, so a restore reads less. A boot is slower in it.
const SAVED_MEMORY: &str = "size=512M,shared=on";
/// What is not alike, for the rows' notes.
pub const DIFFERENCES: Differences = Differences {
    machine: "Cloud Hypervisor also has virtio-rng, a CMOS, debug ports and ACPI hotplug controllers; it has no jail, \
        no shared tree, and panic=0",
    restore: "by --restore with resume=true and memory_restore_mode=copy: it reads the memory's touched pages \
        into shared memory, where nacre-vmm maps a file",
};

/// Cloud Hypervisor, and a saved guest of its.
pub struct CloudHypervisor {
    program: PathBuf,
    image: Image,
    sockets: Sockets,
}

impl CloudHypervisor {
    /// Boots a guest and saves it when its agent is ready.
    ///
    /// # Errors
    /// If `program` is not there, or the guest is not saved.
    pub fn save(program: &Path, image: &Image) -> Result<Self> {
        let this = Self {
            program: program.to_owned(),
            image: image.clone(),
            sockets: Sockets::create()?,
        };
        let sockets = &this.sockets;
        let mut command = this.boot_command(&format!("{PARAMETERS} {TEMPLATE}"), SAVED_MEMORY)?;
        command.arg("--api-socket").arg(sockets.api());
        let mut running = sockets.start(command)?;
        // Open until the guest is saved: its device remembers which connections to reset.
        let _stream = sockets.accept_prepared(&mut running)?;
        sockets.request("PUT", "/api/v1/vm.pause", None)?;
        fs::create_dir(sockets.path("snapshot"))?;
        let destination = json!({"destination_url": this.snapshot()});
        sockets.request("PUT", "/api/v1/vm.snapshot", Some(&destination))?;
        Ok(this)
    }

    /// The URL of the snapshot's directory.
    fn snapshot(&self) -> String {
        format!("file://{}", self.sockets.path("snapshot").display())
    }

    /// Cloud Hypervisor, which is to boot a guest that has this memory, and whose kernel has these parameters.
    fn boot_command(&self, parameters: &str, memory: &str) -> Result<Command> {
        let mut command = self.sockets.command(&self.program)?;
        command
            .arg("--kernel")
            .arg(&self.image.kernel)
            .arg("--initramfs")
            .arg(&self.image.initramfs)
            .args(["--cmdline", parameters])
            .args(["--cpus", "boot=1", "--memory", memory])
            // A serial port as the other machines have, whose output is in the log.
            .args(["--serial", "tty", "--console", "off"])
            .arg("--vsock")
            .arg(format!(
                "cid={GUEST_CID},socket={}",
                self.sockets.vsock().display()
            ));
        Ok(command)
    }
}

impl Vmm for CloudHypervisor {
    fn boot(&self) -> Result<f64> {
        self.sockets.time(self.boot_command(PARAMETERS, MEMORY)?)
    }

    fn restore(&self) -> Result<f64> {
        let mut command = self.sockets.command(&self.program)?;
        command.arg("--restore").arg(format!(
            "source_url={},resume=true,memory_restore_mode=copy",
            self.snapshot()
        ));
        self.sockets.time(command)
    }
}
