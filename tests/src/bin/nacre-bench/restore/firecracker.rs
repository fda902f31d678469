//! Firecracker as a peer. A boot has all in a configuration file and no API, a restore is a request to the API: the
//! shortest way of each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use nacre_protocol::guest::TEMPLATE;
use nacre_protocol::vsock::GUEST_CID;
use serde_json::{Value, json};

use super::http::request;
use super::sockets::Sockets;
use super::{Differences, Image, PARAMETERS, Vmm};

/// What is not alike, for the rows' notes.
pub const DIFFERENCES: Differences = Differences {
    machine: "Firecracker with --enable-pci; it also has a PIC, a PIT and a keyboard controller; it has no jail, no \
        shared tree, and panic=0",
    restore: "by a request to its API, with the memory's file mapped, as nacre-vmm has it",
};

/// Firecracker, and a saved guest of its.
pub struct Firecracker {
    program: PathBuf,
    image: Image,
    sockets: Sockets,
}

impl Firecracker {
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
        let command = this.boot_command(&format!("{PARAMETERS} {TEMPLATE}"), true)?;
        let mut running = sockets.start(command)?;
        // Open until the guest is saved.
        let _stream = sockets.accept_prepared(&mut running)?;
        sockets.request("PATCH", "/vm", Some(&json!({"state": "Paused"})))?;
        let files = json!({
            "snapshot_type": "Full", "snapshot_path": sockets.path("state"), "mem_file_path": sockets.path("memory"),
        });
        sockets.request("PUT", "/snapshot/create", Some(&files))?;
        Ok(this)
    }

    /// Firecracker, which is to boot a guest whose kernel has these parameters.
    fn boot_command(&self, parameters: &str, with_api: bool) -> Result<Command> {
        let file = self.sockets.path("config");
        let text = config(&self.image, parameters, &self.sockets.vsock()).to_string();
        fs::write(&file, text)?;
        let mut command = self.command()?;
        command.arg("--config-file").arg(file);
        if with_api {
            command.arg("--api-sock").arg(self.sockets.api());
        } else {
            command.arg("--no-api");
        }
        Ok(command)
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.sockets.command(&self.program)?;
        command.arg("--enable-pci");
        Ok(command)
    }
}

/// The configuration of a guest.
fn config(image: &Image, parameters: &str, vsock: &Path) -> Value {
    json!({
        "boot-source": {
            "kernel_image_path": image.kernel, "initrd_path": image.initramfs, "boot_args": parameters,
        },
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 512},
        "vsock": {"guest_cid": GUEST_CID, "uds_path": vsock},
    })
}

impl Vmm for Firecracker {
    fn boot(&self) -> Result<f64> {
        self.sockets.time(self.boot_command(PARAMETERS, false)?)
    }

    fn restore(&self) -> Result<f64> {
        let snapshot = json!({
            "snapshot_path": self.sockets.path("state"),
            "mem_backend": {"backend_type": "File", "backend_path": self.sockets.path("memory")},
            "resume_vm": true,
        });
        let started = Instant::now();
        let mut command = self.command()?;
        command.arg("--api-sock").arg(self.sockets.api());
        let (mut running, api) = self.sockets.start_with_api(command)?;
        request(api, "PUT", "/snapshot/load", Some(&snapshot))?;
        self.sockets.until_connected(started, &mut running)
    }
}
