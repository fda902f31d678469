//! The targets of the transport: any access to a function's registers and its window, and any rings for a
//! device that then serves them.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vm_memory::{Bytes as _, GuestAddress};

use crate::jail::Confinement;
use crate::memory;
use crate::memory::Memory;
use crate::transport::pci::page::RegisterPages;
use crate::transport::pci::testing::{BAR1, Driver, MEMORY};
use crate::virtio::testing::HOTPLUG;
use crate::virtio::{Env, Interrupt as _, rng};
use nacre_fuzzing::Input;

const MAX_OPERATIONS: usize = 256;
const BAR_BYTES: u64 = 0x2000;

thread_local! {
    // Neither is ever freed, so that all inputs have the same.
    static PAGES: RegisterPages = RegisterPages::allocate(3).unwrap();
    static GUEST: Arc<Memory> = Arc::new(memory::allocate(MEMORY).unwrap());
}

/// A driver of an rng device.
fn driver() -> Driver {
    let (reporter, reports) = channel();
    let env = Env {
        confinement: Confinement::none(),
        report: Arc::new(move |report| drop(reporter.send(report))),
        hotplug: HOTPLUG,
    };
    let guest = GUEST.with(Arc::clone);
    let zeros = vec![0; usize::try_from(MEMORY).unwrap()];
    guest.write_slice(&zeros, GuestAddress(0)).unwrap();
    PAGES.with(|pages| Driver::on(*pages, guest, rng::spawn(&env).unwrap(), reports))
}

/// Each read is compared with the page that the guest reads.
pub fn pci(data: &[u8]) {
    let (mut input, mut driver) = (Input(data), driver());
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        access(&mut driver, &mut input);
        // The worker may change the status at any time.
        driver.transport().device().settle();
        driver.messages.try_iter().for_each(drop);
    }
    driver.bar0();
}

fn access(driver: &mut Driver, input: &mut Input<'_>) {
    let kind = input.u8();
    let length = 1 << (kind >> 4 & 3);
    let last = BAR_BYTES - 8;
    let offset = u64::from(input.u16());
    match kind & 15 {
        0..4 => {
            let data = input.bytes(length).to_vec();
            driver.write(0, offset % last, &data);
        }
        4 | 5 => drop(driver.read(0, offset % last, length)),
        6 => {
            let data = input.bytes(length).to_vec();
            driver.write(BAR1, offset, &data);
        }
        7 => drop(driver.read(BAR1, offset, length)),
        8 | 9 => {
            let data = input.bytes(length).to_vec();
            driver.write_config(offset % 0xff8, &data);
        }
        10 => drop(driver.read_config(offset % 0xff8, length)),
        11 => driver.function.signal_queue(offset as u16),
        12 => driver.function.signal_config(),
        13 => driver.function.signal_needs_reset(),
        // The window on the BARs: bar, offset, length.
        14 => {
            let window = [input.u8(), 0, 0, 0].into_iter();
            let window: Vec<u8> = window.chain(u32::from(offset as u16).to_le_bytes()).collect();
            driver.write_config(0x94, &window[..4]);
            driver.write_config(0x98, &window[4..]);
            driver.write_config(0x9c, &(length as u32).to_le_bytes());
        }
        _ => {
            let data = input.bytes(length).to_vec();
            driver.write_config(0xa0 + offset % 4, &data);
            driver.read_config(0xa0, length);
        }
    }
}

/// A queue of any size at any address, in memory that begins with the input: what the transport enables, the
/// worker serves.
pub fn rings(data: &[u8]) {
    let (mut input, mut driver) = (Input(data), driver());
    let features = 1 << 32 | u64::from(input.u8() & 3) << 28;
    let size = match input.u8() {
        255 => input.u16(),
        exponent => 1 << (exponent % 16),
    };
    let rings = [(); 3].map(|()| match input.u8() {
        255 => input.u64(),
        254 => MEMORY - u64::from(input.u16()),
        page => u64::from(page) << 8,
    });
    let memory = input.bytes(usize::MAX);
    let memory = &memory[..memory.len().min(0x1_0000)];
    driver.memory.write_slice(memory, GuestAddress(0)).unwrap();
    driver.negotiate(features);
    driver.set_up_queue(0, size, rings);
    let is_enabled = driver.read16(28) == 1;
    assert_eq!(driver.needs_reset(), !is_enabled);
    driver.set_status(15);
    for _ in 0..2 {
        driver.ioeventfds[0].write(1).unwrap();
        driver.transport().device().settle();
    }
    let refused = driver.reports.try_iter().next();
    assert!(
        !matches!(
            refused,
            Some(crate::virtio::Report::Stopped {
                fault: crate::virtio::worker::Fault::InvalidQueue { .. },
                ..
            })
        ),
        "the worker refuses a queue that the transport has enabled: {refused:?}"
    );
}
