//! virtio-blk (virtio 1.2, 5.2): a disk of the guest, which is a regular file or a block device of the host.
//! Created by [`crate::shim_managed`] and the standalone mode, served by a worker. It opens no file: it gets an
//! open one.
//!
//! The way of a write: [`request`] parses the chain of descriptors, [`engine`] keeps it until it has ended, and
//! [`ring`] (or [`blocking`]) has the host write from the guest's pages into the file, through the host's page
//! cache. A flush makes what was written stable. Nothing else copies or caches data.
//!
//! Several requests are in progress at once, and end in any order. Before a pause and a reset, all of them end.

mod blocking;
mod disk;
mod engine;
mod request;
mod ring;
#[cfg(test)]
pub(crate) mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk as bits;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use self::disk::Disk;
pub use self::disk::DiskError;
use self::engine::{Ended, Engine, Origin};
use self::request::{
    ID_BYTES, Limits, MAX_DESCRIPTORS, MAX_DISCARD_SECTORS, Operation, Parsed, SECTOR, Status,
};
use super::worker::{ActiveDevice, Chain, DataPath, Fault};
use super::{Device, DeviceError, Env, Spec, feature};
use crate::jail::calls::blk::PROFILE;
use crate::log::LimitedLog;
use crate::memory::Memory;

/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 8;
const QUEUE_SIZE: u16 = 256;
/// Token of the engine's completions.
const COMPLETIONS: u64 = 0;
/// fallocate(2): bytes become a hole, or zeros that stay allocated; the file keeps its size.
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Feature bits (virtio 1.2, 5.2.3) that are offered for every disk.
const FEATURES: [u32; 5] = [
    bits::VIRTIO_BLK_F_SEG_MAX,
    bits::VIRTIO_BLK_F_BLK_SIZE,
    bits::VIRTIO_BLK_F_TOPOLOGY,
    bits::VIRTIO_BLK_F_FLUSH,
    bits::VIRTIO_BLK_F_MQ,
];
/// Those for a disk that can be written.
const WRITE_FEATURES: [u32; 2] = [bits::VIRTIO_BLK_F_DISCARD, bits::VIRTIO_BLK_F_WRITE_ZEROES];

/// The device's configuration, checked.
#[derive(Debug)]
pub struct Config {
    disk: Disk,
    /// See [`Config::new`].
    id: [u8; ID_BYTES],
    queues: u16,
    /// Whether io_uring is used if the host has it.
    pub io_uring: bool,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be a disk.
    #[error("blk: {0}")]
    Disk(#[from] DiskError),
    /// The id is too long, or has other characters than letters, digits and `-_.`.
    #[error("blk: id {0:?}: expected at most {ID_BYTES} letters, digits or characters of -_.")]
    Id(String),
    /// The number of queues is out of range.
    #[error("blk: expected 1 to {MAX_QUEUES} queues, got {0}")]
    Queues(u16),
}

impl Config {
    /// Checks the values. `id` is what the guest finds as `/sys/block/<disk>/serial`; `file` must be open for
    /// reading, and for writing unless `is_read_only`.
    ///
    /// # Errors
    /// [`ConfigError`] with the first value that is refused.
    pub fn new(file: OwnedFd, is_read_only: bool, id: &str, queues: u16) -> Result<Self, ConfigError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let mut padded = [0; ID_BYTES];
        match padded.get_mut(..id.len()) {
            Some(start) if id.bytes().all(is_allowed) => start.copy_from_slice(id.as_bytes()),
            _ => return Err(ConfigError::Id(id.to_owned())),
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(ConfigError::Queues(queues));
        }
        Ok(Self {
            disk: Disk::new(file, is_read_only)?,
            id: padded,
            queues,
            io_uring: true,
        })
    }

