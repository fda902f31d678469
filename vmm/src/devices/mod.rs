//! Devices without virtio. Those on the buses ([`crate::bus`]) are the serial port, pvpanic, the power
//! registers, the I/O APIC and the PCI bus; vCPU threads call them on each access. The VM generation id is in
//! memory. The guest chooses all values, so no code here may panic on any.
#![cfg_attr(
    not(any(test, feature = "fuzzing")),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod cmos;
pub mod console;
pub mod generation_id;
pub mod io_apic;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod serial;
