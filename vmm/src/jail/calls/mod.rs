//! Which system calls a thread may make: one table a kind and one for all kinds, each entry with its reason. The
//! tables are data for [`super::filter`]; a later entry replaces an earlier one for the same call.

mod common;
mod control;
mod device;
mod file_server;
mod vcpu;

use super::ThreadKind;

/// A system call that may be made.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// What is demanded of its arguments.
    pub argument: Argument,
    /// What it is needed for.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for who reads the tables; a test demands it")
    )]
    pub why: &'static str,
}

/// A demand on an argument's lower 32 bits.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// None.
    Any,
    /// The argument is one of `values`.
    OneOf {
        /// Counted from 0.
        index: u8,
        /// The values.
        values: &'static [u64],
    },
    /// Argument 0 is one of these, and with it argument 1, where one is given.
    Options(&'static [(u64, Option<u64>)]),
    /// The argument has none of `bits`.
    Without {
        /// Counted from 0.
        index: u8,
        /// The bits.
        bits: u64,
    },
}

/// The calls of a thread of `kind`.
pub fn of(kind: ThreadKind) -> impl Iterator<Item = &'static Call> {
    let own = match kind {
        ThreadKind::Vcpu => vcpu::CALLS,
        ThreadKind::Device => device::CALLS,
        ThreadKind::FileServer => file_server::CALLS,
        ThreadKind::Control => control::CALLS,
    };
    common::CALLS.iter().chain(own)
}

const fn any(number: i64, why: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Any,
        why,
    }
}

const fn one_of(number: i64, index: u8, values: &'static [u64], why: &'static str) -> Call {
    Call {
        number,
        argument: Argument::OneOf { index, values },
        why,
    }
}

const fn without(number: i64, index: u8, bits: u64, why: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Without { index, bits },
        why,
    }
}

const fn options(number: i64, values: &'static [(u64, Option<u64>)], why: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Options(values),
        why,
    }
}