    /// The configuration space (virtio 1.2, 5.2.4).
    fn space(&self) -> Vec<u8> {
        let Disk {
            sectors,
            logical_block,
            physical_block,
            ..
        } = self.disk;
        let exponent = physical_block.checked_div(logical_block).unwrap_or(1).ilog2();
        let alignment = u32::try_from(SECTOR)
            .ok()
            .and_then(|sector| logical_block.checked_div(sector));
        // The header and the status of a request have descriptors of their own.
        let segments = u32::try_from(MAX_DESCRIPTORS.saturating_sub(2)).unwrap_or_default();
        [
            &sectors.to_le_bytes()[..],
            // size_max, which is not offered
            &[0; 4],
            &segments.to_le_bytes(),
            // geometry, which is not offered
            &[0; 4],
            &logical_block.to_le_bytes(),
            &[u8::try_from(exponent).unwrap_or_default(), 0],
            // min_io_size and opt_io_size: no advice; writeback, which is not offered
            &[0; 8],
            &self.queues.to_le_bytes(),
            &MAX_DISCARD_SECTORS.to_le_bytes(),
            &1_u32.to_le_bytes(),
            &alignment.unwrap_or(1).to_le_bytes(),
            &MAX_DISCARD_SECTORS.to_le_bytes(),
            &1_u32.to_le_bytes(),
            // write_zeroes_may_unmap
            &[1, 0, 0, 0],
        ]
        .concat()
    }

    fn features(&self) -> u64 {
        let for_access: &[u32] = if self.disk.is_read_only {
            &[bits::VIRTIO_BLK_F_RO]
        } else {
            &WRITE_FEATURES
        };
        let all = FEATURES.iter().chain(for_access);
        all.fold(0, |features, bit| features | feature(*bit))
    }
}

/// Creates the device and spawns its worker, which serves all of its queues.
///
/// # Errors
/// [`DeviceError`] if the worker can't be spawned.
pub fn spawn(config: Config, env: &Env) -> Result<Device, DeviceError> {
    let spec = Spec {
        name: "blk",
        device_type: VIRTIO_ID_BLOCK,
        queue_sizes: vec![QUEUE_SIZE; usize::from(config.queues)],
        features: config.features(),
        config: config.space(),
        config_writable: 0..0,
        profile: &PROFILE,
    };
    Device::spawn(spec, env, move || {
        let limits = Limits {
            sectors: config.disk.sectors,
            is_read_only: config.disk.is_read_only,
        };
        let requests = QUEUE_SIZE.saturating_mul(config.queues);
        Ok(BlkDataPath {
            engine: Engine::new(config.disk, requests, config.io_uring),
            limits,
            id: config.id,
            is_stalled: false,
            log: LimitedLog::new(),
        })
    })
}

struct BlkDataPath {
    engine: Engine,
    limits: Limits,
    id: [u8; ID_BYTES],
    /// All slots of the engine were taken when a queue had another chain.
    is_stalled: bool,
    log: LimitedLog,
}

impl DataPath for BlkDataPath {
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let is_writethrough = active.features & feature(bits::VIRTIO_BLK_F_FLUSH) == 0;
        self.engine.set_writethrough(is_writethrough);
        self.is_stalled = false;
        if let Some(completions) = self.engine.completions() {
            active
                .poller
                .add(&completions, COMPLETIONS, EventSet::IN)
                .map_err(Fault::io("watch the disk's completions"))?;
        }
        Ok(())
    }

    /// Starts the available requests, submits them together, and returns those that ended at once.
    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        let mut left = active.queue_size(index);
        loop {
            active.disable_notification(index)?;
            while left > 0 && self.begin(index, active)? {
                left = left.saturating_sub(1);
            }
            self.finish(active)?;
            if left == 0 {
                return active.requeue(index);
            }
            if self.is_stalled || !active.enable_notification(index)? {
                return Ok(());
            }
        }
    }

    fn on_event(&mut self, _token: u64, _ready: EventSet, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.finish(active)
    }

    fn quiesce(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        while self.engine.wait().map_err(Fault::io("wait for the disk"))? {
            self.finish(active)?;
        }
        Ok(())
    }

    fn stop(&mut self, active: &mut ActiveDevice) {
        // What has ended is dropped: the queues are about to be taken away.
        while self.engine.wait().unwrap_or(false) {
            while matches!(self.engine.next_ended(), Ok(Some(_))) {}
        }
        if let Some(completions) = self.engine.completions() {
            // Fails if it was not added.
            let _ = active.poller.remove(&completions);
        }
    }
}

