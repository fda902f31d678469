//! The figures of a soak: what the host counts, what containerd and a pod's two programs hold, and what the guest's
//! kernel counts. Called by `nacre-soak` when only the pod that lives throughout is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::trend::Figure;
use crate::containerd::ctr::ctr;
use crate::containerd::restart::containerd_pid;
use crate::leaks::walk;
use crate::memory;

/// Where files are counted: sockets, state and failures of shims, and what containerd and CNI keep.
const DIRECTORIES: [&str; 4] = ["/run", "/var/lib/containerd", "/var/lib/cni", "/dev/shm"];

/// Prints what the guest's kernel counts, for the whole guest: each file after a line with its name.
const GUEST_SCRIPT: &str = "for f in /proc/loadavg /proc/sys/fs/file-nr /proc/cgroups /proc/self/mountinfo \
                            /proc/meminfo; do echo \"== $f\"; cat $f; done";

/// The pod that lives throughout.
#[derive(Debug, Clone)]
pub struct LongLived {
    /// Its container.
    pub id: String,
    /// The shim's pid.
    pub shim: u32,
    /// The VMM's.
    pub vmm: u32,
}

/// Takes all figures.
///
/// # Errors
/// If one can't be read.
pub fn take(long_lived: &LongLived) -> Result<Vec<Figure>> {
    let guest = [
        "task",
        "exec",
        "--exec-id",
        "figures",
        &long_lived.id,
        "sh",
        "-c",
        GUEST_SCRIPT,
    ];
    let guest = parse_guest(&ctr(guest)?.success()?)?;
    let mut figures = host()?;
    let containerd = containerd_pid()?;
    figures.extend([
        // It is restarted all the time; its garbage collector lets it vary by some MiB.
        Figure::trend("containerd KiB", memory::resident_kib(containerd)?, 16 << 10),
        Figure::trend("containerd fds", entries(format!("/proc/{containerd}/fd"))?, 4),
        Figure::trend("shim KiB", memory::of(long_lived.shim.into())?.own_kib, 1 << 10),
        Figure::count("shim fds", entries(format!("/proc/{}/fd", long_lived.shim))?),
        Figure::count(
            "shim threads",
            entries(format!("/proc/{}/task", long_lived.shim))?,
        ),
        Figure::trend("VMM KiB", memory::of(long_lived.vmm.into())?.own_kib, 1 << 10),
        Figure::count("VMM fds", entries(format!("/proc/{}/fd", long_lived.vmm))?),
        Figure::count("VMM threads", entries(format!("/proc/{}/task", long_lived.vmm))?),
    ]);
    figures.extend(guest);
    Ok(figures)
}

/// The files that are counted.
pub fn files() -> BTreeSet<PathBuf> {
    let mut files = Vec::new();
    for directory in DIRECTORIES {
        walk(Path::new(directory), &mut files, false);
    }
    // The newest failures are kept by design; the leak comparison leaves them out, too.
    let failures = Path::new(nacre_protocol::state::STATE_ROOT).join(nacre_protocol::state::FAILURES_DIR);
    let is_counted = |file: &PathBuf| !file.starts_with(&failures);
    files.into_iter().filter(is_counted).collect()
}

fn host() -> Result<Vec<Figure>> {
    let mut cgroups = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &mut cgroups, true);
    let lines = |file: &str| -> Result<u64> { Ok(u64::try_from(fs::read_to_string(file)?.lines().count())?) };
    Ok(vec![
        Figure::count("processes", processes()?),
        Figure::count("mounts", lines("/proc/self/mountinfo")?),
        Figure::count("cgroups", u64::try_from(cgroups.len())?),
        Figure::count("files", u64::try_from(files().len())?),
        Figure::count("links", entries("/sys/class/net".to_owned())?),
        Figure::count("Unix sockets", lines("/proc/net/unix")?),
    ])
}

