//! The library that the end-to-end tests, the comparison with runc and the benchmark share. Their programs
//! are in `e2e/`, `parity/`, `bench/` and `lab/`.

pub mod conformance;
pub mod containerd;
pub mod memory;
pub mod parity;
