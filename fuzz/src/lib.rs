//! What the programs of the fuzzer have in common. Each is named after the target that it runs.

/// Carries out what an input says.
pub type Target = fn(&[u8]);

/// Passes `data` to the target `name`, whose crate has `targets`.
///
/// # Panics
/// If there is no such target.
pub fn run(targets: &[(&str, Target)], name: &str, data: &[u8]) {
    let target = targets.iter().find(|(target, _)| *target == name);
    let (_, run) = target.expect("the crate has no such target");
    run(data);
}
