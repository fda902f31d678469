//! Files as a kernel writes them, and as a hostile guest may.

use super::*;
use containerd_shim_protos::protobuf::{Message as _, MessageFull as _};

fn files(list: &[(&str, &str)]) -> CgroupFiles {
    list.iter()
        .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
        .collect()
}

/// Every field of the message, as a path and its value.
fn fields(message: &Metrics) -> Vec<String> {
    let text = containerd_shim_protos::protobuf::text_format::print_to_string_pretty(message);
    let mut path = Vec::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix(" {") {
            path.push(name.to_owned());
        } else if line == "}" {
            path.pop();
        } else {
            found.push(format!("{}.{}", path.join("."), line.replace(": ", "=")));
        }
    }
    found
}

const CPU: &str = "usage_usec 1001\nuser_usec 1002\nsystem_usec 1003\ncore_sched.force_idle_usec 9\nnr_periods 1004\nnr_throttled 1005\nthrottled_usec 1006\nnr_bursts 1007\nburst_usec 1008\n";
const PRESSURE: &str =
    "some avg10=1.50 avg60=2.25 avg300=3.00 total=4\nfull avg10=0.50 avg60=0.25 avg300=0.00 total=5\n";

/// Each key of memory.stat that the message has a field for. Its value is its position in this list, from 1.
const KEYS: [&str; 31] = [
    "anon",
    "file",
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault",
    "workingset_activate",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
];

const EXPECTED_FIELDS: [&str; 39] = [
    "pids.current=3",
    "pids.limit=18446744073709551615",
    "cpu.usage_usec=1001",
    "cpu.user_usec=1002",
    "cpu.system_usec=1003",
    "cpu.nr_periods=1004",
    "cpu.nr_throttled=1005",
    "cpu.throttled_usec=1006",
    "cpu.nr_bursts=1007",
    "cpu.burst_usec=1008",
    "cpu.psi.some.avg60=2.25",
    "cpu.psi.full.total=5",
    "memory.usage=32",
    "memory.usage_limit=33",
    "memory.swap_usage=34",
    "memory.swap_limit=18446744073709551615",
    "memory.max_usage=36",
    "memory.swap_max_usage=37",
    "memory.psi.some.avg10=1.5",
    "memory_events.low=1",
    "memory_events.high=2",
    "memory_events.max=3",
    "memory_events.oom=4",
    "memory_events.oom_kill=5",
    "memory_events.oom_group_kill=6",
    "io.usage.major=254",
    "io.usage.rbytes=1",
    "io.usage.wbytes=2",
    "io.usage.rios=3",
    "io.usage.wios=4",
    "io.usage.minor=1",
    "io.psi.some.total=4",
    "rdma.current.device=\"mlx4_0\"",
    "rdma.current.hca_objects=2000",
    "rdma.limit.hca_handles=4294967295",
    "hugetlb.current=2097152",
    "hugetlb.max=18446744073709551615",
    "hugetlb.pagesize=\"2MB\"",
    "hugetlb.failcnt=7",
];

