//! How a virtio device meets its driver. virtio-mmio is the only way so far; no device knows that.

pub mod mmio;
