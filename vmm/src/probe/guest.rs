//! The probe's guest: its code, and the memory image with the tables that 64-bit mode needs. Used by
//! [`super::machine`]; pure, it never calls KVM.
//!
//! The code runs the checks in the order of [`CHECKS`], starting with the index in RDI. It writes the index
//! of each check that passed to [`PORT_PASSED`]. If a check fails, it writes the vector of the unexpected
//! exception or [`WRONG_RESULT`] to [`PORT_FAILED`] and halts. After the last check it halts.
#![allow(unsafe_code, reason = "assembled code is accessed through extern statics")]

use std::arch::global_asm;

use crate::kvm::segments::Tss;

/// The checks, in the order in which the guest tries them.
pub const CHECKS: [&str; 6] = [
    "invalid opcode exception through the guest's IDT",
    "INT3 through the guest's IDT",
    "XGETBV and XSETBV",
    "XSAVE and XRSTOR",
    "local APIC timer interrupt",
    "system calls from ring 3 and back",
];
/// I/O port to which the guest writes the index of a check that passed.
pub const PORT_PASSED: u16 = 0xf0;
/// I/O port to which the guest writes why a check failed, before it halts.
pub const PORT_FAILED: u16 = 0xf1;
/// Written to [`PORT_FAILED`]: no exception occurred, but a register or a result has a wrong value.
pub const WRONG_RESULT: u8 = 0xfe;

/// Size of the guest's memory, which starts at address 0, in bytes.
pub const MEMORY_BYTES: usize = 0x20_0000;
/// Selector of the kernel's code segment. SYSRET requires user data before user code in the GDT (AMD APM
/// volume 2, 6.1.1).
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of the kernel's data segment.
pub const KERNEL_DATA: u16 = 0x10;
/// Selector of the task state segment, whose descriptor has 16 bytes.
pub const TASK: u16 = 0x30;
/// Address and limit of the GDT.
pub const GDT: (u64, u16) = (0x1000, 0x3f);
/// Address and limit of the IDT: 256 gates of 16 bytes.
pub const IDT: (u64, u16) = (0x2000, 0xfff);
/// Address and limit of the task state segment.
pub const TSS: Tss = Tss {
    base: 0x1800,
    limit: 0x67,
};
/// Address of the top-level page table (PML4).
pub const PAGE_TABLE: u64 = 0x4000;
/// Address of the code.
pub const CODE: u64 = 0x8000;
/// Initial stack pointer in ring 0.
pub const STACK: u64 = 0x1_8000;

/// Stack pointer that the task state segment has for interrupts from ring 3.
const INTERRUPT_STACK: u64 = 0x1_7000;
/// Distance between the handlers of the exceptions that no check expects, in bytes.
const STUB_BYTES: u64 = 16;
/// Number of exception vectors.
const EXCEPTIONS: usize = 32;
/// Vector of the local APIC timer's interrupt.
const VECTOR_TIMER: usize = 0x20;
/// Vector of the last check's INT instruction.
const VECTOR_SYSCALL: usize = 0x80;

global_asm!(
    r#"
    .pushsection .rodata.nacre_probe, "a", @progbits
    // Global, since other codegen units of this crate use these symbols.
    .globl nacre_probe_code
    .hidden nacre_probe_code
    .globl nacre_probe_int80
    .hidden nacre_probe_int80
    .globl nacre_probe_ud
    .hidden nacre_probe_ud
    .globl nacre_probe_int3
    .hidden nacre_probe_int3
    .globl nacre_probe_timer
    .hidden nacre_probe_timer
    .globl nacre_probe_stubs
    .hidden nacre_probe_stubs
    .globl nacre_probe_end
    .hidden nacre_probe_end
    .balign 16
nacre_probe_code:
    cmp edi, 1
    je 11f
    cmp edi, 2
    je 12f
    cmp edi, 3
    je 13f
    cmp edi, 4
    je 14f
    cmp edi, 5
    je 15f

    // 0: #UD
    xor r15d, r15d
    ud2
    cmp r15d, 6
    jne nacre_probe_failed
    mov al, 0
    out 0xf0, al

11: // 1: INT3
    xor r15d, r15d
    int3
    cmp r15d, 3
    jne nacre_probe_failed
    mov al, 1
    out 0xf0, al

12: // 2: XCR0 is set to x87 and SSE and read back
    xor ecx, ecx
    xgetbv
    or eax, 3
    xsetbv
    xgetbv
    and eax, 3
    cmp eax, 3
    jne nacre_probe_failed
    mov al, 2
    out 0xf0, al

13: // 3: XSAVE and XRSTOR of x87 and SSE
    mov esi, 0x10000
    mov eax, 3
    xor edx, edx
    xsave64 [rsi]
    mov eax, 3
    xor edx, edx
    xrstor64 [rsi]
    mov al, 3
    out 0xf0, al

14: // 4: the local APIC's timer, one shot
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov dword ptr [rbx + 0x3e0], 0xb
    mov dword ptr [rbx + 0x320], 0x20
    xor r15d, r15d
    mov dword ptr [rbx + 0x380], 100000
2:  sti
    hlt
    cli
    cmp r15d, 0x20
    jne 2b
    mov al, 4
    out 0xf0, al

15: // 5: to ring 3 by SYSRET, back by SYSCALL; once more, back by INT 0x80
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00180008
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [rip + nacre_probe_from_ring3]
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    xor eax, eax
    wrmsr
    xor r14d, r14d
    lea rcx, [rip + 3f]
    mov r11d, 2
    sysretq
3:  syscall
    int 0x80
    ud2

nacre_probe_from_ring3:
    inc r14d
    sysretq

nacre_probe_int80:
    cmp r14d, 1
    jne nacre_probe_failed
    cmp qword ptr [rsp + 8], 0x2b
    jne nacre_probe_failed
    mov al, 5
    out 0xf0, al
4:  hlt
    jmp 4b

nacre_probe_failed:
    mov al, 0xfe
nacre_probe_report:
    out 0xf1, al
    jmp 4b

nacre_probe_ud:
    mov r15d, 6
    add qword ptr [rsp], 2
    iretq

nacre_probe_int3:
    mov r15d, 3
    iretq

nacre_probe_timer:
    mov r15d, 0x20
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xb0], 0
    iretq

    .balign 16
