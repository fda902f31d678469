//! Turns the tables of [`super::calls`] into the kernel's filter programs and installs them. Knows no system call.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::calls::{self, Argument, Call};
use super::{Error, ThreadKind, step};

/// What a system call outside the tables gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// The whole process dies by SIGSYS.
    Kill,
    /// It goes through and stands in the host kernel's log (`type=1326`): for finding out what is missing, by hand.
    Log,
}

/// The compiled programs.
#[derive(Debug)]
pub struct Filters {
    vcpu: BpfProgram,
    device: BpfProgram,
    file_server: BpfProgram,
    control: BpfProgram,
}

impl Filters {
    /// Compiles the tables of every kind.
    pub fn compile(violation: Violation) -> Result<Self, Error> {
        let program = |kind| {
            step(
                "compiling a system call filter",
                compile(calls::of(kind), violation),
            )
        };
        Ok(Self {
            vcpu: program(ThreadKind::Vcpu)?,
            device: program(ThreadKind::Device)?,
            file_server: program(ThreadKind::FileServer)?,
            control: program(ThreadKind::Control)?,
        })
    }

    /// Installs the program of `kind` for the calling thread, for good.
    pub fn install(&self, kind: ThreadKind) -> Result<(), Error> {
        let program = match kind {
            ThreadKind::Vcpu => &self.vcpu,
            ThreadKind::Device => &self.device,
            ThreadKind::FileServer => &self.file_server,
            ThreadKind::Control => &self.control,
        };
        step("installing a system call filter", apply_filter(program))
    }
}

fn compile<'a>(
    calls: impl Iterator<Item = &'a Call>,
    violation: Violation,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls {
        rules.insert(call.number, alternatives(call)?);
    }
    let default = match violation {
        Violation::Kill => SeccompAction::KillProcess,
        Violation::Log => SeccompAction::Log,
    };
    SeccompFilter::new(rules, default, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The rules for one call, of which one must match; none: any arguments are fine.
fn alternatives(call: &Call) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let equal = |index, value| condition(index, SeccompCmpOp::Eq, value);
    match call.argument {
        Argument::Any => Ok(Vec::new()),
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
