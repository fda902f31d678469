//! virtio-balloon (virtio 1.2, 5.5) with free page reporting (5.5.6.8): the guest names memory that it has
//! freed, and the host gets its pages back. Created by `machine/virtio_devices.rs`, served by a worker. It
//! never asks the guest for memory: the size of the balloon is always 0.
//!
//! Linux reports blocks of at least 2 MiB, at most 32 in one request, from 2 s after memory was freed, and
//! waits for each request. The next access to a reported page costs an EPT violation, as the first one did.

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::worker::{ActiveDevice, Chain, DataPath, Fault, Notify};
use super::{Device, DeviceError, Env, Spec};
use crate::jail::calls::balloon::PROFILE;
use crate::memory;
use crate::memory::Memory;

/// VIRTIO_BALLOON_F_PAGE_REPORTING (virtio 1.2, 5.5.3).
const PAGE_REPORTING: u64 = 1 << 5;
/// The queue of reports. It follows inflateq and deflateq, since the features of the queues between them are
/// not offered.
pub const REPORTING: u16 = 2;
/// Linux has 256 page numbers per request of the first two queues in one buffer, and 32 buffers per report.
const QUEUE_SIZES: &[u16] = &[16, 16, 32];
/// Most descriptors of a report that are read. A driver must not make a longer chain than the queue, in an
/// indirect table either (virtio 1.2, 2.7.5.3.1). Each costs a system call, and a table may have 65,535: the
/// worker could not answer a reset or a pause in time.
const MAX_DESCRIPTORS: usize = 32;
/// The configuration space (virtio 1.2, 5.5.4): `num_pages`, which the device would like to have, and
/// `actual`, which the driver writes. Both are in pages of 4096 bytes.
const CONFIG: [u8; 8] = [0; 8];

/// Creates the device, with three queues, and spawns its worker.
///
/// # Errors
/// [`DeviceError`] if the worker can't be spawned.
pub fn spawn(env: &Env) -> Result<Device, DeviceError> {
    let spec = Spec {
        name: "balloon",
        device_type: VIRTIO_ID_BALLOON,
        queue_sizes: QUEUE_SIZES.to_vec(),
        features: PAGE_REPORTING,
        config: CONFIG.to_vec(),
        config_writable: 4..8,
        profile: &PROFILE,
    };
    Device::spawn(spec, env, || Ok(BalloonDataPath))
}

struct BalloonDataPath;

impl DataPath for BalloonDataPath {
    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        if index != REPORTING {
            // A driver that fills the balloon unasked keeps its pages.
            return active.serve(index, Notify::Each, |_, _| 0);
        }
        let mut result = Ok(());
        active.serve(index, Notify::Each, |memory, chain| {
            if result.is_ok() {
                result = discard_buffers(memory, chain).map_err(Fault::io("madvise of reported pages"));
            }
            0
        })?;
        result
    }
}

