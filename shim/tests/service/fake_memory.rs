//! The memory of the fake VM: what is plugged in, the limit of its container, and the order in which the two
//! change. A wrong order is refused, so that the call that caused it fails.

use std::sync::atomic::{AtomicU32, Ordering};

/// A guest that always needs more memory.
pub const GREEDY: &str = "fake=greedy";
/// The same, but the agent refuses the first question.
const REFUSES_ONCE: &str = "fake=refuses-once";

/// Memory at boot, and what is plugged in, MiB.
static MEMORY_MIB: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
/// The most that can be plugged in, MiB; 0 before the device is attached.
static MAX_MIB: AtomicU32 = AtomicU32::new(0);
/// The container's memory limit, MiB.
static LIMIT_MIB: AtomicU32 = AtomicU32::new(0);
/// How often the guest was asked for its need of memory.
static ASKED: AtomicU32 = AtomicU32::new(0);

/// The VM was started with `mib`.
pub fn boot(mib: u32) {
    MEMORY_MIB[0].store(mib, Ordering::SeqCst);
}

/// Attaches the device that plugs up to `max_mib`, unless the VM has it.
pub fn attach(max_mib: u32) -> Result<(), String> {
    match MAX_MIB.swap(max_mib, Ordering::SeqCst) {
        0 => Ok(()),
        _ => Err("the VM has a device to plug memory already".to_owned()),
    }
}

/// Plugs memory in, unless there is no device for so much, or the limit is larger than all memory then.
pub fn plug(mib: u32) -> Result<(), String> {
    let max_mib = MAX_MIB.load(Ordering::SeqCst);
    if mib > max_mib || max_mib == 0 {
        return Err(format!("the VM's device can plug {max_mib} MiB, not {mib}"));
    }
    let limit = LIMIT_MIB.load(Ordering::SeqCst);
    let all = MEMORY_MIB[0].load(Ordering::SeqCst) + mib;
    if limit > all {
        return Err(format!(
            "the VM shrinks to {all} MiB before the limit of {limit} MiB"
        ));
    }
    MEMORY_MIB[1].store(mib, Ordering::SeqCst);
    Ok(())
}

/// Limits the container, unless the limit is larger than all memory.
pub fn limit(bytes: i64) -> Result<(), String> {
    let mib = u32::try_from(bytes >> 20).unwrap();
    let all: u32 = MEMORY_MIB.iter().map(|mib| mib.load(Ordering::SeqCst)).sum();
    if mib > all {
        return Err(format!(
            "a limit of {mib} MiB before the VM has more than {all} MiB"
        ));
    }
    LIMIT_MIB.store(mib, Ordering::SeqCst);
    Ok(())
}

/// What the guest with `behaviour` needs, or why it can't say.
pub async fn wanted(behaviour: &str) -> Result<u32, &'static str> {
    let asked = ASKED.fetch_add(1, Ordering::SeqCst);
    match behaviour {
        REFUSES_ONCE if asked == 0 => Err("out of descriptors"),
        GREEDY | REFUSES_ONCE => Ok(u32::MAX),
        _ => std::future::pending().await,
    }
}

/// How often the guest was asked for its need of memory.
pub fn asked() -> u32 {
    ASKED.load(Ordering::SeqCst)
}
