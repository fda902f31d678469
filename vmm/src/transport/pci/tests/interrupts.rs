//! MSI-X: the table, masks, pending bits, and which event raises which vector.

use super::driver::Driver;
use crate::transport::pci::msix::NO_VECTOR;
use crate::virtio::Interrupt as _;

/// The pending bits of the three vectors.
fn pending(driver: &mut Driver) -> u32 {
    driver.read32(0x1800)
}

#[test]
fn each_queue_and_the_configuration_raise_their_own_vector() {
    let mut driver = Driver::new();
    driver.activate();
    driver.enable_interrupts();
    driver.function.signal_queue(1);
    driver.function.signal_queue(0);
    driver.transport().device.config().update(0, &[1]).unwrap();
    driver.function.signal_needs_reset();
    driver.function.signal_queue(2);
    driver.function.signal_queue(0xffff);
    assert_eq!(driver.received(), [2, 1, 0, 0]);
    assert_eq!(pending(&mut driver), 0);
    assert_eq!(driver.read_isr(), 2, "the queues set no bit");
    assert!(driver.needs_reset());
}

#[test]
fn a_message_has_the_address_and_data_of_its_entry() {
    let mut driver = Driver::new();
    driver.enable_interrupts();
    driver.set_vector(1, 0x1234_5678_fee0_1003, 0xdead_beef, false);
    assert_eq!(driver.read32(0x1010), 0xfee0_1000, "bits 1:0 are reserved");
    driver.function.signal_queue(0);
    let message = driver.messages.try_recv().unwrap();
    assert_eq!(
        (message.address, message.data),
        (0x1234_5678_fee0_1000, 0xdead_beef)
    );
}

#[test]
fn without_msix_the_isr_status_has_the_reasons_until_it_is_read() {
    let mut driver = Driver::new();
    driver.activate();
    driver.function.signal_queue(0);
    assert_eq!(driver.read_isr(), 1);
    driver.function.signal_queue(1);
    driver.function.signal_config();
    assert_eq!((driver.read_isr(), driver.read_isr()), (3, 0));
    driver.enable_interrupts();
    assert!(driver.received().is_empty(), "what came before is not pending");
}

#[test]
fn events_without_a_vector_send_nothing() {
    let mut driver = Driver::new();
    driver.enable_interrupts();
    driver.write16(16, NO_VECTOR);
    driver.write16(22, 0);
    driver.write16(26, NO_VECTOR);
    assert_eq!((driver.read16(16), driver.read16(26)), (NO_VECTOR, NO_VECTOR));
    driver.function.signal_queue(0);
    driver.function.signal_config();
    assert!(driver.received().is_empty());
    assert_eq!(pending(&mut driver), 0);
}

#[test]
fn vectors_beyond_the_table_read_back_as_no_vector() {
    let mut driver = Driver::new();
    for (vector, expected) in [
        (0, 0),
        (2, 2),
        (3, NO_VECTOR),
        (0x7ff, NO_VECTOR),
        (0xfffe, NO_VECTOR),
    ] {
        driver.write16(22, 1);
        for register in [16, 26] {
            driver.write16(register, vector);
            assert_eq!(driver.read16(register), expected, "{vector:#x} in {register}");
        }
    }
    driver.write16(22, 2);
    driver.write16(26, 1);
    assert_eq!(driver.read16(26), NO_VECTOR, "a queue that does not exist");
}

#[test]
fn a_masked_vector_is_pending_and_sent_once_when_it_is_unmasked() {
    let mut driver = Driver::new();
    driver.enable_interrupts();
    driver.write32(0x1010 + 12, 1);
    for _ in 0..3 {
        driver.function.signal_queue(0);
    }
    driver.function.signal_queue(1);
    assert_eq!(driver.received(), [2]);
    assert_eq!(pending(&mut driver), 0b010);
    // Changed while pending: the message is the new one.
    driver.write32(0x1010 + 8, 77);
    assert_eq!(pending(&mut driver), 0b010);
    driver.write32(0x1010 + 12, 0);
    assert_eq!(driver.received(), [77]);
    assert_eq!(pending(&mut driver), 0);
    driver.write32(0x1010 + 12, 0);
    assert!(driver.received().is_empty());
}

#[test]
fn nothing_is_sent_under_the_function_mask_or_without_bus_mastering() {
    for (offset, off, on) in [(0x43, 0xc0, 0x80), (4, 2, 6)] {
        let mut driver = Driver::new();
        driver.enable_interrupts();
        driver.write_config(offset, &[off]);
        driver.function.signal_queue(0);
        driver.function.signal_config();
        assert!(driver.received().is_empty());
        assert_eq!(pending(&mut driver), 0b011, "{offset:#x}");
        driver.write32(0x1000 + 12, 1);
        driver.write_config(offset, &[on]);
        assert_eq!(driver.received(), [1]);
        assert_eq!(pending(&mut driver), 0b001);
    }
}

#[test]
fn disabling_msix_keeps_the_table_and_what_is_pending() {
    let mut driver = Driver::new();
    driver.enable_interrupts();
    driver.write32(0x1010 + 12, 1);
    driver.function.signal_queue(0);
    let table = driver.read(0, 0x1000, 48);
    driver.write_config(0x43, &[0]);
    driver.write32(0x1010 + 12, 0);
    driver.function.signal_queue(1);
    assert!(driver.received().is_empty());
    assert_eq!(driver.read_isr(), 1);
    driver.write32(0x1010 + 12, 1);
    assert_eq!(driver.read(0, 0x1000, 48), table);
    driver.write_config(0x43, &[0x80]);
    driver.write32(0x1010 + 12, 0);
    assert_eq!(driver.received(), [1]);
}

#[test]
fn a_reset_of_the_device_unmaps_vectors_and_clears_pending_bits_but_not_the_table() {
    let mut driver = Driver::new();
    driver.activate();
    driver.enable_interrupts();
    driver.write32(0x1010 + 12, 1);
    driver.function.signal_queue(0);
    let table = driver.read(0, 0x1000, 48);
    driver.may_stop = None;
    driver.set_status(0);
    assert_eq!(pending(&mut driver), 0);
    assert_eq!((driver.read16(16), driver.read16(26)), (NO_VECTOR, NO_VECTOR));
    assert_eq!(driver.read(0, 0x1000, 48), table);
    driver.write32(0x1010 + 12, 0);
    assert!(driver.received().is_empty());
}

#[test]
fn the_table_accepts_aligned_words_and_pairs_of_words_only() {
    let mut driver = Driver::new();
    driver.write(0, 0x1020, &0x1_fee0_0000_u64.to_le_bytes());
    driver.write(0, 0x1028, &0x1_0000_0005_u64.to_le_bytes());
    let table = driver.read(0, 0x1000, 0x1000);
    assert_eq!(
        table[0x20..0x30],
        [0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0]
    );
    for (offset, length) in [
        (0x1000, 1),
        (0x1000, 2),
        (0x1001, 4),
        (0x1002, 4),
        (0x1004, 8),
        (0x1030, 4),
        (0x17fc, 4),
        (0x1800, 4),
        (0x1808, 8),
        (0x1ffc, 4),
    ] {
        driver.write(0, offset, &vec![0xff; length]);
        assert_eq!(
            driver.read(0, 0x1000, 0x1000),
            table,
            "{length} bytes at {offset:#x}"
        );
    }
}
