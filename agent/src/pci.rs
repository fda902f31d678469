//! Finds devices that were attached to the VM since its boot. `network`, `disk` and `memory` call it in the requests
//! that need a new device, `service` when the engine has had the devices attached that every VM has; never
//! called before the VMM has attached a device.

use tokio::sync::{Mutex, MutexGuard};

use crate::error::Error;

const RESCAN: &str = "/sys/bus/pci/rescan";

/// Held while devices are probed, and while vCPUs are brought online or offline, which the kernel refuses with EBUSY
/// as long as it probes a PCI device (`pci_call_probe` disables the hotplug of CPUs).
static PROBING: Mutex<()> = Mutex::const_new(());

/// Makes the kernel look for new PCI devices. When this returns, their drivers have them: a network device
/// has its link, and virtio-mem begins to plug in what is requested.
pub async fn find_attached() -> Result<(), Error> {
    let _probing = PROBING.lock().await;
    std::fs::write(RESCAN, "1").map_err(Error::file("writing", RESCAN))
}

/// Waits until no device is probed; none is while the result lives.
pub async fn without_probing() -> MutexGuard<'static, ()> {
    PROBING.lock().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn no_device_is_probed_while_vcpus_come_online() {
        let _bringing = without_probing().await;
        let found = tokio::time::timeout(Duration::ZERO, find_attached()).await;
        assert!(found.is_err(), "{found:?}");
    }
}
