//! The virtio transport: how a device and its driver communicate. virtio-pci is the only one; devices do not
//! depend on it. The guest chooses all register values, so no code here may panic on any.
//!
//! [`status`] has the driver's initialization sequence, [`queue`] checks a queue's setup; both are pure.
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

pub mod pci;
mod queue;
mod status;
