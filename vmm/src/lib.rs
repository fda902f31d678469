//! Nacre's virtual machine monitor: one process runs one microVM.
//!
//! ```text
//! main ─┬▶ standalone   ┬▶ config ─▶ jail ─▶ machine ─┬▶ kvm      VM, memory slots, vCPU threads
//!       └▶ shim_managed ┘                             ├▶ boot     kernel, initramfs, command line, zero page
//!                                                     ├▶ acpi     tables
//!                                                     ├▶ devices  serial port, pvpanic, power  ┐ on a bus, called
//!                                                     └▶ virtio   behind transport             ┘ by vCPU threads
//!                        standalone ─▶ snapshot    the machine's state in two files, for another process
//! standalone, shim_managed ─▶ main_loop ─▶ control    the shim's requests, the end of the VM
//! ```
//!
//! All of them may use `layout`, `memory`, `msi`, `process` and `vm_exit`. A module uses only what is to its right or
//! below it: no module at the top of this crate reaches itself.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod commands;
pub mod config;
pub mod control;
pub mod devices;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod jail;
pub mod kvm;
pub mod layout;
mod log;
pub mod machine;
pub mod main_loop;
pub mod memory;
pub mod msi;
pub mod probe;
pub mod process;
pub mod shim_managed;
pub mod snapshot;
pub mod transport;
pub mod virtio;
pub mod vm_exit;