nacre_probe_stubs:
    .set vector, 0
    .rept 32
    mov al, vector
    jmp nacre_probe_report
    .balign 16
    .set vector, vector + 1
    .endr
nacre_probe_end:
    .popsection
    "#
);

unsafe extern "C" {
    static nacre_probe_code: u8;
    static nacre_probe_int80: u8;
    static nacre_probe_ud: u8;
    static nacre_probe_int3: u8;
    static nacre_probe_timer: u8;
    static nacre_probe_stubs: u8;
    static nacre_probe_end: u8;
}

/// The machine code.
fn code() -> &'static [u8] {
    let start = &raw const nacre_probe_code;
    let length = (&raw const nacre_probe_end).addr().saturating_sub(start.addr());
    // SAFETY: the symbols are start and end of one initialised, read-only range in this program's .rodata.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Address in the guest of a symbol of the code.
fn guest_address(symbol: *const u8) -> u64 {
    let offset = symbol.addr().wrapping_sub((&raw const nacre_probe_code).addr());
    CODE.wrapping_add(offset as u64)
}

/// The initial content of the guest's first 64 KiB.
#[must_use]
pub fn image() -> Vec<u8> {
    let mut image = vec![0; 0x1_0000];
    let mut put = |at: u64, bytes: &[u8]| {
        let space = image.iter_mut().skip(usize::try_from(at).unwrap_or(usize::MAX));
        space.zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(GDT.0, &descriptors());
    put(IDT.0, &gates());
    put(TSS.base.wrapping_add(4), &INTERRUPT_STACK.to_le_bytes());
    for (at, entry) in page_tables() {
        put(at, &entry.to_le_bytes());
    }
    put(CODE, code());
    image
}

/// The GDT: null, kernel code, kernel data, null, user data, user code, task.
fn descriptors() -> Vec<u8> {
    let task = 0x0000_8900_0000_0000 | (TSS.base << 16) | u64::from(TSS.limit);
    let entries = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task,
        0,
    ];
    entries
        .iter()
        .flat_map(|entry: &u64| entry.to_le_bytes())
        .collect()
}

/// The IDT: the vectors that checks use have their handlers, the other exceptions have one that reports them.
fn gates() -> Vec<u8> {
    let stubs = guest_address(&raw const nacre_probe_stubs);
    let mut gates = Vec::with_capacity(4096);
    for vector in 0..256_usize {
        let (handler, ring) = match vector {
            3 => (guest_address(&raw const nacre_probe_int3), 3),
            6 => (guest_address(&raw const nacre_probe_ud), 0),
            VECTOR_TIMER => (guest_address(&raw const nacre_probe_timer), 0),
            VECTOR_SYSCALL => (guest_address(&raw const nacre_probe_int80), 3),
            _ if vector < EXCEPTIONS => (stubs.wrapping_add(STUB_BYTES.wrapping_mul(vector as u64)), 0),
            _ => {
                gates.extend([0; 16]);
                continue;
            }
        };
        gates.extend(gate(handler, ring));
    }
    gates
}

/// A 64-bit interrupt gate that INT n may enter from `ring` or a more privileged one.
fn gate(handler: u64, ring: u64) -> [u8; 16] {
    let low = (handler & 0xffff)
        | (u64::from(KERNEL_CODE) << 16)
        | ((0x8e00 | (ring << 13)) << 32)
        | ((handler & 0xffff_0000) << 32);
    let mut bytes = [0; 16];
    bytes
        .iter_mut()
        .zip(low.to_le_bytes())
        .for_each(|(to, from)| *to = from);
    bytes
}

/// Entries, as `(address, value)`, that map the first 2 MiB and the local APIC to themselves by 2 MiB pages,
/// accessible from ring 3.
fn page_tables() -> [(u64, u64); 5] {
    const TABLE: u64 = 0x7;
    const PAGE: u64 = 0x87;
    const UNCACHED_PAGE: u64 = 0x9b;
    let [directories, low, high] = [PAGE_TABLE + 0x1000, PAGE_TABLE + 0x2000, PAGE_TABLE + 0x3000];
    [
        (PAGE_TABLE, directories | TABLE),
        (directories, low | TABLE),
        (directories + 3 * 8, high | TABLE),
        (low, PAGE),
        (high + 0x1f7 * 8, 0xfee0_0000 | UNCACHED_PAGE),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_ends_before_the_xsave_area() {
        assert!(
            code().len() > 200 && CODE + (code().len() as u64) < 0x1_0000,
            "{} bytes",
            code().len()
        );
        assert_eq!(
            (&raw const nacre_probe_end).addr() - (&raw const nacre_probe_stubs).addr(),
            32 * 16
        );
    }

    #[test]
    fn used_gates_point_into_the_code() {
        let gates = gates();
        assert_eq!(gates.len(), 4096);
        for (vector, gate) in gates.chunks(16).enumerate() {
            let handler = u64::from(u16::from_le_bytes([gate[0], gate[1]]));
            let used = vector < EXCEPTIONS || [VECTOR_TIMER, VECTOR_SYSCALL].contains(&vector);
            assert_eq!(used, handler > CODE, "vector {vector}: {handler:#x}");
        }
    }
}
