//! Translates `linux.resources` of a spec into files of a cgroup (v2): a pure function from resources to a
//! list of settings. [`apply()`] writes them. Used when a container is created and when it is updated. Device
//! rules are not here: they are a BPF program and not files (`crate::devices`).

mod apply;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

pub use self::apply::apply;
use crate::error::Error;

/// Most entries of `linux.resources.unified`.
const MAX_UNIFIED: usize = 256;
/// Longest file name in `linux.resources.unified`, bytes.
const MAX_NAME: usize = 128;
/// The `cgroup.*` files that `linux.resources.unified` may set. The agent owns the others, or they are not
/// limits.
const ALLOWED_CORE_FILES: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

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

/// The settings that `resources` ask for, in an order that the kernel accepts. An absent field, or 0 for a
/// limit that cannot be 0, yields no setting.
///
/// # Errors
/// [`Error::BadSpec`] with the first field that has no meaning under cgroup v2 or in a guest.
pub fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, Error> {
    refuse_unsupported(resources)?;
    let mut list = List(Vec::new());
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut list)?;
    }
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut list)?;
    }
    if let Some(pids) = resources.pids() {
        let field = "linux.resources.pids.limit";
        list.set(field, "pids.max", limit_text(field, pids.limit())?);
    }
    for hugepages in resources.hugepage_limits().iter().flatten() {
        hugepage_settings(hugepages, &mut list)?;
    }
    unified_settings(resources, &mut list)?;
    Ok(list.0)
}

/// The text of a limit in a cgroup file: the number, or `max` for -1.
fn limit_text(field: &'static str, value: i64) -> Result<String, Error> {
    match value {
        -1 => Ok("max".to_owned()),
        0.. => Ok(value.to_string()),
        _ => Err(Error::bad_spec(
            field,
            format!("expected a number from 0, or -1 for no limit, got {value}"),
        )),
    }
}

/// Refuses fields that no file of cgroup v2 stands for. The shim refuses them, too; the agent does not rely
/// on that.
fn refuse_unsupported(resources: &LinuxResources) -> Result<(), Error> {
    let names_host_devices = "it names devices of the host, which the guest does not have";
    if resources
        .block_io()
        .as_ref()
        .is_some_and(|io| *io != Default::default())
    {
        return Err(Error::bad_spec("linux.resources.blockIO", names_host_devices));
    }
    if resources
        .network()
        .as_ref()
        .is_some_and(|network| *network != Default::default())
    {
        return Err(Error::bad_spec(
            "linux.resources.network",
            "cgroup v2 has no network controller",
        ));
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(Error::bad_spec("linux.resources.rdma", names_host_devices));
    }
    let v1 = "only cgroup v1 has this setting; the guest uses cgroup v2";
    if let Some(cpu) = resources.cpu()
        && (cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0)
    {
        return Err(Error::bad_spec("linux.resources.cpu.realtimeRuntime", v1));
    }
    let Some(memory) = resources.memory() else {
        return Ok(());
    };
    for (field, asked) in [
        ("linux.resources.memory.kernel", memory.kernel().unwrap_or(0) != 0),
        (
            "linux.resources.memory.kernelTCP",
            memory.kernel_tcp().unwrap_or(0) != 0,
        ),
        ("linux.resources.memory.swappiness", memory.swappiness().is_some()),
        (
            "linux.resources.memory.disableOOMKiller",
            memory.disable_oom_killer() == Some(true),
        ),
    ] {
        if asked {
            return Err(Error::bad_spec(field, v1));
        }
    }
    Ok(())
}

fn cpu_settings(cpu: &LinuxCpu, list: &mut List) -> Result<(), Error> {
    weight_settings(cpu, list)?;
    let quota = cpu.quota().filter(|quota| *quota != 0);
    if let Some(quota) = quota.filter(|quota| *quota < -1) {
        return Err(Error::bad_spec(
            "linux.resources.cpu.quota",
            format!("expected microseconds, or -1 for no limit, got {quota}"),
        ));
    }
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
            let quota = if quota == -1 {
                "max".to_owned()
            } else {
                quota.to_string()
            };
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
    for (field, file, value) in [
        ("linux.resources.cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("linux.resources.cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            if !value.chars().all(|c| c.is_ascii_digit() || c == ',' || c == '-') {
                let shown: String = value.chars().take(64).collect();
                return Err(Error::bad_spec(
                    field,
                    format!("expected a list of numbers such as 0-3,7, got {shown:?}"),
                ));
            }
            list.set(field, file, value);
        }
    }
    Ok(())
}

