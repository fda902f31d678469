//! Segment registers of a vCPU that starts in 64-bit mode. Used for the guest's first vCPU and for the
//! probe's guest.

use kvm_bindings::kvm_segment;

/// Type: code, execute and read, accessed.
const CODE: u8 = 0xb;
/// Type: data, read and write, accessed.
const DATA: u8 = 0x3;
/// Type: 64-bit TSS, busy.
const BUSY_TSS: u8 = 0xb;

/// Base and limit of the task state segment.
pub(crate) struct Tss {
    pub(crate) base: u64,
    pub(crate) limit: u32,
}

/// A 64-bit code segment of ring 0.
pub(crate) fn code(selector: u16) -> kvm_segment {
    kvm_segment {
        l: 1,
        ..flat(selector, CODE)
    }
}

/// A data segment of ring 0 that covers 4 GiB.
pub(crate) fn data(selector: u16) -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat(selector, DATA)
    }
}

/// The task register.
pub(crate) fn task(selector: u16, tss: &Tss) -> kvm_segment {
    kvm_segment {
        base: tss.base,
        limit: tss.limit,
        selector,
        type_: BUSY_TSS,
        present: 1,
        ..Default::default()
    }
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}
