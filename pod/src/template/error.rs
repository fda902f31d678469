//! Why there is no template for a pod, and which operation on one failed. The texts of [`Absent`] are in a pod's
//! timeline.

#[cfg(doc)]
use super::Store;
use super::store::MAX_TEMPLATES;
use crate::state;

/// Why a pod has no template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// `templates = false` in config.toml.
    #[error("templates are off in config.toml")]
    Off,
    /// No pod of this kind has started before.
    #[error("there is no template for this kind of pod yet")]
    None,
    /// Its console is to be logged from the boot on.
    #[error("console_to_log in config.toml: the guest boots, so that the log has all of it")]
    Logged,
    /// A template with its memory at boot, MiB, would be large, or the rest would take long to plug in.
    #[error("the pod has {0} MiB at boot, which is more than templates are for")]
    Large(u32),
    /// One could not be made, or a guest did not continue from it: what [`Store::record_failure`] has recorded.
    #[error("{0}")]
    Failed(String),
    /// A part of it is something else than what a VMM has saved. Whoever makes one next replaces it.
    #[error("template {key} can't be used: {reason}")]
    Unusable {
        /// The name of its directory.
        key: String,
        /// The part, and what it must be.
        reason: String,
    },
    /// A file of it, or of the kind, can't be opened for a reason that says nothing of the template.
    #[error("{0}")]
    Unreadable(String),
}

/// An operation on a template failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error(transparent)]
    State(#[from] state::Error),
    /// All templates were used not long ago.
    #[error("there are {MAX_TEMPLATES} templates already, and each was used in the last hour")]
    Full,
    /// The VMM did not make it.
    #[error("{0}")]
    NotMade(String),
}
