//! Instructions of BPF programs, encoded. Used by the agent's device rules and by the engine's port-forward,
//! which load what they compose. Pure.

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
