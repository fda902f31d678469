//! Converts the files of a container's cgroup in the guest to containerd's
//! `io.containerd.cgroups.v2.Metrics`, as the kernel's Documentation/admin-guide/cgroup-v2.rst describes
//! them. Called by `service` for Stats. Pure. The guest chooses the files' content: a value that is missing
//! or not a number is 0, and the number of lines is bounded.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
    RdmaEntry, RdmaStat,
};

use nacre_pod::CgroupFiles;

/// Most lines that are read from a file, and most huge page sizes.
const MAX_LINES: usize = 256;
/// Longest name of a device or page size, bytes.
const MAX_NAME: usize = 64;

/// Converts `files`, by name and content.
pub fn read(files: &CgroupFiles) -> Metrics {
    let files = Files(files);
    Metrics {
        pids: Some(PidsStat {
            current: files.number("pids.current"),
            limit: files.number("pids.max"),
            ..Default::default()
        })
        .into(),
        cpu: Some(cpu(&files)).into(),
        memory: Some(memory(&files)).into(),
        memory_events: Some(memory_events(&files)).into(),
        io: Some(IOStat {
            usage: files.lines("io.stat").filter_map(io_entry).collect(),
            psi: pressure(&files, "io.pressure").into(),
            ..Default::default()
        })
        .into(),
        rdma: Some(RdmaStat {
            current: files.lines("rdma.current").filter_map(rdma_entry).collect(),
            limit: files.lines("rdma.max").filter_map(rdma_entry).collect(),
            ..Default::default()
        })
        .into(),
        hugetlb: huge_pages(&files),
        ..Default::default()
    }
}

/// The files of a cgroup; those that are missing or not UTF-8 are empty.
struct Files<'a>(&'a CgroupFiles);

impl Files<'_> {
    fn text(&self, name: &str) -> &str {
        let bytes = self.0.get(name).map_or(&[][..], Vec::as_slice);
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &str> {
        self.text(name).lines().take(MAX_LINES)
    }

    /// The value of a file that has only one.
    fn number(&self, name: &str) -> u64 {
        value(self.text(name).trim())
    }

    /// The value of `key` in a file of "key value" lines.
    fn keyed(&self, name: &str, key: &str) -> u64 {
        self.lines(name)
            .filter_map(|line| line.split_once(' '))
            .find(|(found, _)| *found == key)
            .map_or(0, |(_, text)| value(text.trim()))
    }
}

/// Parses a number; "max" means that there is no limit.
fn value(text: &str) -> u64 {
    if text == "max" {
        return u64::MAX;
    }
    text.parse().unwrap_or(0)
}

fn cpu(files: &Files<'_>) -> CPUStat {
    let stat = |key| files.keyed("cpu.stat", key);
    CPUStat {
        usage_usec: stat("usage_usec"),
        user_usec: stat("user_usec"),
        system_usec: stat("system_usec"),
        nr_periods: stat("nr_periods"),
        nr_throttled: stat("nr_throttled"),
        throttled_usec: stat("throttled_usec"),
        psi: pressure(files, "cpu.pressure").into(),
        nr_bursts: stat("nr_bursts"),
        burst_usec: stat("burst_usec"),
        ..Default::default()
    }
}

fn memory(files: &Files<'_>) -> MemoryStat {
    let stat = |key: &str| files.keyed("memory.stat", key);
    // Since Linux 5.9 the kernel counts these separately for anonymous and file pages; the message has their
    // sum.
    let both = |key: &str| {
        let kinds = stat(&format!("{key}_anon")).saturating_add(stat(&format!("{key}_file")));
        stat(key).saturating_add(kinds)
    };
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: files.number("memory.current"),
        usage_limit: files.number("memory.max"),
        swap_usage: files.number("memory.swap.current"),
        swap_limit: files.number("memory.swap.max"),
        max_usage: files.number("memory.peak"),
        swap_max_usage: files.number("memory.swap.peak"),
        psi: pressure(files, "memory.pressure").into(),
        ..Default::default()
    }
}

fn memory_events(files: &Files<'_>) -> MemoryEvents {
    let event = |key| files.keyed("memory.events", key);
    MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: event("oom_kill"),
        oom_group_kill: event("oom_group_kill"),
        ..Default::default()
    }
}

/// Parses lines "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and "full …"; None if the file has neither.
fn pressure(files: &Files<'_>, name: &str) -> Option<PSIStats> {
    let kind = |kind: &str| {
        let line = files.lines(name).find_map(|line| line.strip_prefix(kind))?;
        let mut data = PSIData::default();
        for (key, text) in pairs(line) {
            let average = || {
                text.parse()
                    .ok()
                    .filter(|average| (0.0..=100.0).contains(average))
            };
            match key {
                "avg10" => data.avg10 = average().unwrap_or(0.0),
                "avg60" => data.avg60 = average().unwrap_or(0.0),
                "avg300" => data.avg300 = average().unwrap_or(0.0),
                "total" => data.total = value(text),
                _ => {}
            }
        }
        Some(data)
    };
    let (some, full) = (kind("some "), kind("full "));
    (some.is_some() || full.is_some()).then(|| PSIStats {
        some: some.into(),
        full: full.into(),
        ..Default::default()
    })
}

fn pairs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split_ascii_whitespace()
        .take(MAX_LINES)
        .filter_map(|word| word.split_once('='))
}

/// Parses a line "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
fn io_entry(line: &str) -> Option<IOEntry> {
    let (device, rest) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let mut entry = IOEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    };
    for (key, text) in pairs(rest) {
        match key {
            "rbytes" => entry.rbytes = value(text),
            "wbytes" => entry.wbytes = value(text),
            "rios" => entry.rios = value(text),
            "wios" => entry.wios = value(text),
            _ => {}
        }
    }
    Some(entry)
}

/// Parses a line "mlx4_0 hca_handle=2 hca_object=2000".
fn rdma_entry(line: &str) -> Option<RdmaEntry> {
    let (device, rest) = line.split_once(' ')?;
    // It becomes a label of Prometheus.
    if device.len() > MAX_NAME || !device.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut entry = RdmaEntry {
        device: device.to_owned(),
        ..Default::default()
    };
    for (key, text) in pairs(rest) {
        let number = u32::try_from(value(text)).unwrap_or(u32::MAX);
        match key {
            "hca_handle" => entry.hca_handles = number,
            "hca_object" => entry.hca_objects = number,
            _ => {}
        }
    }
    Some(entry)
}

/// Reads the files "hugetlb.2MB.current", "hugetlb.2MB.max" and so on, one set per page size.
fn huge_pages(files: &Files<'_>) -> Vec<HugeTlbStat> {
    let size_of = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        // This excludes names like "hugetlb.2MB.rsvd.current".
        let is_size = size.len() <= MAX_NAME && size.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_size.then(|| size.to_owned())
    };
    let mut sizes: Vec<String> = files
        .0
        .keys()
        .filter_map(|name| size_of(name))
        .take(MAX_LINES)
        .collect();
    sizes.sort();
    sizes
        .into_iter()
        .map(|size| HugeTlbStat {
            current: files.number(&format!("hugetlb.{size}.current")),
            max: files.number(&format!("hugetlb.{size}.max")),
            failcnt: files.keyed(&format!("hugetlb.{size}.events"), "max"),
            pagesize: size,
            ..Default::default()
        })
        .collect()
}

#[cfg(test)]
mod tests;
