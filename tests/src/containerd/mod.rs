//! containerd as a test drives it: `ctr` with deadlines, whole specifications, terminals.

pub mod bundle;
pub mod ctr;
pub mod task;
pub mod terminal;

/// Who runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Runtime {
    /// The runtime under test.
    #[default]
    Nacre,
    /// What it is compared with.
    Runc,
}

impl Runtime {
    /// As `ctr run --runtime` wants it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nacre => "io.containerd.nacre.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }

    /// As people say it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nacre => "nacre",
            Self::Runc => "runc",
        }
    }
}
