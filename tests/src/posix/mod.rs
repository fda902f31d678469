//! Behaviours of a POSIX file system, and an exerciser of file contents. Both run in a container by the
//! program `nacre-files`; `nacre-posix` runs that under runc and under Nacre and compares.
//!
//! A behaviour only observes: it returns text, which is the same wherever the file system does what POSIX and
//! Linux's manual pages say. Its text never contains what differs between two runs: inode numbers, times (but
//! for their order), the order of a directory's entries.

mod behaviours;
pub mod compare;
pub mod exercise;
mod mapping;
pub mod process;
pub mod root;

use anyhow::Result;

pub use behaviours::all as behaviours;

/// Something that a program can observe of a file system.
pub struct Behaviour {
    /// Unique among all behaviours; `nacre-posix NAME` and `nacre-files behaviours DIRECTORY NAME` select by
    /// it.
    pub name: &'static str,
    /// What it must be on every file system of Linux. None if it depends on the file system: then only runc
    /// and Nacre are compared.
    pub expected: Option<&'static str>,
    /// Runs in a process of its own as root, whose working directory is empty and whose umask is 022. Returns
    /// one line.
    pub observe: fn() -> Result<String>,
}

/// Observes `behaviour` in a child process, in the new directory `number` of the working directory.
pub fn observe(behaviour: &Behaviour, number: usize) -> String {
    let observed = process::in_child(|| {
        let directory = number.to_string();
        std::fs::create_dir(&directory)?;
        std::env::set_current_dir(&directory)?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        (behaviour.observe)()
    });
    match observed {
        Ok(text) => text.replace('\n', " "),
        Err(error) => format!("failed: {error:#}"),
    }
}
