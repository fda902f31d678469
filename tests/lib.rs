//! What the end-to-end tests, the comparison with runc and the benchmark share. Programs are in `e2e/`, `parity/`,
//! `bench/` and `lab/`.

pub mod conformance;
pub mod containerd;
pub mod memory;
pub mod parity;
