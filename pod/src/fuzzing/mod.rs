//! The fuzzer's targets of the engine: each passes its input to the real code, with the guest, a VMM that the
//! guest has taken over, or a spec as the attacker. Called by the programs in `fuzz/`, and by the test below
//! with the inputs that are committed there. A panic and a broken promise are findings.
//!
//! No program of Nacre's contains this module. It starts no process and opens no file.

#![allow(missing_docs, reason = "names say all")]

mod agent;
mod events;
mod specs;

/// A function that takes any input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its program in `fuzz/targets/` and of its inputs in `fuzz/corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent", agent::agent),
    ("events", events::events),
    ("pod_spec", specs::pod_spec),
    ("spec", specs::spec),
];

/// Takes the first `count` bytes of `input`, or all of them.
fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (first, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    first
}

/// Takes a byte of `input`, 0 if there is none.
fn byte(input: &mut &[u8]) -> u8 {
    take(input, 1).first().copied().unwrap_or(0)
}

/// Takes bytes after their number, two bytes.
fn sized<'a>(input: &mut &'a [u8]) -> &'a [u8] {
    let count = u16::from_le_bytes([byte(input), byte(input)]);
    take(input, count.into())
}

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
