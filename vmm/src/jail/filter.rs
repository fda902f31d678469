//! Compiles the tables of [`super::calls`] to seccomp BPF programs and installs them. Names no system call
//! itself.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::calls::{Argument, Call, Profile};
use super::{Error, step};

/// What happens on a system call that the thread's table does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// SECCOMP_RET_KILL_PROCESS: SIGSYS ends the whole process.
    Kill,
    /// SECCOMP_RET_LOG: the call is executed, and the host's kernel logs it as `type=1326`. To find the calls
    /// that a table lacks.
    Log,
    /// As [`Violation::Kill`], and [`super::recorder`] notes the calls that are made.
    #[cfg(any(test, feature = "fuzzing"))]
    Record,
}

/// Installs the filter of `profile` for the calling thread. A filter can't be removed.
pub fn install(profile: &Profile, violation: Violation) -> Result<(), Error> {
    let program = step("compile a seccomp filter", compile(profile, violation))?;
    #[cfg(any(test, feature = "fuzzing"))]
    if violation == Violation::Record {
        return step("install a recorder", super::recorder::install(program));
    }
    if let Some(refusals) = step("compile a seccomp filter", compile_unsupported(profile))? {
        step("install a seccomp filter", apply_filter(&refusals))?;
    }
    step("install a seccomp filter", apply_filter(&program))
}

/// A second filter for the calls that fail with ENOSYS; the first one allows them. Of the actions of several
/// filters, the kernel takes the strictest.
fn compile_unsupported(profile: &Profile) -> Result<Option<BpfProgram>, seccompiler::BackendError> {
    let calls = profile
        .calls()
        .filter(|call| matches!(call.argument, Argument::Unsupported));
    let rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (call.number, Vec::new())).collect();
    if rules.is_empty() {
        return Ok(None);
    }
    let errno = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?;
    filter.try_into().map(Some)
}

fn compile(profile: &Profile, violation: Violation) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in profile.calls() {
        rules.insert(call.number, rules_for(call)?);
    }
    let default = match violation {
        Violation::Kill => SeccompAction::KillProcess,
        Violation::Log => SeccompAction::Log,
        #[cfg(any(test, feature = "fuzzing"))]
        Violation::Record => SeccompAction::KillProcess,
    };
    SeccompFilter::new(rules, default, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The rules of one call, at least one of which must match. An empty list matches any arguments.
fn rules_for(call: &Call) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let equal = |index, value| condition(index, SeccompCmpOp::Eq, value);
    match call.argument {
        Argument::Any | Argument::Unsupported => Ok(Vec::new()),
        Argument::OneOf { index, values } => values
            .iter()
            .map(|value| SeccompRule::new(vec![equal(index, *value)?]))
            .collect(),
        Argument::Options(values) => values
            .iter()
            .map(|(first, second)| {
                let mut conditions = vec![equal(0, *first)?];
                if let Some(second) = second {
                    conditions.push(equal(1, *second)?);
                }
                SeccompRule::new(conditions)
            })
            .collect(),
        Argument::Without { index, bits } => Ok(vec![SeccompRule::new(vec![condition(
            index,
            SeccompCmpOp::MaskedEq(bits),
            0,
        )?])?]),
    }
}

fn condition(
    index: u8,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, comparison, value)
}
