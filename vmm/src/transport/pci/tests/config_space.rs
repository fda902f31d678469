//! The configuration space: header, BARs, capabilities and the window on the BARs.

use super::driver::{BAR1, BARS, Driver, STATUS};
use crate::layout::BAR_BYTES;
use crate::transport::pci::config_space::ISR;
use crate::virtio::Interrupt as _;

/// Offset of the window's capability.
const WINDOW: u64 = 0x90;

/// Offset and identifier of each capability in the list.
fn capabilities(driver: &mut Driver) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    let mut next = driver.read_config(0x34, 1)[0];
    while next != 0 {
        assert!(next >= 0x40 && next.is_multiple_of(4) && found.len() < 48);
        let header = driver.read_config(next.into(), 2);
        found.push((next.into(), header[0]));
        next = header[1];
    }
    found
}

#[test]
fn the_header_names_a_modern_device_without_an_interrupt_pin() {
    let mut driver = Driver::new();
    assert_eq!(driver.config32(0), 0x1044_1af4);
    assert_eq!(driver.config32(0x2c), 0x1044_1af4);
    assert_eq!(driver.config32(8), 0xff00_0001, "class and revision");
    assert_eq!(driver.read_config(0x0e, 1), [0], "header type");
    assert_eq!(driver.read_config(6, 2), [0x10, 0], "status: capabilities");
    assert_eq!(driver.read_config(0x3d, 1), [0], "interrupt pin");
    assert_eq!(driver.config32(0x100), 0, "no extended capability");
    assert_eq!(driver.config32(0xffc), 0);
}

#[test]
fn every_structure_of_the_specification_has_a_capability_inside_its_bar() {
    let mut driver = Driver::new();
    let capabilities = capabilities(&mut driver);
    assert_eq!(
        capabilities.iter().filter(|(_, id)| *id == 0x11).count(),
        1,
        "MSI-X"
    );
    let mut kinds = Vec::new();
    for (offset, _) in capabilities.iter().filter(|(_, id)| *id == 9) {
        let header = driver.read_config(offset + 2, 3);
        let (length, kind, bar) = (header[0], header[1], header[2]);
        assert_eq!(length, if matches!(kind, 2 | 5) { 20 } else { 16 });
        let (start, bytes) = (driver.config32(offset + 8), driver.config32(offset + 12));
        assert!(bar < 2 && start + bytes <= BAR_BYTES, "type {kind}");
        kinds.push((kind, bar, start, bytes));
    }
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            (1, 0, 0, 60),
            (2, 1, 0, 8),
            (3, 1, 0x1000, 1),
            (4, 0, 0x100, 0x100),
            (5, 0, 0, 0)
        ]
    );
    let (msix, _) = capabilities[0];
    assert_eq!(driver.read_config(msix + 2, 2), [2, 0], "three vectors");
    assert_eq!(
        (driver.config32(msix + 4), driver.config32(msix + 8)),
        (0x1000, 0x1800)
    );
}

#[test]
fn only_the_documented_bits_are_writable() {
    let mut driver = Driver::new();
    driver.write_config(4, &[0, 0]);
    let before = driver.read_config(0, 256);
    let mut writable = vec![0u8; 256];
    writable[4] = 6;
    writable[5] = 4;
    for bar in [0x10, 0x14] {
        writable[bar..bar + 4].copy_from_slice(&0xffff_e000_u32.to_le_bytes());
    }
    writable[0x3c] = 0xff;
    writable[0x43] = 0xc0;
    writable[0x94] = 0xff;
    writable[0x98..0xa4].fill(0xff);
    for width in [1, 2, 4, 8] {
        for offset in 0..256usize {
            let start = u64::try_from(offset).unwrap();
            driver.write_config(start, &vec![0xff; width]);
            let mut expected = before.clone();
            for at in offset..(offset + width).min(256) {
                expected[at] |= writable[at];
            }
            assert_eq!(
                driver.read_config(0, 256),
                expected,
                "{width} bytes at {offset:#x}"
            );
            driver.write_config(start, &vec![0; width]);
            for at in offset..(offset + width).min(256) {
                expected[at] = before[at] & !writable[at];
            }
            assert_eq!(
                driver.read_config(0, 256),
                expected,
                "{width} bytes at {offset:#x}"
            );
            driver.write_config(0x10, &before[0x10..0x18]);
        }
    }
    for offset in [0x100, 0xffc, 0x1000, u64::MAX - 3] {
        driver.write_config(offset, &[0xff; 4]);
    }
    assert_eq!(driver.read_config(0, 256), before);
}

#[test]
fn bars_can_be_sized_and_keep_their_addresses() {
    let mut driver = Driver::new();
    for (offset, address) in [(0x10, BARS[0]), (0x14, BARS[1]), (0x18, 0), (0x24, 0), (0x30, 0)] {
        assert_eq!(driver.config32(offset), address);
        driver.write_config(offset, &[0xff; 4]);
        let size = if address == 0 { 0 } else { !(BAR_BYTES - 1) };
        assert_eq!(driver.config32(offset), size, "{offset:#x}");
        driver.write_config(offset, &address.to_le_bytes());
        assert_eq!(driver.config32(offset), address);
    }
    assert_eq!(driver.read16(18), 2, "the registers are still there");
}

