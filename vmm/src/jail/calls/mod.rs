//! The allowlists of system calls: one table per thread kind and one for all kinds, each entry with the
//! reason why the call is needed. [`super::filter`] compiles them; no call may be listed twice for a kind.

mod common;
mod control;
mod device;
mod file_server;
mod vcpu;

use super::ThreadKind;

/// An allowed system call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number on x86-64, such as [`libc::SYS_read`].
    pub number: i64,
    /// The condition on its arguments.
    pub argument: Argument,
    /// Which operation of ours makes it.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "documents the table; only a test reads it")
    )]
    pub reason: &'static str,
}

/// A condition on the lower 32 bits of an argument.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// Any arguments are allowed.
    Any,
    /// Argument `index` equals one of `values`.
    OneOf {
        /// Counted from 0.
        index: u8,
        /// The allowed values.
        values: &'static [u64],
    },
    /// Arguments 0 and 1 equal one of these pairs; None allows any argument 1.
    Options(&'static [(u64, Option<u64>)]),
    /// No bit of `bits` is set in argument `index`.
    Without {
        /// Counted from 0.
        index: u8,
        /// The forbidden bits.
        bits: u64,
    },
}

/// The system calls that a thread of `kind` may make.
pub fn of(kind: ThreadKind) -> impl Iterator<Item = &'static Call> {
    let table = match kind {
        ThreadKind::Vcpu => vcpu::CALLS,
        ThreadKind::Device => device::CALLS,
        ThreadKind::FileServer => file_server::CALLS,
        ThreadKind::Control => control::CALLS,
    };
    common::CALLS.iter().chain(table)
}

const fn any(number: i64, reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Any,
        reason,
    }
}

const fn one_of(number: i64, index: u8, values: &'static [u64], reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::OneOf { index, values },
        reason,
    }
}

const fn without(number: i64, index: u8, bits: u64, reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Without { index, bits },
        reason,
    }
}

const fn options(number: i64, values: &'static [(u64, Option<u64>)], reason: &'static str) -> Call {
    Call {
        number,
        argument: Argument::Options(values),
        reason,
    }
}
