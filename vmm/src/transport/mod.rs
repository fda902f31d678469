//! Virtio transports: how a device and its driver communicate. virtio-mmio is the only one; devices do not
//! depend on it. The guest chooses all register values, so no code here may panic on any.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod mmio;
