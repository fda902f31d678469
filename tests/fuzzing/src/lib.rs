//! What the fuzzer's targets have in common, in whatever crate they are (docs/security-tests.md). Used by the modules
//! `fuzzing` of the VMM, the engine and containerd's door, and by the fuzzer's programs in `fuzz/`. No program of
//! Nacre's contains it.

mod input;

use std::path::Path;

pub use input::Input;

/// A function that takes any input.
pub type Target = fn(&[u8]);

/// The targets of a crate by their names, which are those of their programs in `fuzz/targets/` and of their inputs in
/// `fuzz/corpus/`.
pub type Targets = &'static [(&'static str, Target)];

/// Passes `data` to the target `name`.
///
/// # Panics
/// If there is no such target, and if the target finds a fault.
pub fn run(targets: Targets, name: &str, data: &[u8]) {
    let target = targets.iter().find(|(target, _)| *target == name);
    let (_, run) = target.expect("the crate has no such target");
    run(data);
}

/// Passes the committed inputs of each target to it, and an empty one.
///
/// # Panics
/// If a target has no inputs that can be read, and if it finds a fault.
pub fn pass_committed_inputs(targets: Targets) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in targets {
        target(&[]);
        for input in std::fs::read_dir(corpus.join(name)).unwrap() {
            target(&std::fs::read(input.unwrap().path()).unwrap());
        }
    }
}
