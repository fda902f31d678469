//! Devices that are not virtio: the serial console, pvpanic, the power registers, empty PCI. Each is a handful of ports on the
//! port bus ([`crate::bus`]), called by vCPU threads.

pub mod console;
pub mod panic;
pub mod pci;
pub mod power;
pub mod serial;
