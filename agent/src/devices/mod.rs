//! Compiles a container's device rules (`linux.resources.devices`) to a BPF program of type
//! BPF_PROG_TYPE_CGROUP_DEVICE: rules in, instructions out. [`load`] attaches the program to the container's
//! cgroup.
//!
//! The kernel runs the program with the requested access (read, write, mknod) and the device's type and
//! numbers. For each permission the last rule that matches decides; a permission that no rule matches is
//! denied. As in runc, the devices that every container has are allowed after all rules.

pub mod load;

use std::path::Path;

use nacre_protocol::bpf::instruction;
use nacre_protocol::bpf::opcode::{
    AND, EXIT, JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, LOAD_WORD, MOVE, MOVE_REGISTER, SHIFT_RIGHT,
};
use nacre_protocol::spec::add_name;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::error::Error;

/// Access bits, the upper 16 bits of `bpf_cgroup_dev_ctx.access_type` (BPF_DEVCG_ACC_*).
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
/// Device types, the lower 16 bits of `bpf_cgroup_dev_ctx.access_type` (BPF_DEVCG_DEV_*).
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// A parsed rule. None matches every device type or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const ANYTHING: Rule = Rule {
    allow: true,
    kind: None,
    major: None,
    minor: None,
    access: ALL,
};

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule {
        allow: true,
        kind: Some(CHARACTER),
        major: Some(major),
        minor,
        access: ALL,
    }
}

/// Allowed for every container, as in runc: mknod of all devices; use of null, zero, full, random, urandom,
/// tty, ptmx and pts.
const DEFAULTS: [Rule; 10] = [
    Rule {
        allow: true,
        kind: Some(CHARACTER),
        major: None,
        minor: None,
        access: MKNOD,
    },
    Rule {
        allow: true,
        kind: Some(BLOCK),
        major: None,
        minor: None,
        access: MKNOD,
    },
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(2)),
    character(136, None),
];

/// Checks that the guest has the devices in `linux.devices`. If `may_use_all` is set (a privileged container,
/// which lists all devices of the host), missing ones are removed from `spec`, and the result is a line that
/// names them.
///
/// # Errors
/// [`Error::BadSpec`] with the first missing device if `may_use_all` is not set: its node would be unusable,
/// or would be a different device than on the host.
pub fn leave_out_missing(spec: &mut Spec, may_use_all: bool) -> Result<Option<String>, Error> {
    let is_missing = |device: &LinuxDevice| {
        let kind = if device.typ() == LinuxDeviceType::B {
            "block"
        } else {
            "char"
        };
        let node = format!("/sys/dev/{kind}/{}:{}", device.major(), device.minor());
        device.typ() != LinuxDeviceType::P && !Path::new(&node).exists()
    };
    let field = "linux.devices";
    let linux = spec.linux_mut().as_mut();
    let Some(devices) = linux.and_then(|linux| linux.devices_mut().as_mut()) else {
        return Ok(None);
    };
    let mut names = String::new();
    for device in devices.iter().filter(|device| is_missing(device)) {
        let (major, minor, path) = (device.major(), device.minor(), device.path().display());
        if !may_use_all {
            return Err(Error::BadSpec {
                field: field.into(),
                reason: format!("the guest has no device {major}:{minor} for {path}"),
            });
        }
        add_name(&mut names, &path.to_string());
    }
    if names.is_empty() {
        return Ok(None);
    }
    devices.retain(|device| !is_missing(device));
    Ok(Some(format!("{field}: the guest does not have {names}")))
}

/// Compiles `rules` of a checked spec to the instructions of a program, one `struct bpf_insn` per element.
/// Empty if the rules allow everything, so that no program is needed.
///
/// # Errors
/// [`Error::BadSpec`] for a rule that the check should have refused.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, Error> {
    let rules: Option<Vec<Rule>> = rules.iter().map(parse).collect();
    let rules = rules.ok_or_else(|| Error::bad_spec("linux.resources.devices", "has an invalid rule"))?;
    let allows_all = rules
        .last()
        .is_some_and(|last| last.allow && ANYTHING.is_covered_by(last));
    if allows_all {
        return Ok(Vec::new());
    }
    Ok(compile(&effective(&rules)))
}

