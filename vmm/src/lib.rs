//! Nacre's virtual machine monitor: one process, one microVM.
//!
//! ```text
//! main ─▶ config ─▶ jail ─▶ machine ─┬▶ kvm      VM, memory slots, vCPU threads
//!                                    ├▶ boot     kernel, initramfs, command line, zero page
//!                                    ├▶ acpi     tables
//!                                    ├▶ devices  serial console, pvpanic, power      ┐ on a bus, reached
//!                                    └▶ virtio   behind transport                    ┘ from vCPU threads
//! main ─▶ watch ─▶ control                       the shim's questions, the guest's end
//! ```

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod config;
pub mod control;
pub mod devices;
pub mod jail;
pub mod kvm;
mod log;
pub mod machine;
pub mod probe;
pub mod process;
pub mod shim_managed;
pub mod transport;
pub mod virtio;
pub mod watch;