/// Entries of a directory.
fn entries(path: String) -> Result<u64> {
    let count = fs::read_dir(&path).with_context(|| path.clone())?.count();
    Ok(u64::try_from(count)?)
}

/// Processes and zombies, without the kernel's threads.
fn processes() -> Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        // It may have exited since.
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        count += u64::from(is_process(&stat));
    }
    Ok(count)
}

/// Whether the text of /proc/PID/stat is that of a process which kthreadd (pid 2) did not make.
fn is_process(stat: &str) -> bool {
    let parent = |stat: &str| -> Option<(u32, u32)> {
        let pid = stat.split(' ').next()?.parse().ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        Some((pid, fields.split(' ').nth(1)?.parse().ok()?))
    };
    parent(stat).is_some_and(|(pid, parent)| pid != 2 && parent != 2)
}

/// The figures in the output of [`GUEST_SCRIPT`].
fn parse_guest(text: &str) -> Result<Vec<Figure>> {
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        match line.strip_prefix("== ") {
            Some(file) => name = file,
            None => files.entry(name).or_default().push(line),
        }
    }
    let file = |name: &str| {
        files
            .get(name)
            .with_context(|| format!("the guest has no {name}"))
    };
    // The field `index` of the line that begins with `label`.
    let field = |name: &str, label: &str, index: usize| -> Result<u64> {
        let lines = file(name)?;
        let line = lines.iter().find(|line| line.starts_with(label));
        let word = line.and_then(|line| line.split_whitespace().nth(index));
        let word = word.with_context(|| format!("the guest's {name} has no {label:?}"))?;
        // loadavg: running/all.
        let number = word.rsplit('/').next().unwrap_or_default();
        number.parse().with_context(|| format!("{name}: {word:?}"))
    };
    let meminfo = |label| field("/proc/meminfo", label, 1);
    let kernel = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];
    let kernel = kernel.into_iter().map(meminfo).sum::<Result<u64>>()?;
    let used = meminfo("MemTotal:")?.saturating_sub(meminfo("MemAvailable:")?);
    Ok(vec![
        Figure::trend("guest threads", field("/proc/loadavg", "", 3)?, 4),
        Figure::trend("guest open files", field("/proc/sys/fs/file-nr", "", 0)?, 64),
        Figure::count("guest cgroups", field("/proc/cgroups", "memory", 2)?),
        Figure::count(
            "guest mounts",
            u64::try_from(file("/proc/self/mountinfo")?.len())?,
        ),
        Figure::trend("guest used KiB", used, 4 << 10),
        Figure::trend("guest kernel KiB", kernel, 1 << 10),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_threads_are_no_processes() {
        assert!(is_process("812 (sleep) S 1 812 812 0 -1 4194304"));
        assert!(is_process("813 (a) b) Z 812 812 812 0 -1"));
        assert!(!is_process("2 (kthreadd) S 0 0 0 0 -1 2129984"));
        assert!(!is_process("77 (kworker/0:1-events) I 2 0 0 0 -1"));
        assert!(!is_process(""));
        assert!(processes().unwrap() >= 1);
    }

    #[test]
    fn a_guest_s_figures_are_read() {
        let text = "== /proc/loadavg\n0.00 0.01 0.05 1/62 91\n== /proc/sys/fs/file-nr\n96\t0\t24000\n\
                    == /proc/cgroups\n#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t5\t1\nmemory\t0\t6\t1\n\
                    == /proc/self/mountinfo\n1 1 0:1 / /\n2 1 0:2 / /proc\n== /proc/meminfo\nMemTotal:  500000 kB\n\
                    MemAvailable: 460000 kB\nSUnreclaim:   3000 kB\nKernelStack: 500 kB\nPageTables: 100 kB\n\
                    Percpu: 188 kB\n";
        let figures = parse_guest(text).unwrap();
        let values: Vec<u64> = figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [62, 96, 6, 2, 40_000, 3788]);
        assert!(parse_guest(&text.replace("Percpu", "other")).is_err());
        assert!(parse_guest("").is_err());
    }
}
