//! The BPF program that hands new TCP connections to localhost over to the shim's listening sockets, as
//! instructions. Type BPF_PROG_TYPE_SK_LOOKUP: the kernel runs it in the pod's network namespace for each
//! connection that is not established yet, before it looks for a listening socket. Pure; `namespace` loads it.
//!
//! Only TCP to 127.0.0.0/8 or ::1 is handed over, whatever the port. Everything else passes as if there were
//! no program, and so does a connection whose family has no socket in the map.

use nacre_protocol::bpf::instruction;
use nacre_protocol::bpf::opcode::{
    ADD, AND, CALL, EXIT, JUMP, JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, LOAD_CONSTANT, LOAD_WORD, MOVE,
    MOVE_REGISTER, STORE_WORD_CONSTANT,
};

/// Index of the socket for 127.0.0.0/8 in the map.
pub const IPV4_INDEX: u32 = 0;
/// Index of the socket for ::1 in the map.
pub const IPV6_INDEX: u32 = 1;

/// `struct bpf_sk_lookup`: offsets of the fields that are read, bytes.
const FAMILY: u16 = 8;
const PROTOCOL: u16 = 12;
/// In network byte order.
const LOCAL_IP4: u16 = 40;
/// Four words in network byte order.
const LOCAL_IP6: u16 = 44;

/// The only verdict: go on with the socket that was assigned, or with the regular lookup.
const SK_PASS: u32 = 1;
/// Helper functions of the kernel, by their numbers.
const MAP_LOOKUP_ELEM: u32 = 1;
const SK_RELEASE: u32 = 86;
const SK_ASSIGN: u32 = 124;
/// The source register that makes [`LOAD_CONSTANT`] load the map with a descriptor.
const MAP_FD: u8 = 1;

/// Registers: results of calls, the arguments of calls, those that calls preserve, the stack's top.
const RESULT: u8 = 0;
const ARGUMENTS: [u8; 3] = [1, 2, 3];
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const VALUE: u8 = 8;
const STACK: u8 = 10;
/// Offset of the map's key from [`STACK`], two's complement.
const KEY: u16 = (-4_i16).cast_unsigned();

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Ipv6,
    Assign,
    Pass,
}

/// Instructions whose jumps still have labels.
#[derive(Debug, Default)]
struct Assembler {
    instructions: Vec<u64>,
    /// The index of each jump and where it goes.
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn add(&mut self, instruction: u64) {
        self.instructions.push(instruction);
    }

    fn load(&mut self, field: u16) {
        self.add(instruction(LOAD_WORD, VALUE, CONTEXT, field, 0));
    }

    fn jump(&mut self, operation: u8, register: u8, immediate: u32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.add(instruction(operation, register, 0, 0, immediate));
    }

