//! Guests of a few instructions, as kernel files that the VMM accepts.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Load address and entry point of the test kernels.
const LOAD_ADDRESS: u32 = 0x10_0000;

/// Port and value by which the guest powers off (ACPI sleep control register).
pub const POWER_OFF: (u16, u8) = (0x600, 5 << 2 | 1 << 5);
/// Port and value by which the guest resets (ACPI reset register).
pub const RESET: (u16, u8) = (0x602, 0x42);
/// Port and value by which the guest reports a kernel panic (pvpanic).
pub const PANIC: (u16, u8) = (0x505, 1);

/// The KVM device; None on a host without it.
pub fn kvm() -> Option<File> {
    File::options().read(true).write(true).open("/dev/kvm").ok()
}

/// A vmlinux with `code` at its entry point.
pub fn kernel(code: &[u8]) -> File {
    let mut header = Vec::new();
    header.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [u64::from(LOAD_ADDRESS), 64, 0] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let segment = |kind: u32, offset: u64, bytes: u64| {
        let mut segment = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        for word in [
            offset,
            u64::from(LOAD_ADDRESS),
            u64::from(LOAD_ADDRESS),
            bytes,
            bytes,
            1,
        ] {
            segment.extend_from_slice(&word.to_le_bytes());
        }
        segment
    };
    let mut note = Vec::new();
    for word in [4, 4, 18u32] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&segment(1, 4096, code.len() as u64), 64)
        .unwrap();
    file.write_all_at(&segment(4, 1024, note.len() as u64), 64 + 56)
        .unwrap();
    file.write_all_at(&note, 1024).unwrap();
    file.write_all_at(code, 4096).unwrap();
    file
}

/// `mov al, VALUE; mov dx, PORT; out dx, al; hlt`.
pub fn write_port((port, value): (u16, u8)) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee, 0xf4]
}
