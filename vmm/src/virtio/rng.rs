//! virtio-rng (virtio 1.2, 5.4): entropy for the guest, from the host's getrandom. Created by
//! `machine/virtio_devices.rs`, served by a worker. It never stores the bytes that it returned.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::Bytes as _;

use super::worker::{ActiveDevice, Chain, DataPath, Fault, Notify};
use super::{Device, DeviceError, Env, Spec};
use crate::jail::calls::rng::PROFILE;
use crate::memory::Memory;

/// Most bytes returned for one request. A driver that wants more sends another one; Linux requests at most 64
/// bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
const QUEUE_SIZES: &[u16] = &[16];
/// Bytes per getrandom call.
const CHUNK: usize = 4096;

/// Creates the device, with one queue, and spawns its worker.
///
/// # Errors
/// [`DeviceError`] if the worker can't be spawned.
pub fn spawn(env: &Env) -> Result<Device, DeviceError> {
    let spec = Spec {
        name: "rng",
        device_type: VIRTIO_ID_RNG,
        queue_sizes: QUEUE_SIZES.to_vec(),
        features: 0,
        config: Vec::new(),
        config_writable: 0..0,
        profile: &PROFILE,
    };
    Device::spawn(spec, env, || Ok(RngDataPath))
}

struct RngDataPath;

impl DataPath for RngDataPath {
    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        active.serve(index, Notify::Each, |memory, chain| fill(memory, chain))
    }
}

/// Fills the device-writable part of `chain` with up to [`MAX_REQUEST`] random bytes and returns their
/// number. Stops at a buffer outside of guest memory.
fn fill(memory: &Memory, chain: Chain) -> u32 {
    let mut bytes = [0; CHUNK];
    let mut written = 0_usize;
    'chain: for descriptor in chain.writable() {
        let mut address = descriptor.addr();
        let mut left = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        while left > 0 {
            let wanted = left.min(CHUNK).min(MAX_REQUEST.saturating_sub(written));
            let Some(part) = bytes.get_mut(..wanted).filter(|part| !part.is_empty()) else {
                break 'chain;
            };
            let Ok(drawn) = rustix::rand::getrandom(&mut *part, rustix::rand::GetRandomFlags::empty()) else {
                break 'chain;
            };
            let part = part.get(..drawn).unwrap_or_default();
            if part.is_empty() || memory.write_slice(part, address).is_err() {
                break 'chain;
            }
            written = written.saturating_add(drawn);
            left = left.saturating_sub(drawn);
            let Some(next) = u64::try_from(drawn)
                .ok()
                .and_then(|drawn| address.0.checked_add(drawn))
            else {
                break 'chain;
            };
            address.0 = next;
        }
    }
    u32::try_from(written).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{
        BUFFERS, Driver, MEMORY_SIZE, assert_passes_confined, hammer, is_confined, malformed_chains,
        readable, writable,
    };

    fn activated() -> (Device, Driver) {
        let driver = Driver::new(QUEUE_SIZES);
        let mut device = spawn(&driver.env()).unwrap();
        let activation = driver.activation(device.features());
        device.activate(activation).unwrap();
        (device, driver)
    }

    #[test]
    fn fills_each_buffer_with_other_bytes() {
        let (_device, mut driver) = activated();
        let mut drawn = Vec::new();
        for _ in 0..40 {
            driver.offer(0, &[writable(BUFFERS, 64)]);
            driver.kick(0);
            assert_eq!(driver.wait_used(0).1, 64);
            drawn.push(driver.bytes(BUFFERS, 64));
        }
        drawn.sort();
        drawn.dedup();
        assert_eq!(drawn.len(), 40);
    }

    #[test]
    fn a_request_is_bounded() {
        let (_device, mut driver) = activated();
        driver.offer(
            0,
            &[writable(BUFFERS, 0x8000), writable(BUFFERS + 0x8000, 0x20_0000)],
        );
        driver.kick(0);
        assert_eq!(driver.wait_used(0).1 as usize, MAX_REQUEST);
        assert_eq!(driver.bytes(BUFFERS + MAX_REQUEST as u64, 64), [0; 64]);
    }

    #[test]
    fn writes_nothing_to_an_invalid_buffer() {
        let (_device, mut driver) = activated();
        for chain in [
            vec![readable(BUFFERS, 64)],
            vec![writable(BUFFERS, 0)],
            vec![writable(MEMORY_SIZE, 64)],
            vec![writable(u64::MAX - 16, 64)],
        ] {
            driver.offer(0, &chain);
            driver.kick(0);
            assert_eq!(driver.wait_used(0).1, 0, "{chain:?}");
        }
        assert_eq!(driver.bytes(BUFFERS, 64), [0; 64]);
    }

    #[test]
    fn malformed_chains_fail_cleanly() {
        for (name, chain) in malformed_chains() {
            let (mut device, mut driver) = activated();
            driver.offer_raw(0, &chain);
            driver.kick(0);
            driver.wait_used_or_reset(0);
            device.reset().unwrap_or_else(|error| panic!("{name}: {error}"));
            driver.restart();
            device.activate(driver.activation(device.features())).unwrap();
            driver.offer(0, &[writable(BUFFERS, 64)]);
            driver.kick(0);
            assert_eq!(driver.wait_used(0).1, 64, "{name}");
        }
    }

    #[test]
    fn survives_random_operations() {
        if !is_confined("virtio::rng::tests::survives_random_operations") {
            return;
        }
        let (mut device, mut driver) = activated();
        hammer(&mut driver, &mut device, |_| Vec::new());
        device.activate(driver.activation(device.features())).unwrap();
        driver.offer(0, &[writable(BUFFERS, 64)]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0).1, 64);
    }

    #[test]
    fn works_confined() {
        assert_passes_confined("virtio::rng::tests::fills");
    }
}
