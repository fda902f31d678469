//! How much memory the containers need: pure functions from what the kernel counts to the limit above which
//! the kernel slows them down, and to the memory that the VM should be given. All sizes are in KiB, except
//! where a name says MiB.

use std::collections::HashMap;

use nacre_protocol::control::MEMORY_SECTION_MIB as STEP_MIB;

use super::Given;

/// What the kernel and the agent need besides the containers, with room for what a burst takes until the
/// kernel slows it down.
const RESERVE: u64 = 64 * 1024;
/// The part of all memory that is kept free in addition, one in this many.
const RESERVE_PART: u64 = 32;
/// How much smaller the need must be before memory is given back, MiB.
const SLACK_MIB: u32 = 2 * STEP_MIB;

/// What the kernel counts of the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// MemTotal of /proc/meminfo.
    pub total: u64,
    /// What the containers use, the page cache included.
    pub used: u64,
    /// The part of it that the kernel can drop and has not needed for a while.
    pub droppable: u64,
}

impl Usage {
    /// Reads the texts of /proc/meminfo, and of memory.current and memory.stat of the containers' cgroup. What
    /// is missing counts as 0.
    pub fn parse(meminfo: &str, current: &str, stat: &str) -> Self {
        let stat: HashMap<_, _> = stat.lines().filter_map(|line| line.split_once(' ')).collect();
        let bytes = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        let cache = bytes(stat.get("inactive_file").copied());
        let slab = bytes(stat.get("slab_reclaimable").copied());
        Self {
            total: total(meminfo),
            used: bytes(Some(current)) / 1024,
            droppable: cache.saturating_add(slab) / 1024,
        }
    }

    /// What the containers need.
    fn needed(&self) -> u64 {
        self.used.saturating_sub(self.droppable)
    }
}

/// MemTotal in the text of /proc/meminfo.
pub fn total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The memory.high of the containers' cgroup: above it, the kernel reclaims their memory and slows them down,
/// while more memory is plugged in. None if no more can be: then only the lack of memory itself counts, as on
/// a host.
pub fn high(total: u64, given: Given) -> Option<u64> {
    let room = RESERVE.saturating_add(total / RESERVE_PART);
    // At least half: a guest that boots with little memory would give its containers none, and hang.
    (given.plugged_mib < given.most_mib).then(|| total.saturating_sub(room).max(total / 2))
}

/// Whether the containers need more than is plugged in, and then how much should be, MiB. `total_at_boot` is
/// the total of the memory at boot.
pub fn growth(usage: Usage, total_at_boot: u64, given: Given) -> Option<u32> {
    let high = high(usage.total, given)?;
    // Below, dropping page cache is enough.
    if usage.needed() < high / 8 * 7 {
        return None;
    }
    // A burst goes on: half as much again, so that the steps of a large one are few.
    let half = given.plugged_mib / 2;
    let wanted =
        needed_mib(usage, total_at_boot).max(given.plugged_mib.saturating_add(half.max(2 * STEP_MIB)));
    Some(in_steps(wanted).min(given.most_mib))
}

/// What could be unplugged without a need for it soon: the memory that should stay plugged in, MiB; None if
/// that is all or nearly all.
pub fn shrinkage(usage: Usage, total_at_boot: u64, given: Given) -> Option<u32> {
    let wanted = in_steps(needed_mib(usage, total_at_boot));
    (wanted.saturating_add(SLACK_MIB) <= given.plugged_mib).then_some(wanted)
}

/// The memory besides that at boot with which the containers' need is three quarters of memory.high, MiB.
fn needed_mib(usage: Usage, total_at_boot: u64) -> u32 {
    let high = usage.needed().saturating_mul(4) / 3;
    let total = high.saturating_add(RESERVE).saturating_mul(RESERVE_PART) / (RESERVE_PART - 1);
    let plugged = total.saturating_sub(total_at_boot).div_ceil(1024);
    u32::try_from(plugged).unwrap_or(u32::MAX)
}

