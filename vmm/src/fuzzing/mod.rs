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
mod input;
mod pci;
mod session;

/// A function that takes any input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its program in `fuzz/targets/` and of its inputs in `fuzz/corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
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
    use super::*;

    #[test]
    fn committed_inputs_of_every_target_pass() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            target(&[]);
            for input in std::fs::read_dir(corpus.join(name)).unwrap() {
                target(&std::fs::read(input.unwrap().path()).unwrap());
            }
        }
    }
}
