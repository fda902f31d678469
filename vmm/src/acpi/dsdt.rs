//! The DSDT's body: an object for each device that the kernel can't detect, and the \_S5 package for
//! power-off. The kernel interprets no AML code at boot: the only method is the one that an interrupt of
//! [`super::generation_id`] calls. Called by [`super::build`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope,
};

use super::{Platform, generation_id};
use crate::devices::{pci, power};
use crate::layout;

/// The AML.
pub(super) fn body(platform: &Platform) -> Vec<u8> {
    let mut devices = Vec::new();
    pci_bus(&mut devices);
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

/// The PCI bus (PCI Firmware 3.3, 4): segment, bus number and memory window. There are no interrupt pins, so
/// no _PRT. The configuration spaces are reserved as the resource of a motherboard device (4.1.2), without
/// which Linux does not use MCFG.
fn pci_bus(aml: &mut Vec<u8>) {
    let window_end = layout::PCI_WINDOW.saturating_add(layout::PCI_WINDOW_BYTES - 1);
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_SEG".into(), &pci::SEGMENT),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::PCI_WINDOW,
                        window_end,
                        None,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
    let config_bytes = u32::try_from(pci::ECAM_BYTES).unwrap_or(u32::MAX);
    Device::new(
        "MCFG".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, layout::PCI_CONFIG, config_bytes)]),
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

    fn platform(serial: bool) -> Platform {
        Platform { vcpus: 1, serial }
    }

    #[test]
    fn the_body_has_each_device_and_the_power_off_state() {
        let aml = body(&platform(true));
        for name in [b"PCI0", b"MCFG", b"COM1", b"PEVT", b"GED0", b"_S5_"] {
            assert_eq!(count(&aml, name), 1, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn the_pci_bus_has_a_segment_a_memory_window_and_reserved_configuration_spaces() {
        let aml = body(&platform(false));
        assert_eq!(count(&aml, b"COM1"), 0, "no terminal, no serial port");
        let window_end = layout::PCI_WINDOW + layout::PCI_WINDOW_BYTES - 1;
        for address in [layout::PCI_CONFIG, layout::PCI_WINDOW, window_end] {
            assert_eq!(count(&aml, &address.to_le_bytes()), 1, "{address:#x}");
        }
        assert_eq!(count(&aml, b"_SEG\x01"), 1);
        assert_eq!(count(&aml, b"_PRT"), 0, "no interrupt pins");
    }
}
