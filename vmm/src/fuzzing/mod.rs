//! The fuzzer's targets of the VMM: each carries out what its input says on the real code, with the guest or
//! the shim as the attacker. Called by the programs in `fuzz/`, and by the test below with the inputs that are
//! committed there. A panic, a worker that does not answer within 10 s, and a broken promise are findings.
//!
//! No program of Nacre's contains this module. It never touches files outside of a temporary directory.

#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    reason = "names say all, and numbers of a fuzzer's input may be cut"
)]

mod control;
mod devices;
mod files;
mod pci;
mod session;

use nacre_fuzzing::Targets;

/// Every target by its name.
pub const TARGETS: Targets = &[
    ("balloon", devices::balloon),
    ("blk", devices::blk),
    ("control", control::control),
    ("fs", files::fs),
    ("mem", devices::mem),
    ("net", devices::net),
    ("pci", pci::pci),
    ("rings", pci::rings),
    ("vsock", devices::vsock),
];

#[cfg(test)]
mod tests {
    #[test]
    fn committed_inputs_of_every_target_pass() {
        nacre_fuzzing::pass_committed_inputs(super::TARGETS);
    }
}
