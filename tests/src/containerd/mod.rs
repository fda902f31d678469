//! Drives containerd for tests: `ctr` with deadlines, bundles, terminals, and direct calls to a shim.

pub mod bundle;
pub mod ctr;
pub mod ends;
pub mod pod;
pub mod restart;
pub mod task;
pub mod terminal;

/// The containerd runtime that runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Runtime {
    /// The runtime under test.
    #[default]
    Nacre,
    /// The runtime that Nacre is compared with.
    Runc,
}

impl Runtime {
    /// The runtime's name for `ctr run --runtime`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nacre => "io.containerd.nacre.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }

    /// The short name, for output and container ids.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nacre => "nacre",
            Self::Runc => "runc",
        }
    }
}
