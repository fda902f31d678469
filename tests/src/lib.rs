//! The library that the end-to-end tests, the comparison with runc and the benchmark share. Their programs
//! are in `bin/`; the lab that runs them is a crate of its own, `tests/lab`.

pub mod commits;
pub mod conformance;
pub mod container_program;
pub mod containerd;
pub mod cri;
pub mod elf;
pub mod file_times;
pub mod growth;
pub mod guests;
pub mod host_mount;
pub mod hostile;
pub mod hung_file_system;
pub mod identity;
pub mod installation;
pub mod leaks;
pub mod loop_device;
pub mod memory;
pub mod parity;
pub mod posix;
pub mod runner;
pub mod selection;
pub mod soak;
pub mod templates;
pub mod tls;