/// Discards the memory of the device-writable buffers of `chain` (virtio 1.2, 5.5.6.8.2).
fn discard_buffers(memory: &Memory, chain: Chain) -> std::io::Result<()> {
    chain
        .take(MAX_DESCRIPTORS)
        .filter(|descriptor| descriptor.is_write_only())
        .try_for_each(|buffer| memory::discard(memory, buffer.addr(), u64::from(buffer.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{
        BUFFERS, Driver, Fields, INDIRECT, MEMORY_SIZE, NEXT, WRITE, assert_passes_confined, hammer,
        is_confined, malformed_chains, readable, writable,
    };

    const BLOCK: u32 = 2 << 20;
    const QUEUE: usize = REPORTING as usize;

    fn activated() -> (Device, Driver) {
        let driver = Driver::new(QUEUE_SIZES);
        let mut device = spawn(&driver.env()).unwrap();
        let activation = driver.activation(device.features());
        device.activate(activation).unwrap();
        (device, driver)
    }

    /// Offers `buffers` to `queue` and waits until they are used.
    fn send(driver: &mut Driver, queue: usize, buffers: &[Fields]) {
        driver.offer(queue, buffers);
        driver.kick(queue);
        assert_eq!(driver.wait_used(queue).1, 0, "{buffers:?}");
    }

    /// Fills memory from [`BUFFERS`] to the end with a pattern that [`discarded`] recognises.
    fn fill(driver: &Driver) {
        for page in (BUFFERS..MEMORY_SIZE).step_by(4096) {
            driver.set_bytes(page, &[0xa5; 4096]);
        }
    }

    /// The numbers of the pages that read as zeros, counted from [`BUFFERS`].
    fn discarded(driver: &Driver) -> Vec<u64> {
        let pages = 0..(MEMORY_SIZE - BUFFERS) / 4096;
        let is_discarded = |page: &u64| {
            let bytes = driver.bytes(BUFFERS + page * 4096, 4096);
            let zeros = bytes == [0; 4096];
            assert!(
                zeros || bytes == [0xa5; 4096],
                "page {page} was discarded in part"
            );
            zeros
        };
        pages.filter(is_discarded).collect()
    }

    #[test]
    fn reported_pages_and_no_others_go_back_to_the_host() {
        let (_device, mut driver) = activated();
        fill(&driver);
        let second = BUFFERS + 3 * u64::from(BLOCK);
        send(
            &mut driver,
            QUEUE,
            &[writable(BUFFERS, BLOCK), writable(second, 4096)],
        );
        assert!(discarded(&driver).into_iter().eq((0..512).chain([1536])));
        driver.set_bytes(BUFFERS, b"again");
        assert_eq!(driver.bytes(BUFFERS, 5), b"again");
    }

    #[test]
    fn pages_that_are_reported_in_part_are_kept() {
        let (_device, mut driver) = activated();
        fill(&driver);
        for (address, bytes) in [(1, 4096), (4095, 4096), (0, 4095), (0, 0), (8191, 1)] {
            send(&mut driver, QUEUE, &[writable(BUFFERS + address, bytes)]);
        }
        assert!(discarded(&driver).is_empty());
        send(&mut driver, QUEUE, &[writable(BUFFERS + 1, 3 * 4096)]);
        assert_eq!(discarded(&driver), [1, 2]);
    }

    #[test]
    fn a_report_is_read_up_to_a_bound() {
        let (_device, mut driver) = activated();
        fill(&driver);
        let pages = (0..33_u16).map(|page| (BUFFERS + u64::from(page) * 4096, 4096, NEXT | WRITE, page + 1));
        let table = MEMORY_SIZE - 4096;
        driver.set_table(table, &pages.collect::<Vec<_>>());
        driver.offer_raw(QUEUE, &[(table, 33 * 16, INDIRECT, 0)]);
        driver.kick(QUEUE);
        driver.wait_used(QUEUE);
        driver.set_bytes(table, &[0xa5; 4096]);
        assert!(discarded(&driver).into_iter().eq(0..32));
    }

    #[test]
    fn buffers_that_are_not_reports_have_no_effect() {
        let (_device, mut driver) = activated();
        fill(&driver);
        send(&mut driver, QUEUE, &[readable(BUFFERS, BLOCK)]);
        for address in [MEMORY_SIZE - 4096, MEMORY_SIZE, u64::MAX - 4096, u64::MAX] {
            send(&mut driver, QUEUE, &[writable(address, 8192)]);
        }
        for queue in [0, 1] {
            send(&mut driver, queue, &[readable(BUFFERS, 1024)]);
            send(&mut driver, queue, &[writable(BUFFERS, BLOCK)]);
        }
        assert!(discarded(&driver).is_empty());
    }

    #[test]
    fn the_driver_may_only_write_the_actual_size() {
        let (device, _driver) = activated();
        assert!(device.config().write(0, &[0xff; 8]).is_err());
        device.config().write(4, &7_u32.to_le_bytes()).unwrap();
        let mut config = [0; 8];
        device.config().read(0, &mut config);
        assert_eq!(config, [0, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn malformed_chains_fail_cleanly() {
        for (name, chain) in malformed_chains() {
            let (mut device, mut driver) = activated();
            driver.offer_raw(QUEUE, &chain);
            driver.kick(QUEUE);
            driver.wait_used_or_reset(QUEUE);
            device.reset().unwrap_or_else(|error| panic!("{name}: {error}"));
            driver.restart();
            device.activate(driver.activation(device.features())).unwrap();
            send(&mut driver, QUEUE, &[writable(BUFFERS, BLOCK)]);
        }
    }

    #[test]
    fn survives_random_operations() {
        if !is_confined("virtio::balloon::tests::survives_random_operations") {
            return;
        }
        let (mut device, mut driver) = activated();
        hammer(&mut driver, &mut device, |_| Vec::new());
        device.activate(driver.activation(device.features())).unwrap();
        send(&mut driver, QUEUE, &[writable(BUFFERS, BLOCK)]);
    }

    #[test]
    fn works_confined() {
        assert_passes_confined("virtio::balloon::tests::reported");
    }
}
