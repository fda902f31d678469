//! The device rules of a container as a program for its cgroup: rules in, instructions out, no I/O. Loaded by
//! [`load`]. libcontainer, built without its own, would let the rules vanish.
//!
//! The program gets what is asked for (read, write, mknod), the device's type and its numbers. Permission by
//! permission, the last rule that speaks of it decides; what no rule speaks of is refused. The devices that every
//! container has are allowed after all rules, as runc does.

pub mod load;

use std::path::Path;

use nacre_protocol::spec::add_name;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::error::Error;

/// Permission bits of `bpf_cgroup_dev_ctx.access_type`, upper half.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
/// Device types of `bpf_cgroup_dev_ctx.access_type`, lower half.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// Most rules of a container. A rule takes up to seven instructions; helper messages and the kernel bound them.
const MAX_RULES: usize = 256;

/// A rule, understood. None stands for any.
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

/// What every container may use: mknod of anything, null, zero, full, random, urandom, tty, ptmx, pts.
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

/// Looks for the devices that `spec` makes files for. A container that may use every device gets those that are there; what
/// is to be said of the others.
///
/// # Errors
/// [`Error::BadSpec`] with a device that is wanted and not there: its file would mean nothing, or something else than on
/// the host.
pub fn leave_out_missing(spec: &mut Spec, may_use_all: bool) -> Result<Option<String>, Error> {
    let is_missing = |device: &LinuxDevice| {
        let node = format!("/sys/dev/char/{}:{}", device.major(), device.minor());
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
                field,
                reason: format!("the guest has no device {major}:{minor} for {path}"),
            });
        }
        add_name(&mut names, &path.to_string());
    }
    if names.is_empty() {
        return Ok(None);
    }
    devices.retain(|device| !is_missing(device));
    Ok(Some(format!("{field}: not in this guest: {names}")))
}

/// The program for `rules`, in the kernel's form; empty where everything is allowed.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, Error> {
    if rules.len() > MAX_RULES {
        return Err(bad(format!("more than {MAX_RULES} rules")));
    }
    let rules = rules.iter().map(parse).collect::<Result<Vec<Rule>, Error>>()?;
    let allows_all = rules
        .last()
        .is_some_and(|last| last.allow && ANYTHING.is_within(last));
    if allows_all {
        return Ok(Vec::new());
    }
    Ok(compile(&effective(&rules)))
}

/// `rules` and the defaults without those that decide nothing: what a later rule covers, and refusals before
/// anything was allowed. The kernel's check of a program takes longer than all else that is done with it.
fn effective(rules: &[Rule]) -> Vec<Rule> {
    let all: Vec<Rule> = rules.iter().chain(&DEFAULTS).copied().collect();
    let covered =
        |index: usize, rule: &Rule| all.iter().skip(index).skip(1).any(|later| rule.is_within(later));
    all.iter()
        .enumerate()
        .filter(|(index, rule)| !covered(*index, rule))
        .map(|(_, rule)| *rule)
        .skip_while(|rule| !rule.allow)
        .collect()
}

impl Rule {
    /// Whether `other` speaks of all that this rule speaks of.
    fn is_within(&self, other: &Self) -> bool {
        let within = |ours: Option<u32>, others: Option<u32>| others.is_none() || ours == others;
        within(self.kind, other.kind)
            && within(self.major, other.major)
            && within(self.minor, other.minor)
            && self.access & !other.access == 0
    }
}

fn bad(reason: String) -> Error {
    Error::BadSpec {
        field: "linux.resources.devices",
        reason,
    }
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let kind = match rule.typ() {
        // Whatever else it says, it speaks of everything.
        None | Some(LinuxDeviceType::A) => {
            return Ok(Rule {
                allow: rule.allow(),
                kind: None,
                major: None,
                minor: None,
                access: ALL,
            });
        }
        Some(LinuxDeviceType::B) => BLOCK,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => CHARACTER,
        Some(LinuxDeviceType::P) => return Err(bad("a FIFO is not a device".to_owned())),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| bad(format!("{number} is no device number"))),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(bad(format!("access {letter:?} is none of r, w, m"))),
        };
    }
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    Ok(Rule {
        allow: rule.allow(),
        kind: Some(kind),
        major,
        minor,
        access,
    })
}

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Operations (include/uapi/linux/bpf.h and bpf_common.h).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// `struct bpf_insn`: operation, registers, jump offset, immediate.
fn instruction(operation: u8, destination: u8, source: u8, offset: u16, immediate: u32) -> u64 {
    u64::from(operation)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset) << 16
        | u64::from(immediate) << 32
}

/// From the last rule to the first, a rule that matches takes the permissions it allows off what is wanted; nothing
/// left is success, and a rule that forbids what is left is the end.
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
            // Past the remaining tests and the effect; at most 2 + 5.
            let skip = u16::try_from(tests.len() - index - 1 + effect.len()).unwrap_or(u16::MAX);
            program.push(instruction(JUMP_IF_NOT_EQUAL, *register, 0, skip, *value));
        }
        program.extend(effect);
        if tests.is_empty() && rule.access == ALL {
            // It decides everything, and the kernel refuses instructions that nothing can reach.
            return program;
        }
    }
    program.extend(verdict(false));
    program
}

/// What a rule that matches does; past its end the next rule is looked at.
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

fn verdict(allow: bool) -> [u64; 2] {
    [
        instruction(MOVE, RESULT, 0, 0, allow.into()),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
