//! The fuzzer's targets of the engine: each passes its input to the real code, with the guest, a VMM that the
//! guest has taken over, or a spec as the attacker. Called by the programs in `fuzz/`, and by the test below
//! with the inputs that are committed there. A panic and a broken promise are findings.
//!
//! No program of Nacre's contains this module. It starts no process and opens no file.

#![allow(missing_docs, reason = "names say all")]

mod agent;
mod events;
mod specs;

use nacre_fuzzing::{Input, Targets};

/// Every target by its name.
pub const TARGETS: Targets = &[
    ("agent", agent::agent),
    ("events", events::events),
    ("pod_spec", specs::pod_spec),
    ("spec", specs::spec),
];

/// The bytes after their number, two bytes.
fn sized<'a>(input: &mut Input<'a>) -> &'a [u8] {
    let count = input.u16();
    input.bytes(count.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn committed_inputs_of_every_target_pass() {
        nacre_fuzzing::pass_committed_inputs(super::TARGETS);
    }
}
