//! Instructions of BPF programs, encoded, and what loading one takes. Used by the agent's device rules and by the
//! engine's port-forward, which load what they compose. Pure.

use std::io;

/// How often a program is given to the kernel at most.
const ATTEMPTS: usize = 32;

/// Opcodes (include/uapi/linux/bpf.h and bpf_common.h).
pub mod opcode {
    #![allow(missing_docs, reason = "the names say it")]
    pub const LOAD_WORD: u8 = 0x61;
    pub const STORE_WORD_CONSTANT: u8 = 0x62;
    pub const LOAD_CONSTANT: u8 = 0x18;
    pub const MOVE: u8 = 0xb7;
    pub const MOVE_REGISTER: u8 = 0xbf;
    pub const ADD: u8 = 0x07;
    pub const AND: u8 = 0x57;
    pub const SHIFT_RIGHT: u8 = 0x77;
    pub const JUMP: u8 = 0x05;
    pub const JUMP_IF_EQUAL: u8 = 0x15;
    pub const JUMP_IF_NOT_EQUAL: u8 = 0x55;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

/// One `struct bpf_insn` as a little-endian word: opcode, destination and source register, jump offset,
/// immediate.
#[must_use]
pub fn instruction(operation: u8, destination: u8, source: u8, offset: u16, immediate: u32) -> u64 {
    u64::from(operation)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset) << 16
        | u64::from(immediate) << 32
}

/// Has `load` load a program, again as long as a signal keeps it from that: the verifier gives up with EAGAIN if one is
/// pending (kernel/bpf/verifier.c), such as a SIGCHLD.
///
/// # Errors
/// That of `load`.
pub fn load<T>(mut load: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    load()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_signals_interrupt_is_repeated() {
        let interrupted = |times: usize| {
            let mut calls = 0;
            let result = load(|| {
                calls += 1;
                if calls > times {
                    Ok(calls)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                }
            });
            result.map_err(|error| error.kind())
        };
        assert_eq!(interrupted(0), Ok(1));
        assert_eq!(interrupted(3), Ok(4));
        assert_eq!(interrupted(ATTEMPTS), Err(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn another_error_is_the_result() {
        let mut calls = 0;
        let result: io::Result<()> = load(|| {
            calls += 1;
            Err(io::ErrorKind::PermissionDenied.into())
        });
        assert_eq!(
            (result.map_err(|error| error.kind()), calls),
            (Err(io::ErrorKind::PermissionDenied), 1)
        );
    }
}