#[test]
fn a_function_without_memory_accesses_or_with_a_moved_bar_does_not_respond() {
    let mut driver = Driver::new();
    driver.function.signal_config();
    let original = driver.bar0();
    let moves: [(u64, [u8; 4], usize); 4] = [
        (4, [4, 0, 0, 0], 2),
        (0x10, 0xd020_0000_u32.to_le_bytes(), 4),
        (0x10, [0xff; 4], 4),
        (0x10, [0; 4], 4),
    ];
    for (offset, bytes, length) in moves {
        let before = driver.read_config(offset, length);
        driver.write_config(offset, &bytes[..length]);
        assert!(driver.bar0().iter().all(|byte| *byte == 0xff));
        driver.set_status(1);
        driver.write32(0, 1);
        driver.write_config(offset, &before);
        assert_eq!(driver.bar0(), original, "a write has reached a register");
    }
    driver.write_config(0x14, &[0; 4]);
    assert_eq!(driver.read_isr(), 0xff);
    driver.write(BAR1, 0, &[0; 2]);
    assert!(driver.ioeventfds[0].read().is_err());
    driver.write_config(0x14, &BARS[1].to_le_bytes());
    assert_eq!(driver.read_isr(), 2, "not cleared meanwhile");
}

/// Chooses an access in the window.
fn choose(driver: &mut Driver, bar: u8, offset: u32, length: u32) {
    driver.write_config(WINDOW + 4, &[bar]);
    driver.write_config(WINDOW + 8, &offset.to_le_bytes());
    driver.write_config(WINDOW + 12, &length.to_le_bytes());
}

#[test]
fn the_window_reads_and_writes_registers_also_without_memory_accesses() {
    let mut driver = Driver::new();
    driver.write_config(4, &[4]);
    choose(&mut driver, 0, 18, 2);
    assert_eq!(driver.read_config(WINDOW + 16, 4), [2, 0, 0, 0], "num_queues");
    let status = u32::try_from(STATUS).unwrap();
    choose(&mut driver, 0, status, 1);
    driver.write_config(WINDOW + 16, &[1, 0xff, 0xff, 0xff]);
    assert_eq!(driver.read_config(WINDOW + 16, 4), [1, 0, 0, 0]);
    driver.write_config(WINDOW + 16, &[3]);
    choose(&mut driver, 0, 8, 4);
    driver.write_config(WINDOW + 16, &7u32.to_le_bytes());
    choose(&mut driver, 0, 0x1004, 4);
    driver.write_config(WINDOW + 16, &8u32.to_le_bytes());
    choose(&mut driver, 1, 4, 2);
    driver.write_config(WINDOW + 16, &[1, 0]);
    assert_eq!(driver.ioeventfds[1].read().unwrap(), 1);
    driver.write_config(4, &[6]);
    assert_eq!(
        (driver.status(), driver.read32(8), driver.read32(0x1004)),
        (3, 7, 8)
    );
}

#[test]
fn the_window_shows_what_changes_later() {
    let mut driver = Driver::new();
    choose(&mut driver, 0, 20, 2);
    driver.set_status(1);
    driver.transport().device.config().update(0, &[1]).unwrap();
    assert_eq!(
        driver.read_config(WINDOW + 16, 4),
        [1, 2, 0, 0],
        "status and generation"
    );
    choose(&mut driver, 1, ISR, 1);
    driver.function.signal_config();
    for _ in 0..2 {
        assert_eq!(
            driver.read_config(WINDOW + 16, 1),
            [2],
            "reading here clears nothing"
        );
    }
    assert_eq!(driver.read_isr(), 2);
    assert_eq!(driver.read_config(WINDOW + 16, 1), [0]);
}

#[test]
fn an_invalid_access_in_the_window_has_no_effect() {
    let mut driver = Driver::new();
    let before = driver.bar0();
    for (bar, offset, length) in [
        (2, 0, 4),
        (0xff, 0, 4),
        (0, 0, 0),
        (0, 20, 3),
        (0, 20, 8),
        (0, 20, u32::MAX),
        (0, 9, 2),
        (0, BAR_BYTES, 4),
        (0, u32::MAX, 1),
        (0, u32::MAX - 3, 4),
        (1, 1, 1),
        (1, BAR_BYTES, 1),
    ] {
        choose(&mut driver, bar, offset, length);
        driver.write_config(WINDOW + 16, &[1; 4]);
        assert_eq!(driver.bar0(), before, "{bar} {offset:#x} {length}");
    }
    assert!(driver.ioeventfds.iter().all(|event| event.read().is_err()));
}
