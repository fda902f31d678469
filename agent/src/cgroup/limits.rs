//! What the `linux.resources` of a spec are as files of a cgroup (v2): a pure function from the one to the other, and
//! the writing of what it gives. A container's creation and its later changes use the same. Device rules are not
//! here: they are a program, not files (`crate::devices`).

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::error::Error;

/// Most settings of `linux.resources.unified`.
const MAX_UNIFIED: usize = 256;
/// The longest name of a file there, bytes.
const MAX_NAME: usize = 128;
/// Files of the cgroup itself that a spec may set: the others are the agent's, or are no limits.
const OF_THE_CGROUP: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// One thing to be done with a cgroup's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The field of the spec that asks for it.
    pub field: &'static str,
    /// The file's name.
    pub file: String,
    /// What is done with it.
    pub change: Change,
}

/// What is done with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It gets this text, a write for each line.
    Set(String),
    /// As [`Change::Set`]; where the kernel does not have the file, what it would limit can't be had anyway.
    SetWhereItIs(String),
    /// Its first word stays, this becomes the second.
    SetSecond(String),
    /// It must not have more than this, else nothing after it is done.
    RequireAtMost(i64),
}

/// Settings being collected.
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

/// The settings that `resources` ask for, in the order in which the kernel takes them. Fields that are not there ask
/// for nothing, and so does a 0 where no limit can be 0.
///
/// # Errors
/// [`Error::BadSpec`] with the field.
pub fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, Error> {
    refuse_others(resources)?;
    let mut list = List(Vec::new());
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut list)?;
    }
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut list)?;
    }
    if let Some(pids) = resources.pids() {
        let field = "linux.resources.pids.limit";
        list.set(field, "pids.max", limit(field, pids.limit())?);
    }
    for hugepages in resources.hugepage_limits().iter().flatten() {
        hugepage_settings(hugepages, &mut list)?;
    }
    unified_settings(resources, &mut list)?;
    Ok(list.0)
}

/// A number of a cgroup's file; -1 is "no limit".
fn limit(field: &'static str, value: i64) -> Result<String, Error> {
    match value {
        -1 => Ok("max".to_owned()),
        0.. => Ok(value.to_string()),
        _ => Err(Error::bad_spec(field, format!("{value} is no limit; -1 is none"))),
    }
}

/// What no file stands for. The shim refuses these too; here it is the agent's own word.
fn refuse_others(resources: &LinuxResources) -> Result<(), Error> {
    let names_the_host = "names devices of the host";
    if resources
        .block_io()
        .as_ref()
        .is_some_and(|io| *io != Default::default())
    {
        return Err(Error::bad_spec("linux.resources.blockIO", names_the_host));
    }
    if resources
        .network()
        .as_ref()
        .is_some_and(|network| *network != Default::default())
    {
        return Err(Error::bad_spec(
            "linux.resources.network",
            "cgroup v2 has no such control",
        ));
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(Error::bad_spec("linux.resources.rdma", names_the_host));
    }
    let v1 = "is a control of cgroup v1; this is cgroup v2";
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
            format!("{quota} is no time; -1 is no limit"),
        ));
    }
    let period = cpu.period().filter(|period| *period != 0);
    let burst = cpu.burst();
    let field = "linux.resources.cpu.burst";
    if burst.is_some() && quota.is_some() {
        // The kernel refuses a quota below the burst and a burst above the quota, whichever comes first.
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
                Change::SetSecond(period.to_string()),
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
                return Err(Error::bad_spec(field, format!("{value:?} is no list of numbers")));
            }
            list.set(field, file, value);
        }
    }
    Ok(())
}

