//! virtio-mem (virtio 1.2, 5.15): memory that is plugged in while the VM runs, and unplugged again. The main
//! thread says how much ([`Plugger`]), the guest's driver chooses the blocks, and the worker keeps track of
//! them ([`blocks`]) and gives the memory of those that were unplugged back to the host. Created by
//! `machine/virtio_devices.rs`.
//!
//! The region's memory is mapped by the machine (`machine/plug.rs`) before the driver may use it, and up to
//! the largest size that was ever requested, in steps of 128 MiB. That bounds what a guest can use that
//! touches blocks which it has not plugged: they are not protected one by one. The driver is told not to
//! (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE).

mod blocks;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _};

pub use self::blocks::BLOCK;
use self::blocks::{Blocks, Response, Span};
use self::request::{REQUEST_BYTES, RESPONSE_BYTES, Request};
use super::worker::{ActiveDevice, Chain, DataPath, Fault, Notify};
use super::{ConfigSpace, Device, DeviceError, Env, Spec};
use crate::jail::calls::mem::PROFILE;
use crate::memory;
use crate::memory::Memory;
use crate::memory::ranges::Range;

const NAME: &str = "mem";
const QUEUE_SIZES: &[u16] = &[16];
/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (virtio 1.2, 5.15.3).
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Offset of `usable_region_size` in the configuration space; `plugged_size` and `requested_size` follow.
const SIZES_AT: u64 = 32;
/// Most descriptors of a request that are read; Linux uses two.
const MAX_DESCRIPTORS: usize = 8;

/// Called with the size in bytes once the driver has plugged what was requested. Must not block for long.
pub type OnReached = Box<dyn Fn(u64) + Send + Sync>;

/// The configuration of the device.
pub struct Config {
    /// Most memory that can be plugged, in bytes: a multiple of 128 MiB. At most [`Env::hotplug`] has space
    /// for.
    pub max_bytes: u64,
    /// Called at most once for each [`Plugger::request`], on the worker's thread or by the request itself.
    pub on_reached: OnReached,
}

/// What the worker and the main thread share.
struct Shared {
    region: Range,
    state: Mutex<State>,
    /// Set when the device exists. Locked after `state`.
    config: OnceLock<Arc<ConfigSpace>>,
    on_reached: OnReached,
}

struct State {
    blocks: Blocks,
    /// A request of the main thread has not been reached yet.
    is_pending: bool,
}

/// The main thread's side of the device.
#[derive(Clone)]
pub struct Plugger(Arc<Shared>);

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// How much the driver is asked to plug.
    pub requested: u64,
    /// How much it has plugged.
    pub plugged: u64,
}

impl Plugger {
    /// The addresses at which memory can be plugged.
    #[must_use]
    pub fn region(&self) -> Range {
        self.0.region
    }

    /// Asks the driver to plug `requested` bytes in all. All of the first `usable` bytes of the region must
    /// be mapped, and every device must have that memory.
    pub fn request(&self, usable: u64, requested: u64) {
        let mut state = self.0.lock();
        state.blocks.request(usable, requested);
        state.is_pending = true;
        if let Some(config) = self.0.config.get() {
            // Can't fail: the configuration space has these bytes.
            let _ = config.update(SIZES_AT, &sizes(&state.blocks));
        }
        self.0.report_reached(state);
    }

    /// The sizes now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let state = self.0.lock();
        Sizes {
            requested: state.blocks.requested(),
            plugged: state.blocks.plugged(),
        }
    }
}

impl Shared {
    /// Nothing panics under the lock, but another thread's panic must not become this one's.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that the requested size is plugged, if it is and was not reported yet. Unlocks `state` first.
    fn report_reached(&self, mut state: MutexGuard<'_, State>) {
        let plugged = state.blocks.plugged();
        if state.is_pending && plugged == state.blocks.requested() {
            state.is_pending = false;
            drop(state);
            (self.on_reached)(plugged);
        }
    }

    /// Carries out `request`. The memory of blocks that were unplugged is the host's again afterwards.
    fn carry_out(&self, request: Request, memory: &Memory, config: &ConfigSpace) -> io::Result<Response> {
        let mut state = self.lock();
        let blocks = &mut state.blocks;
        let response = match request {
            Request::Plug(span) => blocks.plug(span),
            Request::Unplug(span) => blocks.unplug(span),
            Request::UnplugAll => blocks.unplug_all(),
            Request::State(span) => return Ok(blocks.state(span)),
        };
        if response == Response::Ack {
            match request {
                Request::Unplug(Span { address, blocks }) => {
                    let bytes = BLOCK.saturating_mul(blocks.into());
                    memory::discard(memory, GuestAddress(address), bytes)?;
                }
                Request::UnplugAll => {
                    memory::discard(memory, GuestAddress(self.region.start), state.blocks.usable())?;
                }
                Request::Plug(_) | Request::State(_) => {}
            }
            // The driver knows: it has asked for it, and reads it after the response.
            let _ = config.reflect(SIZES_AT, &sizes(&state.blocks));
            self.report_reached(state);
        }
        Ok(response)
    }
}

