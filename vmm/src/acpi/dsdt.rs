//! The DSDT's body: an object for each device that the kernel can't detect, and the \_S5 package for
//! power-off. The kernel interprets no AML code at boot: the only method is the one that an interrupt of
//! [`super::generation_id`] calls. Called by [`super::build`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};

use super::{Platform, generation_id};
use crate::devices::power;
use crate::machine::layout;

/// The AML.
pub(super) fn body(platform: &Platform) -> Vec<u8> {
    let mut devices = Vec::new();
    for index in 0..platform.virtio_devices.min(layout::MAX_VIRTIO_DEVICES) {
        virtio(index, &mut devices);
    }
    if platform.serial {
        serial(&mut devices);
    }
    pvpanic(&mut devices);
    generation_id::devices(&mut devices);
    let mut body = Scope::raw("_SB_".into(), devices);
    // ACPI 6.5, 7.4.2: the first element is the value of SLP_TYP.
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&power::SLEEP_TYPE_S5, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut body);
    body
}

/// The `index`th virtio-mmio device. LNRO0005 is the id that Linux's virtio-mmio driver binds to.
fn virtio(index: u8, aml: &mut Vec<u8>) {
    let base = u32::try_from(layout::mmio_window(index)).unwrap_or(u32::MAX);
    let window = u32::try_from(layout::MMIO_WINDOW_BYTES).unwrap_or(u32::MAX);
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
                    &edge_interrupt(layout::virtio_gsi(index)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The serial port, COM1.
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
                    &edge_interrupt(layout::SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// pvpanic: QEMU0001 with one I/O port.
fn pvpanic(aml: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0xfu8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// An interrupt of the I/O APIC: edge-triggered, active high, not shared.
pub(super) fn edge_interrupt(gsi: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(gsi))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(aml: &[u8], pattern: &[u8]) -> usize {
        aml.windows(pattern.len())
            .filter(|window| *window == pattern)
            .count()
    }

    fn platform(virtio_devices: u8, serial: bool) -> Platform {
        Platform {
            vcpus: 1,
            virtio_devices,
            serial,
        }
    }

    #[test]
    fn the_body_has_each_device_and_the_power_off_state() {
        let aml = body(&platform(3, true));
        assert_eq!(count(&aml, b"LNRO0005"), 3);
        for name in [b"V000", b"V002", b"COM1", b"PEVT", b"GED0", b"_S5_"] {
            assert_eq!(count(&aml, name), 1, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn each_virtio_device_has_its_own_window_and_interrupt() {
        let aml = body(&platform(2, false));
        assert_eq!(count(&aml, b"COM1"), 0, "no terminal, no serial port");
        for index in 0..2u8 {
            let window = u32::try_from(layout::mmio_window(index)).unwrap().to_le_bytes();
            assert_eq!(count(&aml, &window), 1);
            // Extended interrupt descriptor (ACPI 6.5, 6.4.3.6): consumer, edge-triggered, active high, one
            // interrupt.
            assert_eq!(
                count(&aml, &[0x89, 6, 0, 3, 1, layout::virtio_gsi(index), 0, 0, 0]),
                1
            );
        }
    }
}
