//! ACPI tables of a hardware-reduced machine: the kernel finds CPUs, interrupt controllers, the PCI bus,
//! pvpanic, the VM generation id with its interrupt, and the registers for power-off and reset in them.
//! [`build`] is pure; the machine's steps write the result to guest memory.
//!
//! ```text
//! RSDP ─▶ XSDT ─▶ FADT ─▶ DSDT     devices and \_S5 (dsdt.rs)
//!             ├─▶ MADT             local APICs, I/O APIC
//!             └─▶ MCFG             the PCI bus's configuration spaces
//! ```

mod dsdt;
mod generation_id;

use acpi_tables::Aml as _;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes as _, GuestAddress};

use crate::devices::{pci, power};
use crate::layout;
use crate::memory::Memory;

const OEM_ID: [u8; 6] = *b"NACRE ";
const OEM_TABLE_ID: [u8; 8] = *b"NACREVMM";
const OEM_REVISION: u32 = 1;

/// The hardware that the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// Number of vCPUs, with those that are offline at boot; their APIC ids count from 0.
    pub vcpus: u8,
    /// Describe the serial port, so that programs in the guest can open it; the kernel's console works
    /// without. Its detection costs exits, so this is set only for a terminal.
    pub serial: bool,
}

/// The tables exceed their area or guest memory.
#[derive(Debug, thiserror::Error)]
#[error("ACPI tables of {bytes} bytes do not fit at {address:#x}")]
pub struct Error {
    /// Size of all tables.
    pub bytes: usize,
    /// Their physical address.
    pub address: u64,
}

/// All tables, contiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// The content of guest memory from [`layout::ACPI`] on; the RSDP is first.
    pub bytes: Vec<u8>,
}

/// Builds the tables for `platform`.
#[must_use]
pub fn build(platform: &Platform) -> Tables {
    let mut tables = Tables {
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = tables.append(&dsdt(platform));
    let mut fadt = Vec::new();
    fadt_for(dsdt).to_aml_bytes(&mut fadt);
    let fadt = tables.append(&fadt);
    let mut madt = Vec::new();
    madt_for(platform.vcpus).to_aml_bytes(&mut madt);
    let madt = tables.append(&madt);
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(u64::from(layout::PCI_CONFIG), pci::SEGMENT, 0, 0);
    let mut bytes = Vec::new();
    mcfg.to_aml_bytes(&mut bytes);
    let mcfg = tables.append(&bytes);
    let mut root_table = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    root_table.add_entry(fadt);
    root_table.add_entry(madt);
    root_table.add_entry(mcfg);
    let mut xsdt = Vec::new();
    root_table.to_aml_bytes(&mut xsdt);
    let xsdt = tables.append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    tables.bytes.splice(..rsdp.len(), rsdp);
    tables
}

impl Tables {
    /// Appends `table`, 16-byte aligned; returns its physical address.
    fn append(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = layout::ACPI.saturating_add(self.bytes.len() as u64);
        self.bytes.extend_from_slice(table);
        address
    }

    /// Writes the tables to guest memory at [`layout::ACPI`].
    ///
    /// # Errors
    /// [`Error`] if they exceed [`layout::ACPI_END`] or guest memory.
    pub fn write(&self, memory: &Memory) -> Result<(), Error> {
        let error = Error {
            bytes: self.bytes.len(),
            address: layout::ACPI,
        };
        if self.bytes.len() as u64 > layout::ACPI_END - layout::ACPI {
            return Err(error);
        }
        memory
            .write_slice(&self.bytes, GuestAddress(layout::ACPI))
            .map_err(|_| error)
    }
}

fn dsdt(platform: &Platform) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&dsdt::body(platform));
    table.as_slice().to_vec()
}

/// The FADT (ACPI 6.5, 5.2.9) of a hardware-reduced machine: the DSDT's address and three registers.
fn fadt_for(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut builder = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    // IAPC_BOOT_ARCH: no VGA (bit 2), no CMOS clock (bit 5); bit 1 is clear, so there is no 8042.
    builder.iapc_boot_arch = (1 << 2 | 1 << 5).into();
    builder.reset_reg = register(layout::POWER_PORT + power::RESET);
    builder.reset_value = power::RESET_VALUE;
    builder.sleep_control_reg = register(layout::POWER_PORT + power::SLEEP_CONTROL);
    builder.sleep_status_reg = register(layout::POWER_PORT + power::SLEEP_STATUS);
    builder.finalize()
}

fn madt_for(vcpus: u8) -> MADT {
    let mut table = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(vcpus, layout::IO_APIC, u32::from(layout::GSIS.start)));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(vcpus: u8) -> Platform {
        Platform { vcpus, serial: false }
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at physical address `address`, after a check of its signature and checksum.
    fn table(bytes: &[u8], address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let at = usize::try_from(address - layout::ACPI).unwrap();
        let table = bytes[at..at + u32_at(bytes, at + 4)].to_vec();
        assert_eq!(&table[..4], signature);
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {signature:?}");
        table
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_with_a_valid_checksum() {
        let bytes = build(&platform(4)).bytes;
        assert_eq!(&bytes[..8], b"RSD PTR ");
        for length in [20, Rsdp::len()] {
            assert_eq!(
                bytes[..length]
                    .iter()
                    .fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
                0
            );
        }
        let xsdt = table(&bytes, u64_at(&bytes, 24), b"XSDT");
        let fadt = table(&bytes, u64_at(&xsdt, 36), b"FACP");
        table(&bytes, u64_at(&fadt, 140), b"DSDT");
        let madt = table(&bytes, u64_at(&xsdt, 44), b"APIC");
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        let mcfg = table(&bytes, u64_at(&xsdt, 52), b"MCFG");
        assert_eq!(u64_at(&mcfg, 44), u64::from(layout::PCI_CONFIG));
        assert_eq!(mcfg[52..56], [1, 0, 0, 0], "segment 1, bus 0");
    }

    #[test]
    fn the_fadt_has_reset_and_sleep_registers() {
        let bytes = build(&platform(1)).bytes;
        let xsdt = table(&bytes, u64_at(&bytes, 24), b"XSDT");
        let fadt = table(&bytes, u64_at(&xsdt, 36), b"FACP");
        let flags = u32_at(&fadt, 112);
        assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
        assert_ne!(flags & 1 << 10, 0, "reset register supported");
        for (at, register) in [
            (116, power::RESET),
            (244, power::SLEEP_CONTROL),
            (256, power::SLEEP_STATUS),
        ] {
            assert_eq!(fadt[at..at + 4], [1, 8, 0, 1], "port, 8 bits, byte access");
            assert_eq!(u64_at(&fadt, at + 4), u64::from(layout::POWER_PORT + register));
        }
        assert_eq!(fadt[128], power::RESET_VALUE);
    }

    #[test]
    fn the_tables_of_the_largest_machine_fit() {
        let tables = build(&Platform {
            vcpus: crate::config::MAX_VCPUS,
            serial: true,
        });
        let memory = crate::memory::allocate(2 << 20).unwrap();
        tables.write(&memory).unwrap();
        assert_eq!(
            memory.read_obj::<[u8; 8]>(GuestAddress(layout::ACPI)).unwrap(),
            *b"RSD PTR "
        );
    }
}
