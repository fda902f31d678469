//! The disks of a running VM: adds one for the first container that uses it, and removes it after the last. The
//! flows of Create and Delete call it. One disk is added or removed at a time; never looks into a disk.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use nacre_protocol::control::{Attachments, DeviceConfig, Request};
use tokio::sync::Mutex;

use super::disk_file::{self, DiskFile, FileId};
use super::requests::{RequestError, Requests};
use crate::guest::{CallError, Guest};
use crate::log;
use crate::mount::Disk;

/// Queues of a disk. One worker serves all queues of a disk, so that more would not help.
const QUEUES: u16 = 1;

/// Why a VM does not get a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] disk_file::Error),
    #[error("adding {disk} to the VM: {source}")]
    Attach { disk: String, source: RequestError },
}

/// The disks of a VM.
#[derive(Debug)]
pub struct Disks {
    requests: Arc<Requests>,
    /// Locked for as long as a disk is added or removed.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next_serial: u64,
    attached: Vec<Attached>,
}

#[derive(Debug)]
struct Attached {
    file: FileId,
    read_only: bool,
    serial: String,
    slot: u8,
    /// The ids of the containers that use it.
    users: BTreeSet<String>,
}

impl Disks {
    pub(super) fn new(requests: Arc<Requests>) -> Self {
        Self {
            requests,
            table: Mutex::default(),
        }
    }

    /// Adds `disk` to the VM for `container`, unless the VM has it already, and returns its serial number. A disk
    /// that one container may write and another may not is two disks.
    ///
    /// # Errors
    /// If the host does not have it, or the VM can't get it.
    pub async fn attach(&self, container: &str, disk: &Disk) -> Result<String, Error> {
        let file = DiskFile::open(disk)?;
        let mut table = self.table.lock().await;
        let known = table
            .attached
            .iter_mut()
            .find(|known| known.file == file.id && known.read_only == disk.read_only);
        if let Some(known) = known {
            known.users.insert(container.to_owned());
            return Ok(known.serial.clone());
        }
        let serial = format!("nacre-{}", table.next_serial);
        table.next_serial = table.next_serial.wrapping_add(1);
        let slot = self.send_attach(&file, disk.read_only, &serial).await;
        let slot = slot.map_err(|source| Error::Attach {
            disk: disk.source.to_string(),
            source,
        })?;
        table.attached.push(Attached {
            file: file.id,
            read_only: disk.read_only,
            serial: serial.clone(),
            slot,
            users: BTreeSet::from([container.to_owned()]),
        });
        Ok(serial)
    }

    async fn send_attach(&self, file: &DiskFile, read_only: bool, serial: &str) -> Result<u8, RequestError> {
        let mut attachments = Attachments::default();
        let device = DeviceConfig::Blk {
            file: attachments.add(file.file.as_fd()),
            read_only,
            serial: serial.to_owned(),
            queues: QUEUES,
        };
        self.requests.attach(device, &attachments).await
    }

    /// Removes from the VM the disks that only `container` used: first from the guest, which writes what it has
    /// cached of them. A failure is logged, and the disk then stays until the VM ends.
    pub async fn release(&self, guest: Option<&Guest>, container: &str) {
        let mut table = self.table.lock().await;
        for disk in &mut table.attached {
            disk.users.remove(container);
        }
        let (used, unused): (Vec<_>, Vec<_>) = std::mem::take(&mut table.attached)
            .into_iter()
            .partition(|disk| !disk.users.is_empty());
        table.attached = used;
        for disk in unused {
            match self.remove(guest, &disk).await {
                // Everything of the VM is gone.
                Ok(())
                | Err(RemoveError::Guest(CallError::Lost(_)))
                | Err(RemoveError::Vmm(RequestError::Ended)) => {}
                Err(error) => {
                    log::error(format_args!(
                        "removing disk {} of {container}: {error}",
                        disk.serial
                    ));
                    table.attached.push(disk);
                }
            }
        }
    }

    async fn remove(&self, guest: Option<&Guest>, disk: &Attached) -> Result<(), RemoveError> {
        if let Some(guest) = guest {
            guest
                .remove_disk(&disk.serial)
                .await
                .map_err(RemoveError::Guest)?;
        }
        let request = Request::Detach { slot: disk.slot };
        self.requests.carry_out(request).await.map_err(RemoveError::Vmm)
    }
}

#[derive(Debug, thiserror::Error)]
enum RemoveError {
    #[error("the guest: {0:?}")]
    Guest(CallError),
    #[error(transparent)]
    Vmm(RequestError),
}
