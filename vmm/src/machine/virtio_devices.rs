//! Which virtio devices a VM has, and how each gets its window, its interrupt line and its notifications. Called by
//! the machine's steps, while the process has no thread that the guest could reach.

use std::sync::Arc;

use super::ending::Ending;
use super::{Error, layout};
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::kvm::vcpu::Board;
use crate::transport::mmio::{INTERRUPT_ACK, MmioTransport, QUEUE_NOTIFY, USED_BUFFERS, Wires};
use crate::virtio::fs::{self, Fs};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{self, Vsock};
use crate::virtio::{Env, Memory, Report, VirtioDevice};

/// What the devices work on.
pub struct Sources {
    /// Where the guest's connections go.
    pub vsock: vsock::Config,
    /// The tree that the guest shares; by hand there may be none.
    pub files: Option<fs::Config>,
}

/// What every device's worker gets: its jail, and whom it tells of its end.
pub(super) fn env(confinement: &Confinement, ending: &Ending) -> Env {
    let ending = ending.clone();
    Env {
        confinement: confinement.clone(),
        report: Arc::new(move |report| match report {
            // Bounded by the worker; the guest's driver is told to reset the device, the VM goes on.
            Report::Stopped { device, reason } => eprintln!("nacre-vmm: virtio {device} stopped: {reason}"),
            Report::Died { device, reason } => ending.fault(format!("virtio {device}"), reason),
        }),
    }
}

/// Makes the devices, in the order of their windows.
pub(super) fn make(env: &Env, sources: Sources) -> Result<Vec<Box<dyn VirtioDevice>>, Error> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(Vsock::new(sources.vsock, env)?),
        Box::new(Rng::new(env)?),
    ];
    if let Some(files) = sources.files {
        devices.push(Box::new(Fs::new(files, env)?));
    }
    Ok(devices)
}

/// Gives each of `devices` its place on the board; gives their number.
pub(super) fn plug(
    devices: Vec<Box<dyn VirtioDevice>>,
    vm: &Vm,
    memory: &Arc<Memory>,
    board: &mut Board,
) -> Result<u8, Error> {
    let count = u8::try_from(devices.len())
        .ok()
        .filter(|count| *count <= layout::MAX_VIRTIO);
    let count = count.ok_or(Error::TooManyDevices(devices.len()))?;
    for (index, device) in (0..count).zip(devices) {
        let window = layout::mmio_window(index);
        let queues =
            u32::try_from(device.queue_sizes().len()).map_err(|_| Error::TooManyDevices(usize::MAX))?;
        let doorbells: Result<Vec<_>, _> = (0..queues)
            .map(|queue| vm.doorbell(window.saturating_add(QUEUE_NOTIFY), queue))
            .collect();
        let wires = Wires {
            line: vm.line(layout::virtio_gsi(index))?,
            doorbells: doorbells?,
        };
        vm.swallow(window.saturating_add(INTERRUPT_ACK), USED_BUFFERS)?;
        let name = device.name();
        let transport = MmioTransport::new(device, Arc::clone(memory), wires);
        board
            .mmio
            .insert(name, window, layout::MMIO_WINDOW, Box::new(transport))?;
    }
    Ok(count)
}