/// `rules` and the defaults, without rules that have no effect: those that a later rule covers, and leading
/// rules that deny. This keeps the program short, because the kernel's verifier takes most of the time of
/// loading it.
fn effective(rules: &[Rule]) -> Vec<Rule> {
    let all: Vec<Rule> = rules.iter().chain(&DEFAULTS).copied().collect();
    let covered = |index: usize, rule: &Rule| {
        all.iter()
            .skip(index)
            .skip(1)
            .any(|later| rule.is_covered_by(later))
    };
    all.iter()
        .enumerate()
        .filter(|(index, rule)| !covered(*index, rule))
        .map(|(_, rule)| *rule)
        .skip_while(|rule| !rule.allow)
        .collect()
}

impl Rule {
    /// True if `other` matches every access that this rule matches.
    fn is_covered_by(&self, other: &Self) -> bool {
        let within = |ours: Option<u32>, others: Option<u32>| others.is_none() || ours == others;
        within(self.kind, other.kind)
            && within(self.major, other.major)
            && within(self.minor, other.minor)
            && self.access & !other.access == 0
    }
}

/// None for a rule that the check refuses.
fn parse(rule: &LinuxDeviceCgroup) -> Option<Rule> {
    let kind = match rule.typ() {
        // As in runc, a rule for all types matches everything; its numbers and its access are not looked at.
        None | Some(LinuxDeviceType::A) => {
            return Some(Rule {
                allow: rule.allow(),
                ..ANYTHING
            });
        }
        Some(LinuxDeviceType::B) => BLOCK,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => CHARACTER,
        Some(LinuxDeviceType::P) => return None,
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Some(None),
        Some(number) => u32::try_from(number).ok().map(Some),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return None,
        };
    }
    Some(Rule {
        allow: rule.allow(),
        kind: Some(kind),
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    })
}

// Registers of the program. The kernel passes the context in R1 and takes the verdict from R0.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Checks the rules from the last to the first. A matching rule that allows clears its permissions in WANTED,
/// and the access is allowed once WANTED is 0. A matching rule that denies a permission still in WANTED
/// denies the access.
fn compile(rules: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let effect = effect(rule);
        let tests: Vec<(u8, u32)> = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)]
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        for (index, (register, value)) in tests.iter().enumerate() {
            // Jump over the remaining tests and the effect, at most 2 + 5 instructions.
            let skip = u16::try_from(tests.len() - index - 1 + effect.len()).unwrap_or(u16::MAX);
            program.push(instruction(JUMP_IF_NOT_EQUAL, *register, 0, skip, *value));
        }
        program.extend(effect);
        if tests.is_empty() && rule.access == ALL {
            // This rule decides every access. The verifier refuses unreachable instructions, so stop here.
            return program;
        }
    }
    program.extend(verdict(false));
    program
}

/// The instructions for a rule that matches. If they do not exit, execution continues with the next rule.
fn effect(rule: &Rule) -> Vec<u64> {
    if rule.access == ALL {
        return verdict(rule.allow).to_vec();
    }
    let mut effect = if rule.allow {
        vec![
            instruction(AND, WANTED, 0, 0, !rule.access),
            instruction(JUMP_IF_NOT_EQUAL, WANTED, 0, 2, 0),
        ]
    } else {
        vec![
            instruction(MOVE_REGISTER, SCRATCH, WANTED, 0, 0),
            instruction(AND, SCRATCH, 0, 0, rule.access),
            instruction(JUMP_IF_EQUAL, SCRATCH, 0, 2, 0),
        ]
    };
    effect.extend(verdict(rule.allow));
    effect
}

/// Returns 1 (allow) or 0 (deny) to the kernel.
fn verdict(allow: bool) -> [u64; 2] {
    [
        instruction(MOVE, RESULT, 0, 0, allow.into()),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