fn in_steps(mib: u32) -> u32 {
    mib.div_ceil(STEP_MIB).saturating_mul(STEP_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: u64 = 480 * 1024;

    fn given(plugged_mib: u32) -> Given {
        Given {
            plugged_mib,
            most_mib: 8 * 1024,
        }
    }

    /// The containers need `needed` MiB, with as much page cache beside it as fits.
    fn usage(plugged_mib: u32, needed: u64) -> Usage {
        let total = BOOT + u64::from(plugged_mib) * 1024;
        let used = total.saturating_sub(70 * 1024).max(needed * 1024);
        Usage {
            total,
            used,
            droppable: used - needed * 1024,
        }
    }

    #[test]
    fn usage_is_read_from_the_kernel_s_files() {
        let meminfo = "MemTotal:         500000 kB\nMemFree:  100 kB\n";
        let stat = "anon 5\nfile 9000\ninactive_file 4096\nslab_reclaimable 2048\nslab 9\n";
        let want = Usage {
            total: 500_000,
            used: 10,
            droppable: 6,
        };
        assert_eq!(Usage::parse(meminfo, "10240\n", stat), want);
        assert_eq!(Usage::parse("", "max", "x"), Usage::default());
    }

    #[test]
    fn memory_high_leaves_room_and_is_off_when_nothing_can_be_plugged_in() {
        assert_eq!(high(BOOT, given(0)), Some((480 - 64 - 15) * 1024));
        assert_eq!(high(0, given(0)), Some(0));
        assert_eq!(high(48 * 1024, given(0)), Some(24 * 1024));
        assert_eq!(high(BOOT, given(8 * 1024)), None);
        assert_eq!(high(BOOT, Given::default()), None);
    }

    #[test]
    fn page_cache_is_no_need() {
        for needed in [0, 100, 300, 350] {
            assert_eq!(growth(usage(0, needed), BOOT, given(0)), None, "{needed}");
        }
    }

    /// The guest of a pod with the smallest memory at boot.
    #[test]
    fn a_small_guest_does_not_grow_for_nothing() {
        let boot = 48 * 1024;
        let usage = |used_mib: u64| Usage {
            total: boot,
            used: used_mib * 1024,
            droppable: 0,
        };
        assert_eq!(growth(usage(5), boot, given(0)), None);
        assert_eq!(growth(usage(21), boot, given(0)), Some(256));
    }

    #[test]
    fn growth_is_in_steps_and_ends_at_the_most() {
        for (plugged, needed, want) in [
            // A burst at the limit: at least 256 MiB.
            (0, 360, Some(256)),
            (0, 401, Some(256)),
            (256, 620, Some(512)),
            (1024, 1400, Some(1536)),
            (4096, 4400, Some(6144)),
            (6144, 6400, Some(8192)),
            (8192, 8600, None),
            (256, 400, None),
        ] {
            assert_eq!(
                growth(usage(plugged, needed), BOOT, given(plugged)),
                want,
                "{plugged} {needed}"
            );
        }
    }

    #[test]
    fn what_is_not_needed_is_given_back_with_slack() {
        for (plugged, needed, want) in [
            (0, 10, None),
            (256, 10, Some(0)),
            (128, 10, None),
            (1024, 800, Some(768)),
            (1024, 900, None),
            (8192, 10, Some(0)),
        ] {
            assert_eq!(
                shrinkage(usage(plugged, needed), BOOT, given(plugged)),
                want,
                "{plugged} {needed}"
            );
        }
    }

    #[test]
    fn what_was_given_for_a_need_is_not_given_back_while_it_lasts() {
        for needed in (360..6000).step_by(50) {
            let mut plugged = 0;
            while let Some(more) = growth(usage(plugged, needed), BOOT, given(plugged)) {
                assert!(more > plugged);
                plugged = more;
            }
            if let Some(less) = shrinkage(usage(plugged, needed), BOOT, given(plugged)) {
                assert_eq!(
                    growth(usage(less, needed), BOOT, given(less)),
                    None,
                    "{needed}: {plugged} to {less}"
                );
            }
        }
    }
}