/// An idle group has no weight to be set: it is made an ordinary one first.
fn weight_settings(cpu: &LinuxCpu, list: &mut List) -> Result<(), Error> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let field = "linux.resources.cpu.idle";
    let idle = cpu.idle();
    if let Some(other) = idle.filter(|idle| !(0..=1).contains(idle)) {
        return Err(Error::bad_spec(field, format!("{other} is neither 0 nor 1")));
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

/// The weight (1..=10,000, usually 100) for shares (2..=262,144, usually 1,024) by runc's curve, which meets all three
/// pairs: 10^((l² + 125 l) / 612 − 7/34) with l the binary logarithm of the shares, rounded up.
fn weight(shares: u64) -> u32 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let shares = u32::try_from(shares).unwrap_or(u32::MAX);
            let l = f64::from(shares).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // What is a whole number but for the arithmetic's last digits is that number.
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
    let max_text = max.map(|max| limit(field, max)).transpose()?;
    if let Some(swap) = swap(memory)? {
        // Without swap in the kernel there is none that could be used.
        list.push(
            "linux.resources.memory.swap",
            "memory.swap.max",
            Change::SetWhereItIs(swap),
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
        list.set(field, "memory.low", limit(field, reservation)?);
    }
    Ok(())
}

/// The spec's swap is memory and swap together, cgroup v2's is swap alone.
fn swap(memory: &LinuxMemory) -> Result<Option<String>, Error> {
    let field = "linux.resources.memory.swap";
    let max = memory.limit().unwrap_or(0);
    match (memory.swap().unwrap_or(0), max) {
        // No limit of memory is none of swap, unless one is named.
        (0, -1) | (-1, _) => Ok(Some("max".to_owned())),
        (0, _) => Ok(None),
        (swap, _) if swap < -1 => limit(field, swap).map(Some),
        (_, max) if max <= 0 => Err(Error::bad_spec(
            field,
            "it is memory and swap together: a memory.limit is missing",
        )),
        (swap, max) if swap < max => Err(Error::bad_spec(
            field,
            format!("{swap} is memory and swap together: less than memory.limit, {max}"),
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
    let plain = !number.is_empty()
        && number.len() < 10
        && number.chars().all(|c| c.is_ascii_digit())
        && !number.starts_with('0');
    if !plain {
        let size: String = size.chars().take(32).collect();
        return Err(Error::bad_spec(
            "linux.resources.hugepageLimits",
            format!("{size:?} is no page size, as 2MB is"),
        ));
    }
    let field = "linux.resources.hugepageLimits";
    let text = limit(field, hugepages.limit())?;
    list.set(field, format!("hugetlb.{size}.max"), &text);
    // Pages reserved by a mapping count before they are touched.
    list.push(
        field,
        format!("hugetlb.{size}.rsvd.max"),
        Change::SetWhereItIs(text),
    );
    Ok(())
}

/// Files by name, last: what is named exactly wins.
fn unified_settings(resources: &LinuxResources, list: &mut List) -> Result<(), Error> {
    let field = "linux.resources.unified";
    let Some(unified) = resources.unified() else {
        return Ok(());
    };
    if unified.len() > MAX_UNIFIED {
        return Err(Error::bad_spec(field, format!("more than {MAX_UNIFIED} files")));
    }
    let mut sorted: Vec<_> = unified.iter().collect();
    sorted.sort();
    for (name, value) in sorted {
        check_name(name).map_err(|reason| Error::bad_spec(field, reason))?;
        list.set(field, name.as_str(), value);
    }
    Ok(())
}

/// Whether `name` can be a controller's file. The error is what the field says.
fn check_name(name: &str) -> Result<(), String> {
    let short: String = name.chars().take(MAX_NAME).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let (controller, rest) = name.split_once('.').unwrap_or_default();
    if controller.is_empty() || rest.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err(format!("{short:?} is no name of a controller's file"));
    }
    if controller == "cgroup" && !OF_THE_CGROUP.contains(&name) {
        return Err(format!("{short:?} is no limit"));
    }
    Ok(())
}

/// Does what `settings` say with the cgroup in `directory`, one after the other, up to the first that fails.
///
/// # Errors
/// [`Error::BadSpec`] with the field where the kernel refuses the value or has no such file.
pub fn write(directory: &Path, settings: &[Setting]) -> Result<(), Error> {
    settings.iter().try_for_each(|setting| {
        let file = directory.join(&setting.file);
        let done = match &setting.change {
            Change::Set(text) => write_lines(&file, text),
            Change::SetWhereItIs(text) => match write_lines(&file, text) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && directory.exists() => Ok(()),
                done => done,
            },
            Change::SetSecond(second) => fs::read_to_string(&file).and_then(|text| {
                let first = text.split_whitespace().next().unwrap_or("max");
                write_lines(&file, &format!("{first} {second}"))
            }),
            Change::RequireAtMost(most) => return require_at_most(&file, setting.field, *most),
        };
        done.map_err(|error| explain(directory, setting, &error))
    })
}

/// Files of cgroups take one setting a write.
fn write_lines(file: &Path, text: &str) -> io::Result<()> {
    let mut opened = fs::File::options().write(true).open(file)?;
    if text.is_empty() {
        return opened.write_all(b"\n");
    }
    text.lines()
        .try_for_each(|line| opened.write_all(line.as_bytes()))
}

fn require_at_most(file: &Path, field: &'static str, most: i64) -> Result<(), Error> {
    let text = fs::read_to_string(file).map_err(Error::file("reading", file))?;
    match text.trim().parse::<i64>() {
        Ok(used) if used <= most => Ok(()),
        _ => Err(Error::bad_spec(
            field,
            format!("{} bytes are in use, more than {most}", text.trim()),
        )),
    }
}

fn explain(directory: &Path, setting: &Setting, error: &io::Error) -> Error {
    let file = &setting.file;
    if error.kind() == io::ErrorKind::NotFound && directory.exists() {
        return Error::bad_spec(
            setting.field,
            format!("the guest's kernel has no {file} for a cgroup"),
        );
    }
    let value = match &setting.change {
        Change::Set(text) | Change::SetWhereItIs(text) => text.chars().take(64).collect(),
        Change::SetSecond(second) => format!("… {second}"),
        Change::RequireAtMost(most) => format!("<= {most}"),
    };
    Error::bad_spec(setting.field, format!("writing {value:?} to {file}: {error}"))
}

#[cfg(test)]
mod tests;