/// `usable_region_size`, `plugged_size` and `requested_size` (virtio 1.2, 5.15.4).
fn sizes(blocks: &Blocks) -> Vec<u8> {
    [blocks.usable(), blocks.plugged(), blocks.requested()]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// The initial configuration space (virtio 1.2, 5.15.4): `block_size`, `node_id` with its padding, `addr`,
/// `region_size`, and the sizes.
fn config_space(region: Range, blocks: &Blocks) -> Vec<u8> {
    let fixed = [BLOCK, 0, region.start, region.bytes];
    let fixed = fixed.into_iter().flat_map(u64::to_le_bytes);
    fixed.chain(sizes(blocks)).collect()
}

/// Creates the device, with one queue, and spawns its worker. The region starts where [`Env::hotplug`] does.
///
/// # Errors
/// [`DeviceError`] if the region has no space for the memory, or if the worker can't be spawned.
pub fn spawn(config: Config, env: &Env) -> Result<Device, DeviceError> {
    let Config {
        max_bytes,
        on_reached,
    } = config;
    if max_bytes > env.hotplug.bytes {
        let most = env.hotplug.bytes;
        return Err(DeviceError::at(NAME, "check the size")(format!(
            "{max_bytes} bytes exceed the {most} that can be plugged"
        )));
    }
    let region = Range {
        start: env.hotplug.start,
        bytes: max_bytes,
    };
    let blocks = Blocks::new(region.start);
    let spec = Spec {
        name: NAME,
        device_type: VIRTIO_ID_MEM,
        queue_sizes: QUEUE_SIZES.to_vec(),
        features: UNPLUGGED_INACCESSIBLE,
        config: config_space(region, &blocks),
        config_writable: 0..0,
        profile: &PROFILE,
    };
    let state = State {
        blocks,
        is_pending: false,
    };
    let shared = Arc::new(Shared {
        region,
        state: Mutex::new(state),
        config: OnceLock::new(),
        on_reached,
    });
    let plugger = Plugger(Arc::clone(&shared));
    let device = Device::spawn(spec, env, move || Ok(MemDataPath(shared)))?;
    // Can't fail: it is set once.
    let _ = plugger.0.config.set(Arc::clone(device.config()));
    Ok(device.with_plugger(plugger))
}

/// What is plugged stays so when the driver resets the device (virtio 1.2, 5.15.5).
struct MemDataPath(Arc<Shared>);

impl DataPath for MemDataPath {
    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        let config = Arc::clone(&active.config);
        let mut result = Ok(());
        active.serve(index, Notify::Each, |memory, chain| {
            if result.is_err() {
                return 0;
            }
            answer(&self.0, memory, chain, &config).unwrap_or_else(|error| {
                result = Err(Fault::io("madvise of unplugged blocks")(error));
                0
            })
        })?;
        result
    }
}

/// Carries out the request in `chain` and writes the response; returns its length. Does nothing if there is
/// no space for a response: the driver would not know what it did.
fn answer(shared: &Shared, memory: &Memory, chain: Chain, config: &ConfigSpace) -> io::Result<u32> {
    let space = chain.clone().writable().take(MAX_DESCRIPTORS);
    let space: Vec<_> = space
        .map(|buffer| (buffer.addr(), buffer.len() as usize))
        .collect();
    let is_enough = space
        .iter()
        .map(|(_, length)| *length)
        .fold(0, usize::saturating_add)
        >= RESPONSE_BYTES;
    let is_memory = |(address, length): &(GuestAddress, usize)| {
        memory.get_slice(*address, (*length).min(RESPONSE_BYTES)).is_ok()
    };
    if !is_enough || !space.iter().all(is_memory) {
        return Ok(0);
    }
    let response = match read_request(memory, chain) {
        Some(request) => shared.carry_out(request, memory, config)?,
        None => Response::Error,
    };
    let bytes = response.to_bytes();
    let mut left: &[u8] = &bytes;
    for (address, length) in space {
        let (part, rest) = left.split_at(length.min(left.len()));
        // Was memory above, and guest memory never shrinks.
        let _ = memory.write_slice(part, address);
        left = rest;
    }
    Ok(u32::try_from(RESPONSE_BYTES).unwrap_or(0))
}

/// The request in the device-readable part of `chain`; None if it is too short, not in guest memory, or of
/// an unknown type.
fn read_request(memory: &Memory, chain: Chain) -> Option<Request> {
    let mut bytes = [0; REQUEST_BYTES];
    let mut left: &mut [u8] = &mut bytes;
    for buffer in chain.readable().take(MAX_DESCRIPTORS) {
        let length = left.len().min(buffer.len() as usize);
        let (part, rest) = left.split_at_mut(length);
        memory.read_slice(part, buffer.addr()).ok()?;
        left = rest;
    }
    if left.is_empty() {
        Request::parse(&bytes)
    } else {
        None
    }
}
