//! Finds devices that were attached to the VM since its boot. `network` and `memory` call it in the requests
//! that need a new device, `service` when the engine has had the devices attached that every VM has; never
//! called before the VMM has attached a device.

use crate::error::Error;

const RESCAN: &str = "/sys/bus/pci/rescan";

/// Makes the kernel look for new PCI devices. When this returns, their drivers have them: a network device
/// has its link, and virtio-mem begins to plug in what is requested.
pub fn find_attached() -> Result<(), Error> {
    std::fs::write(RESCAN, "1").map_err(Error::file("writing", RESCAN))
}
