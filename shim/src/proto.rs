//! containerd's and CRI's messages that the crate containerd-shim-protos lacks, generated from `proto/`.
#![allow(
    missing_docs,
    unused_mut,
    clippy::all,
    clippy::pedantic,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
