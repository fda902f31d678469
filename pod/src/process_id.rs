//! Identifies a process of a pod: by the names that the caller chose ([`ProcessId`]), or, in events, by those
//! names and a serial number ([`ProcessKey`]), so that a late event about a deleted process never reaches a
//! new one of the same name.

/// A container's init process, or an exec process in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The container's id.
    pub container: String,
    /// The exec id; empty for init.
    pub exec: String,
}

impl ProcessId {
    /// The init process of `container`.
    pub fn init(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: String::new(),
        }
    }

    /// True for a container's init process, false for an exec process.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.exec.is_empty()
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_init() {
            write!(f, "task {}", self.container)
        } else {
            write!(f, "process {} of task {}", self.exec, self.container)
        }
    }
}

/// Identifies one process over the whole life of the pod, even if its names are used again after Delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessKey {
    /// The process's names.
    pub name: ProcessId,
    /// Counts the pod's processes from 0.
    pub serial: u64,
}