/// A cgroup whose values are all different.
fn every_file() -> CgroupFiles {
    let stat: String = KEYS
        .iter()
        .enumerate()
        .map(|(index, key)| format!("{key} {}\n", index + 1))
        .collect();
    files(&[
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("cpu.stat", CPU),
        ("cpu.pressure", PRESSURE),
        ("memory.stat", &stat),
        ("memory.current", "32\n"),
        ("memory.max", "33\n"),
        ("memory.swap.current", "34\n"),
        ("memory.swap.max", "max\n"),
        ("memory.peak", "36\n"),
        ("memory.swap.peak", "37\n"),
        ("memory.pressure", PRESSURE),
        (
            "memory.events",
            "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
        ),
        (
            "io.stat",
            "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:1 rbytes=8\n",
        ),
        ("io.pressure", PRESSURE),
        ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
        ("rdma.max", "mlx4_0 hca_handle=max hca_object=max\n"),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.max", "max\n"),
        ("hugetlb.2MB.events", "max 7\n"),
        ("hugetlb.2MB.rsvd.current", "5\n"),
        ("hugetlb.1GB.current", "0\n"),
    ])
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may have descriptors")]
fn every_field_has_its_own_file_and_key() {
    let metrics = read(&every_file());
    assert_eq!(
        Metrics::descriptor().full_name(),
        "io.containerd.cgroups.v2.Metrics"
    );
    let memory = metrics.memory.clone().unwrap();
    // Each key's value must be in the field of the same name.
    let reflected = MemoryStat::descriptor();
    for (index, key) in KEYS.iter().enumerate() {
        let field = reflected.field_by_name(key).unwrap();
        let value = field.get_singular_field_or_default(&memory);
        assert_eq!(value.to_u64(), Some(u64::try_from(index + 1).unwrap()), "{key}");
    }
    let found = fields(&metrics);
    for want in EXPECTED_FIELDS {
        assert!(found.iter().any(|field| field == want), "{want} in {found:#?}");
    }
    assert_eq!(metrics.hugetlb.len(), 2);
    assert_eq!(metrics.io.usage.len(), 2);
}

#[test]
fn refaults_of_both_kinds_are_counted() {
    let metrics = read(&files(&[(
        "memory.stat",
        "workingset_refault_anon 3\nworkingset_refault_file 4\nworkingset_activate_file 5\n",
    )]));
    assert_eq!(metrics.memory.workingset_refault, 7);
    assert_eq!(metrics.memory.workingset_activate, 5);
}

#[test]
fn missing_and_malformed_values_are_zero() {
    let empty = read(&CgroupFiles::new());
    assert!(fields(&empty).is_empty(), "{:?}", fields(&empty));
    let long = "x".repeat(100_000);
    let endless = "8:0 rbytes=1\n".repeat(100_000);
    let many = format!("some {}", "avg10=1 ".repeat(100_000));
    let mut hostile = files(&[
        ("pids.current", "-1"),
        ("pids.max", "99999999999999999999999999"),
        ("memory.current", "0x10"),
        ("memory.max", &long),
        (
            "cpu.stat",
            "usage_usec\nuser_usec max5\nsystem_usec 1 2\n\n   \nnr_periods -3",
        ),
        (
            "cpu.pressure",
            "some avg10=NaN avg60=inf avg300=-1 total=x\nfull\n",
        ),
        ("memory.pressure", &many),
        ("memory.events", &long),
        ("io.stat", &endless),
        (
            "rdma.current",
            &format!("{long} hca_handle=1\n\x1b[31m hca_handle=1\nd hca_handle=-1"),
        ),
    ]);
    hostile.insert("memory.stat".into(), vec![0xff; 1000]);
    for index in 0..10_000 {
        hostile.insert(format!("hugetlb.{index}.current"), b"1".to_vec());
    }
    hostile.insert(format!("hugetlb.{long}.current"), b"1".to_vec());
    hostile.insert("hugetlb..current".into(), b"1".to_vec());
    let metrics = read(&hostile);
    assert_eq!((metrics.pids.current, metrics.pids.limit), (0, 0));
    assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (0, 0));
    assert_eq!(metrics.memory.psi.some.avg10, 1.0);
    assert_eq!(
        metrics.cpu.usage_usec + metrics.cpu.user_usec + metrics.cpu.nr_periods,
        0
    );
    assert_eq!(metrics.cpu.psi.some.avg10 + metrics.cpu.psi.some.avg60, 0.0);
    assert_eq!(metrics.io.usage.len(), MAX_LINES);
    assert_eq!(metrics.rdma.current.len(), 1);
    assert_eq!(metrics.hugetlb.len(), MAX_LINES);
    assert!(metrics.write_to_bytes().unwrap().len() < 64 * 1024);
}
