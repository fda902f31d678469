//! The DSDT's body: one device object for each thing that the kernel can't find by itself, and the \_S5 package
//! that makes power-off known. No methods, so the kernel interprets nothing.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};

use super::Machine;
use crate::devices::power;
use crate::machine::layout;

/// AML of the whole body.
pub(super) fn body(machine: &Machine, generation_id: u64) -> Vec<u8> {
    let mut devices = Vec::new();
    for index in 0..machine.virtio_devices.min(layout::MAX_VIRTIO) {
        virtio(index, &mut devices);
    }
    if machine.serial {
        serial(&mut devices);
    }
    panic(&mut devices);
    generation(generation_id, &mut devices);
    let mut body = Scope::raw("_SB_".into(), devices);
    // ACPI 6.5, 7.4.2: the first element is what SLP_TYP takes.
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&power::SLEEP_OFF, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut body);
    body
}

/// A virtio-mmio device: LNRO0005 is the id that the kernel's virtio-mmio driver binds to.
fn virtio(index: u8, aml: &mut Vec<u8>) {
    let base = u32::try_from(layout::mmio_window(index)).unwrap_or(u32::MAX);
    let window = u32::try_from(layout::MMIO_WINDOW).unwrap_or(u32::MAX);
    Device::new(
        Path::new(&format!("V{index:03}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, window),
                    &edge(layout::virtio_gsi(index)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The serial console.
fn serial(aml: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
                    &edge(layout::SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// pvpanic: QEMU0001 with one port.
fn panic(aml: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0xfu8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The VM generation id: ADDR holds the address of its 16 bytes as two words.
fn generation(address: u64, aml: &mut Vec<u8>) {
    let low = u32::try_from(address & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(address >> 32).unwrap_or_default();
    let words: Vec<&dyn Aml> = vec![&low, &high];
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"NACR0001"),
            &Name::new("_CID".into(), &"VM_GEN_COUNTER"),
            &Name::new("_DDN".into(), &"VM_GEN_COUNTER"),
            &Name::new("ADDR".into(), &Package::new(words)),
        ],
    )
    .to_aml_bytes(aml);
}

fn edge(line: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(aml: &[u8], word: &[u8]) -> usize {
        aml.windows(word.len()).filter(|window| *window == word).count()
    }

    fn machine(virtio_devices: u8, serial: bool) -> Machine {
        Machine {
            vcpus: 1,
            virtio_devices,
            serial,
            generation_id: [0; 16],
        }
    }

    #[test]
    fn has_each_device_and_the_power_off_state() {
        let aml = body(&machine(3, true), 0xe_0010);
        assert_eq!(count(&aml, b"LNRO0005"), 3);
        for word in [b"V000", b"V002", b"COM1", b"PEVT", b"VGEN", b"_S5_", b"ADDR"] {
            assert_eq!(count(&aml, word), 1, "{}", String::from_utf8_lossy(word));
        }
        assert_eq!(
            count(&aml, &0x000e_0010u32.to_le_bytes()),
            1,
            "where the generation id is"
        );
    }

    #[test]
    fn each_virtio_device_has_its_own_window_and_line() {
        let aml = body(&machine(2, false), 0);
        assert_eq!(count(&aml, b"COM1"), 0, "nobody sits at the console");
        for index in 0..2u8 {
            let window = u32::try_from(layout::mmio_window(index)).unwrap().to_le_bytes();
            assert_eq!(count(&aml, &window), 1);
            // Extended interrupt descriptor (ACPI 6.5, 6.4.3.6): consumer, edge-triggered, active high, one line.
            assert_eq!(
                count(&aml, &[0x89, 6, 0, 3, 1, layout::virtio_gsi(index), 0, 0, 0]),
                1
            );
        }
    }
}