/// `cpu.shares` and `cpu.idle`. The kernel refuses a weight for an idle cgroup, so cpu.idle becomes 0 before
/// the weight.
fn weight_settings(cpu: &LinuxCpu, list: &mut List) -> Result<(), Error> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let field = "linux.resources.cpu.idle";
    let idle = cpu.idle();
    if let Some(other) = idle.filter(|idle| !(0..=1).contains(idle)) {
        return Err(Error::bad_spec(field, format!("expected 0 or 1, got {other}")));
    }
    if idle.is_some() && (idle == Some(0) || shares.is_some()) {
        list.set(field, "cpu.idle", 0);
    }
    if let Some(shares) = shares {
        list.set("linux.resources.cpu.shares", "cpu.weight", weight(shares));
    }
    if idle == Some(1) {
        list.set(field, "cpu.idle", 1);
    }
    Ok(())
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

fn memory_settings(memory: &LinuxMemory, list: &mut List) -> Result<(), Error> {
    let field = "linux.resources.memory.limit";
    let max = memory.limit().filter(|limit| *limit != 0);
    let max_text = max.map(|max| limit_text(field, max)).transpose()?;
    if let Some(swap) = swap(memory)? {
        // A kernel without swap has no such file, and there is nothing to limit.
        list.push(
            "linux.resources.memory.swap",
            "memory.swap.max",
            Change::SetIfPresent(swap),
        );
    }
    if let Some(text) = max_text {
        if memory.check_before_update() == Some(true)
            && let Some(max) = max.filter(|max| *max > 0)
        {
            let field = "linux.resources.memory.checkBeforeUpdate";
            list.push(field, "memory.current", Change::RequireAtMost(max));
        }
        list.set(field, "memory.max", text);
    }
    let field = "linux.resources.memory.reservation";
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        list.set(field, "memory.low", limit_text(field, reservation)?);
    }
    Ok(())
}

/// The text of memory.swap.max: the spec's `memory.swap` is the sum of memory and swap, cgroup v2's file is
/// swap alone.
fn swap(memory: &LinuxMemory) -> Result<Option<String>, Error> {
    let field = "linux.resources.memory.swap";
    let max = memory.limit().unwrap_or(0);
    match (memory.swap().unwrap_or(0), max) {
        // As runc does: memory without a limit means swap without a limit, unless the spec limits swap.
        (0, -1) | (-1, _) => Ok(Some("max".to_owned())),
        (0, _) => Ok(None),
        (swap, _) if swap < -1 => limit_text(field, swap).map(Some),
        (_, max) if max <= 0 => Err(Error::bad_spec(
            field,
            "it is the sum of memory and swap and requires memory.limit, which is missing",
        )),
        (swap, max) if swap < max => Err(Error::bad_spec(
            field,
            format!("it is the sum of memory and swap: {swap} is less than memory.limit {max}"),
        )),
        (swap, max) => Ok(Some(swap.saturating_sub(max).to_string())),
    }
}

fn hugepage_settings(hugepages: &LinuxHugepageLimit, list: &mut List) -> Result<(), Error> {
    let size = hugepages.page_size();
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit))
        .unwrap_or_default();
    let is_valid = !number.is_empty()
        && number.len() < 10
        && number.chars().all(|c| c.is_ascii_digit())
        && !number.starts_with('0');
    if !is_valid {
        let size: String = size.chars().take(32).collect();
        return Err(Error::bad_spec(
            "linux.resources.hugepageLimits",
            format!("expected a page size such as 2MB, got {size:?}"),
        ));
    }
    let field = "linux.resources.hugepageLimits";
    let text = limit_text(field, hugepages.limit())?;
    list.set(field, format!("hugetlb.{size}.max"), &text);
    // As runc does: also limit pages that a mapping has reserved and not touched yet.
    list.push(
        field,
        format!("hugetlb.{size}.rsvd.max"),
        Change::SetIfPresent(text),
    );
    Ok(())
}

/// `linux.resources.unified`: files by name. Applied last, so that they override the other fields.
fn unified_settings(resources: &LinuxResources, list: &mut List) -> Result<(), Error> {
    let field = "linux.resources.unified";
    let Some(unified) = resources.unified() else {
        return Ok(());
    };
    if unified.len() > MAX_UNIFIED {
        return Err(Error::bad_spec(
            field,
            format!("it has more than {MAX_UNIFIED} entries"),
        ));
    }
    let mut sorted: Vec<_> = unified.iter().collect();
    sorted.sort();
    for (name, value) in sorted {
        check_name(name).map_err(|reason| Error::bad_spec(field, reason))?;
        list.set(field, name.as_str(), value);
    }
    Ok(())
}

/// Checks that `name` can be the file of a controller. The error is the reason why not.
fn check_name(name: &str) -> Result<(), String> {
    let short: String = name.chars().take(MAX_NAME).collect();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let (controller, rest) = name.split_once('.').unwrap_or_default();
    if controller.is_empty() || rest.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_allowed) {
        return Err(format!(
            "expected a file of a controller such as memory.high, got {short:?}"
        ));
    }
    if controller == "cgroup" && !ALLOWED_CORE_FILES.contains(&name) {
        return Err(format!("{short:?} is not a limit that a spec may set"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
