//! Translates `linux.resources` of a checked spec into files of a cgroup (v2): a pure function from resources
//! to a list of settings. The values were checked by [`nacre_protocol::spec`]. [`apply()`] writes them. Used
//! when a container is created and when it is updated. Device rules are not here: they are a BPF program and
//! not files (`crate::devices`).

mod apply;
mod block_io;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

pub use self::apply::{apply, update};
use crate::disk::DisksByHostNumber;
use crate::error::Error;

/// One change of, or condition on, a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Path of the spec's field that asks for it, such as `linux.resources.cpu.quota`.
    pub field: &'static str,
    /// The file's name in the cgroup's directory, such as `cpu.max`.
    pub file: String,
    /// How the file changes.
    pub change: Change,
}

/// How a setting changes its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write this text, one write(2) per line.
    Set(String),
    /// As [`Change::Set`], but a missing file is not an error: without it the kernel does not have the
    /// resource either.
    SetIfPresent(String),
    /// Replace the second word of the file, and keep the first.
    SetSecondField(String),
    /// Write nothing, and fail if the number in the file exceeds this one.
    RequireAtMost(i64),
}

/// The settings collected so far, in the order in which they are applied.
struct List(Vec<Setting>);

impl List {
    fn push(&mut self, field: &'static str, file: impl Into<String>, change: Change) {
        let file = file.into();
        self.0.push(Setting { field, file, change });
    }

    fn set(&mut self, field: &'static str, file: impl Into<String>, value: impl ToString) {
        self.push(field, file, Change::Set(value.to_string()));
    }
}

/// The settings that `resources` of a container with these `disks` ask for, in an order that the kernel accepts. An
/// absent field, or 0 for a limit that cannot be 0, yields no setting.
///
/// # Errors
/// [`Error::BadSpec`] for a limit of a block device that is none of `disks`.
pub fn settings(resources: &LinuxResources, disks: &DisksByHostNumber) -> Result<Vec<Setting>, Error> {
    let mut list = List(Vec::new());
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut list);
    }
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut list);
    }
    if let Some(pids) = resources.pids() {
        list.set("linux.resources.pids.limit", "pids.max", limit_text(pids.limit()));
    }
    for hugepages in resources.hugepage_limits().iter().flatten() {
        hugepage_settings(hugepages, &mut list);
    }
    if let Some(block_io) = resources.block_io() {
        block_io::settings(block_io, disks, &mut list)?;
    }
    unified_settings(resources, &mut list);
    Ok(list.0)
}

/// The text of a limit in a cgroup file: the number, or `max` for -1.
fn limit_text(value: i64) -> String {
    match value {
        -1 => "max".to_owned(),
        _ => value.to_string(),
    }
}

fn cpu_settings(cpu: &LinuxCpu, list: &mut List) {
    weight_settings(cpu, list);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let burst = cpu.burst();
    let field = "linux.resources.cpu.burst";
    if burst.is_some() && quota.is_some() {
        // The kernel refuses a quota below the current burst, so the burst is set to 0 before the quota
        // changes.
        list.set(field, "cpu.max.burst", 0);
    }
    match (quota, period) {
        (Some(quota), period) => {
            let quota = limit_text(quota);
            let period = period.map(|period| format!(" {period}")).unwrap_or_default();
            list.set("linux.resources.cpu.quota", "cpu.max", format!("{quota}{period}"));
        }
        (None, Some(period)) => {
            list.push(
                "linux.resources.cpu.period",
                "cpu.max",
                Change::SetSecondField(period.to_string()),
            );
        }
        (None, None) => {}
    }
    if let Some(burst) = burst {
        list.set(field, "cpu.max.burst", burst);
    }
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        list.set("linux.resources.cpu.cpus", "cpuset.cpus", cpus);
    }
}

/// `cpu.shares` and `cpu.idle`. The kernel refuses a weight for an idle cgroup, so cpu.idle becomes 0 before
/// the weight.
fn weight_settings(cpu: &LinuxCpu, list: &mut List) {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let field = "linux.resources.cpu.idle";
    let idle = cpu.idle();
    if idle.is_some() && (idle == Some(0) || shares.is_some()) {
        list.set(field, "cpu.idle", 0);
    }
    if let Some(shares) = shares {
        list.set("linux.resources.cpu.shares", "cpu.weight", weight(shares));
    }
    if idle == Some(1) {
        list.set(field, "cpu.idle", 1);
    }
}

/// Converts cgroup v1 shares (2..=262,144, default 1,024) to a cgroup v2 weight (1..=10,000, default 100) by
/// runc's formula, which maps minimum, default and maximum onto each other: 10^((l² + 125 l) / 612 − 7/34),
/// rounded up, with l = log2(shares).
fn weight(shares: u64) -> u32 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let shares = u32::try_from(shares).unwrap_or(u32::MAX);
            let l = f64::from(shares).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // Rounding errors must not lift a result that is a whole number to the next one.
            let weight = (10_f64.powf(exponent) - 1e-9).ceil();
            (1..=10_000)
                .find(|whole| f64::from(*whole) >= weight)
                .unwrap_or(10_000)
        }
    }
}

fn memory_settings(memory: &LinuxMemory, list: &mut List) {
    let max = memory.limit().filter(|limit| *limit != 0);
    if let Some(swap) = swap(memory) {
        // A kernel without swap has no such file, and there is nothing to limit.
        list.push(
            "linux.resources.memory.swap",
            "memory.swap.max",
            Change::SetIfPresent(swap),
        );
    }
    if let Some(max) = max {
        if memory.check_before_update() == Some(true) && max > 0 {
            let field = "linux.resources.memory.checkBeforeUpdate";
            list.push(field, "memory.current", Change::RequireAtMost(max));
        }
        list.set("linux.resources.memory.limit", "memory.max", limit_text(max));
    }
    let field = "linux.resources.memory.reservation";
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        list.set(field, "memory.low", limit_text(reservation));
    }
}

/// The text of memory.swap.max: the spec's `memory.swap` is the sum of memory and swap, which is at least
/// `memory.limit`; cgroup v2's file is swap alone.
fn swap(memory: &LinuxMemory) -> Option<String> {
    let max = memory.limit().unwrap_or(0);
    match (memory.swap().unwrap_or(0), max) {
        // As runc does: memory without a limit means swap without a limit, unless the spec limits swap.
        (0, -1) | (-1, _) => Some("max".to_owned()),
        (0, _) => None,
        (swap, max) => Some(swap.saturating_sub(max).to_string()),
    }
}

fn hugepage_settings(hugepages: &LinuxHugepageLimit, list: &mut List) {
    let field = "linux.resources.hugepageLimits";
    let size = hugepages.page_size();
    let text = limit_text(hugepages.limit());
    list.set(field, format!("hugetlb.{size}.max"), &text);
    // As runc does: also limit pages that a mapping has reserved and not touched yet.
    list.push(
        field,
        format!("hugetlb.{size}.rsvd.max"),
        Change::SetIfPresent(text),
    );
}

/// `linux.resources.unified`: files by name. Applied last, so that they override the other fields.
fn unified_settings(resources: &LinuxResources, list: &mut List) {
    let mut sorted: Vec<_> = resources.unified().iter().flatten().collect();
    sorted.sort();
    for (name, value) in sorted {
        list.set("linux.resources.unified", name.as_str(), value);
    }
}

#[cfg(test)]
mod tests;
