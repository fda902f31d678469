//! AML of the VM generation id ("Virtual Machine Generation ID", Microsoft 2012): the device that names the
//! address of the id, and the Generic Event Device (ACPI 6.5, 5.6.9) whose interrupt notifies the guest's
//! driver that the id has changed. Called by [`mod@super::dsdt`]; [`crate::devices::generation_id`] writes the
//! id and raises the interrupt.

use acpi_tables::Aml;
use acpi_tables::aml::{Arg, Device, Equal, If, Method, Name, Notify, Package, Path, ResourceTemplate};

use super::dsdt::edge_interrupt;
use crate::layout;

/// The value with which the specification notifies the device that its id has changed.
const ID_CHANGED: u8 = 0x80;

/// Appends both devices to `aml`, in the scope `\_SB_`.
pub(super) fn devices(aml: &mut Vec<u8>) {
    id(aml);
    event(aml);
}

/// The id. ADDR has its physical address as two 32-bit values. The specification leaves _HID to the
/// hypervisor and sets _CID and _DDN.
fn id(aml: &mut Vec<u8>) {
    let low = u32::try_from(layout::GENERATION_ID & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(layout::GENERATION_ID >> 32).unwrap_or_default();
    let halves: Vec<&dyn Aml> = vec![&low, &high];
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"NACR0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(halves)),
        ],
    )
    .to_aml_bytes(aml);
}

/// The event device. The kernel calls _EVT with the number of the interrupt that was raised.
fn event(aml: &mut Vec<u8>) {
    let device = Path::new("VGEN");
    let notify = Notify::new(&device, &ID_CHANGED);
    let (argument, gsi) = (Arg(0), layout::GENERATION_ID_GSI);
    let is_raised = Equal::new(&argument, &gsi);
    Device::new(
        "GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&edge_interrupt(gsi)])),
            &Method::new("_EVT".into(), 1, true, vec![&If::new(&is_raised, vec![&notify])]),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(aml: &[u8], pattern: &[u8]) -> bool {
        aml.windows(pattern.len()).any(|window| window == pattern)
    }

    #[test]
    fn the_device_has_the_names_and_the_address_of_the_specification() {
        let mut aml = Vec::new();
        id(&mut aml);
        assert!(contains(&aml, b"_CID\x0dVM_Gen_Counter\0"));
        assert!(contains(&aml, b"_DDN\x0dVM_Gen_Counter\0"));
        // Name, package of 2: DWord 0xff000, zero.
        assert!(
            contains(&aml, b"ADDR\x12\x08\x02\x0c\x00\xf0\x0f\x00\x00"),
            "{aml:x?}"
        );
    }

    #[test]
    fn the_interrupt_notifies_the_device_of_a_change() {
        let mut aml = Vec::new();
        event(&mut aml);
        assert!(contains(&aml, b"_HID\x0dACPI0013\0"));
        // Extended interrupt descriptor (ACPI 6.5, 6.4.3.6): consumer, edge-triggered, active high.
        assert!(contains(
            &aml,
            &[0x89, 6, 0, 3, 1, layout::GENERATION_ID_GSI, 0, 0, 0]
        ));
        // Method with one argument, serialized: If (Arg0 == GSI) { Notify (VGEN, 0x80) }.
        let method = [
            b"_EVT\x09\xa0\x0c\x93\x68\x0a".as_slice(),
            &[layout::GENERATION_ID_GSI],
            b"\x86VGEN\x0a\x80",
        ]
        .concat();
        assert!(contains(&aml, &method), "{aml:x?}");
    }
}
