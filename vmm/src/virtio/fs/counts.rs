//! Counts the guest's requests by their FUSE opcode, so that a test can tell what an operation costs. Written
//! by [`super::request`], read by the standalone VMM's command `requests`. One addition per request, without
//! a lock; never reset.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use virtiofsd::fuse::Opcode;

/// By opcode. Opcodes from here on are counted as 0, which is none: no kernel sends them.
const OPCODES: usize = 64;

static COUNTS: [AtomicU64; OPCODES] = [const { AtomicU64::new(0) }; OPCODES];

/// Counts a request with the header's `opcode`.
pub(super) fn count(opcode: u32) {
    let counts = usize::try_from(opcode)
        .ok()
        .and_then(|index| COUNTS.get(index))
        .or_else(|| COUNTS.first());
    if let Some(count) = counts {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many requests of each kind this process has served, by the library's name of the opcode, such as
/// "Lookup". Kinds without a request are left out.
#[must_use]
pub fn counts() -> BTreeMap<String, u64> {
    (0..)
        .zip(&COUNTS)
        .map(|(opcode, count)| (name(opcode), count.load(Ordering::Relaxed)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn name(opcode: u32) -> String {
    Opcode::try_from(opcode).map_or_else(|_| format!("{opcode}"), |known| format!("{known:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_name() {
        let of = |kind: &str| counts().get(kind).copied().unwrap_or_default();
        // Other tests of this process may send these opcodes, too.
        let before = of("Syncfs");
        count(50);
        assert!(of("Syncfs") > before);
        let before = of("0");
        count(u32::MAX);
        assert!(of("0") > before);
    }
}
