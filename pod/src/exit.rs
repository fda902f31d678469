//! How a process ended.

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exit {
    /// The exit status, 0..=255; 128 + signal if a signal ended the process.
    pub status: u32,
    /// Wall-clock time of the exit, nanoseconds since the epoch.
    pub at_ns: i64,
    /// Processes of the container that had been OOM-killed by then.
    pub oom_kills: u64,
}