impl BlkDataPath {
    /// Starts the next request of queue `index`; false if there is none, or no slot for it.
    fn begin(&mut self, index: u16, active: &mut ActiveDevice) -> Result<bool, Fault> {
        let memory = Arc::clone(&active.memory);
        let Some((slot, data)) = self.engine.slot(&memory) else {
            self.is_stalled = true;
            return Ok(false);
        };
        let Some(chain) = active.pop(index)? else {
            return Ok(false);
        };
        let head = chain.head_index();
        let length = match request::parse(&memory, chain.clone(), self.limits, data) {
            Parsed::Request(request) => {
                self.engine.start(slot, Origin { queue: index, head }, request);
                return Ok(true);
            }
            Parsed::GetId(at) => {
                let written = write_id(&memory, chain, &self.id);
                let status = written.map_or(Status::IoError, |_| Status::Ok);
                write_status(&memory, at, status, written.unwrap_or_default())
            }
            Parsed::Refused(status, at) => write_status(&memory, at, status, 0),
            Parsed::NoStatus => {
                self.log
                    .write(|| "virtio blk: a request has no byte for its status".to_owned());
                0
            }
        };
        active.push(index, head, length)?;
        active.notify(index)?;
        Ok(true)
    }

    /// Submits what was started, and returns the requests that have ended to the driver.
    fn finish(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let mut queues = 0_u16;
        while let Some(ended) = self
            .engine
            .next_ended()
            .map_err(Fault::io("submit the disk's operations"))?
        {
            queues |= 1_u16.checked_shl(ended.origin.queue.into()).unwrap_or_default();
            self.return_to_driver(ended, active)?;
        }
        for queue in (0..MAX_QUEUES).filter(|queue| queues & 1_u16.wrapping_shl((*queue).into()) != 0) {
            active.notify(queue)?;
        }
        if queues != 0 && std::mem::take(&mut self.is_stalled) {
            for queue in 0..MAX_QUEUES {
                if active.is_ready(queue) {
                    active.requeue(queue)?;
                }
            }
        }
        Ok(())
    }

    fn return_to_driver(&self, ended: Ended, active: &mut ActiveDevice) -> Result<(), Fault> {
        let Ended {
            origin,
            request,
            result,
        } = ended;
        let status = match &result {
            Ok(()) => Status::Ok,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Status::Unsupported,
            Err(error) => {
                self.log.write(|| {
                    format!(
                        "virtio blk: {:?} of {} bytes at {}: {error}",
                        request.operation, request.length, request.offset
                    )
                });
                Status::IoError
            }
        };
        let read = if request.operation == Operation::Read && status == Status::Ok {
            u32::try_from(request.length).unwrap_or(u32::MAX)
        } else {
            0
        };
        let length = write_status(&active.memory, request.status, status, read);
        active.push(origin.queue, origin.head, length)
    }
}

/// Writes the status of a request, and returns how many bytes the driver finds written: `data` and the status.
/// Linux takes the status only if its byte is among them.
fn write_status(memory: &Memory, at: GuestAddress, status: Status, data: u32) -> u32 {
    match memory.write_obj(status.byte(), at) {
        Ok(()) => data.saturating_add(1),
        // The driver gave an address outside of its memory.
        Err(_) => 0,
    }
}

/// Writes the disk's id to the first writable bytes of `chain` and returns its length; None if a buffer is outside
/// of guest memory.
fn write_id(memory: &Memory, chain: Chain, id: &[u8; ID_BYTES]) -> Option<u32> {
    let mut left = &id[..];
    for descriptor in chain.writable().take(MAX_DESCRIPTORS) {
        let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        let (part, rest) = left.split_at(left.len().min(length));
        memory.write_slice(part, descriptor.addr()).ok()?;
        left = rest;
    }
    u32::try_from(id.len()).ok()
}
