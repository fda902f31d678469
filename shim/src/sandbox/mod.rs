//! containerd's Sandbox API: a pod that exists before its first container, without a pause container
//! (`sandboxer = "shim"`). containerd's messages are converted here and go no further; every decision is the
//! engine's. The tasks of the pod's containers are the Task service's (`service`).

mod pod_config;
mod service;
mod update;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use pod_config::pod_spec;
pub use service::services;