    fn call(&mut self, helper: u32) {
        self.add(instruction(CALL, 0, 0, 0, helper));
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    /// The instructions, with the offsets of all jumps. A jump is relative to the instruction after it.
    fn finish(mut self) -> Vec<u64> {
        for (index, to) in self.jumps {
            let target = self.labels.iter().find(|(label, _)| *label == to);
            let distance = target.map_or(0, |(_, target)| target.wrapping_sub(index + 1));
            let distance = u64::from(u16::try_from(distance).unwrap_or_default());
            if let Some(instruction) = self.instructions.get_mut(index) {
                *instruction |= distance << 16;
            }
        }
        self.instructions
    }
}

/// The program, for the map that has the descriptor `map` in the calling process.
pub fn instructions(map: u32) -> Vec<u64> {
    let mut code = Assembler::default();
    let [first, second, third] = ARGUMENTS;
    code.add(instruction(MOVE_REGISTER, CONTEXT, first, 0, 0));
    code.load(PROTOCOL);
    code.jump(
        JUMP_IF_NOT_EQUAL,
        VALUE,
        libc::IPPROTO_TCP.cast_unsigned(),
        Label::Pass,
    );
    code.add(instruction(STORE_WORD_CONSTANT, STACK, 0, KEY, IPV4_INDEX));
    code.load(FAMILY);
    code.jump(
        JUMP_IF_NOT_EQUAL,
        VALUE,
        libc::AF_INET.cast_unsigned(),
        Label::Ipv6,
    );
    code.load(LOCAL_IP4);
    // The first octet is the lowest byte of the word: x86 is little-endian.
    code.add(instruction(AND, VALUE, 0, 0, 0xff));
    code.jump(JUMP_IF_EQUAL, VALUE, 127, Label::Assign);
    code.jump(JUMP, 0, 0, Label::Pass);

    code.label(Label::Ipv6);
    code.jump(
        JUMP_IF_NOT_EQUAL,
        VALUE,
        libc::AF_INET6.cast_unsigned(),
        Label::Pass,
    );
    code.add(instruction(STORE_WORD_CONSTANT, STACK, 0, KEY, IPV6_INDEX));
    for (word, want) in [0, 0, 0, 1_u32.to_be()].into_iter().enumerate() {
        code.load(LOCAL_IP6 + u16::try_from(word * 4).unwrap_or_default());
        code.jump(JUMP_IF_NOT_EQUAL, VALUE, want, Label::Pass);
    }

    code.label(Label::Assign);
    // The second half of this instruction has the upper half of a 64-bit constant.
    code.add(instruction(LOAD_CONSTANT, first, MAP_FD, 0, map));
    code.add(instruction(0, 0, 0, 0, 0));
    code.add(instruction(MOVE_REGISTER, second, STACK, 0, 0));
    code.add(instruction(
        ADD,
        second,
        0,
        0,
        i32::from(KEY.cast_signed()).cast_unsigned(),
    ));
    code.call(MAP_LOOKUP_ELEM);
    code.jump(JUMP_IF_EQUAL, RESULT, 0, Label::Pass);
    code.add(instruction(MOVE_REGISTER, SOCKET, RESULT, 0, 0));
    code.add(instruction(MOVE_REGISTER, first, CONTEXT, 0, 0));
    code.add(instruction(MOVE_REGISTER, second, SOCKET, 0, 0));
    code.add(instruction(MOVE, third, 0, 0, 0));
    code.call(SK_ASSIGN);
    code.add(instruction(MOVE_REGISTER, first, SOCKET, 0, 0));
    code.call(SK_RELEASE);

    code.label(Label::Pass);
    code.add(instruction(MOVE, RESULT, 0, 0, SK_PASS));
    code.add(instruction(EXIT, 0, 0, 0, 0));
    code.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program does with a connection, run without a kernel.
    #[derive(Debug, PartialEq, Eq)]
    enum Outcome {
        Passes,
        /// Handed over to the socket at this index.
        Assigned(u32),
    }

    struct Connection {
        family: u32,
        protocol: u32,
        ip4: [u8; 4],
        ip6: [u8; 16],
    }

    impl Connection {
        fn word(&self, offset: u16) -> u32 {
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
            match offset {
                FAMILY => self.family,
                PROTOCOL => self.protocol,
                LOCAL_IP4 => word(&self.ip4),
                44 | 48 | 52 | 56 => word(&self.ip6[usize::from(offset - 44)..][..4]),
                _ => panic!("reads at {offset}"),
            }
        }
    }

    fn run(connection: &Connection) -> Outcome {
        let code = instructions(77);
        let (mut registers, mut key, mut next, mut outcome) = ([0_u64; 11], None, 0, Outcome::Passes);
        loop {
            let bytes = code[next].to_le_bytes();
            let (to, from) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = u16::from_le_bytes([bytes[2], bytes[3]]);
            let immediate = u32::from_le_bytes(bytes[4..].try_into().unwrap());
            next += 1;
            match bytes[0] {
                LOAD_WORD => registers[to] = connection.word(offset).into(),
                STORE_WORD_CONSTANT => key = Some(immediate),
                LOAD_CONSTANT => {
                    assert_eq!((from, immediate), (usize::from(MAP_FD), 77));
                    next += 1;
                }
                MOVE => registers[to] = immediate.into(),
                MOVE_REGISTER => registers[to] = registers[from],
                ADD => {}
                AND => registers[to] &= u64::from(immediate),
                JUMP => next += usize::from(offset),
                JUMP_IF_EQUAL if registers[to] == u64::from(immediate) => next += usize::from(offset),
                JUMP_IF_NOT_EQUAL if registers[to] != u64::from(immediate) => next += usize::from(offset),
                JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL => {}
                CALL if immediate == MAP_LOOKUP_ELEM => registers[0] = 1,
                CALL if immediate == SK_ASSIGN => outcome = Outcome::Assigned(key.unwrap()),
                CALL => assert_eq!(immediate, SK_RELEASE),
                EXIT => {
                    assert_eq!(registers[0], u64::from(SK_PASS));
                    return outcome;
                }
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn only_tcp_to_localhost_is_handed_over() {
        const TCP: u32 = 6;
        const UDP: u32 = 17;
        let ipv4 = |protocol, ip4| {
            run(&Connection {
                family: 2,
                protocol,
                ip4,
                ip6: [0; 16],
            })
        };
        let ipv6 = |protocol, address: &str| {
            run(&Connection {
                family: 10,
                protocol,
                ip4: [127, 0, 0, 1],
                ip6: address.parse::<std::net::Ipv6Addr>().unwrap().octets(),
            })
        };
        assert_eq!(ipv4(TCP, [127, 0, 0, 1]), Outcome::Assigned(IPV4_INDEX));
        assert_eq!(ipv4(TCP, [127, 9, 8, 7]), Outcome::Assigned(IPV4_INDEX));
        assert_eq!(ipv4(TCP, [10, 0, 0, 127]), Outcome::Passes);
        assert_eq!(ipv4(TCP, [128, 0, 0, 1]), Outcome::Passes);
        assert_eq!(ipv4(UDP, [127, 0, 0, 1]), Outcome::Passes);
        assert_eq!(ipv6(TCP, "::1"), Outcome::Assigned(IPV6_INDEX));
        for other in ["::", "::2", "1::1", "0:0:1::1", "::1:0:1", "fe80::1"] {
            assert_eq!(ipv6(TCP, other), Outcome::Passes, "{other}");
        }
        assert_eq!(ipv6(UDP, "::1"), Outcome::Passes);
        assert_eq!(
            run(&Connection {
                family: 1,
                protocol: TCP,
                ip4: [127, 0, 0, 1],
                ip6: [0; 16]
            }),
            Outcome::Passes
        );
    }
}
