//! What a container may leave behind on a host, looked at before and after each test: processes, mounts, sockets,
//! cgroups, files.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use nacre_tests::containerd::ctr::wait_readable;

/// Everything on the host that belongs to Nacre or to a container.
#[derive(Debug)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the host.
    pub fn take() -> Result<Self> {
        let mut seen = BTreeSet::new();
        for (pid, name) in nacre_processes()? {
            seen.insert(format!("process {pid} {name}"));
        }
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let target = line
                .split(' ')
                .nth(4)
                .context("a line of mountinfo without a target")?;
            seen.insert(format!("mount {target}"));
        }
        for line in fs::read_to_string("/proc/net/unix")?.lines() {
            let path = line.split(' ').next_back().unwrap_or_default();
            if path.contains("nacre") {
                seen.insert(format!("socket {path}"));
            }
        }
        let mut cgroups = Vec::new();
        walk(Path::new("/sys/fs/cgroup"), &mut cgroups, true);
        seen.extend(cgroups.iter().map(|path| format!("cgroup {}", path.display())));
        let mut files = Vec::new();
        walk(Path::new(nacre_protocol::state::STATE_ROOT), &mut files, false);
        walk(Path::new("/run/containerd/s"), &mut files, false);
        // Failure records are meant to stay.
        let failures = Path::new(nacre_protocol::state::STATE_ROOT).join(nacre_protocol::state::FAILURES_DIR);
        seen.extend(
            files
                .iter()
                .filter(|path| !path.starts_with(&failures))
                .map(|path| format!("file {}", path.display())),
        );
        Ok(Self(seen))
    }

    /// Waits until processes of Nacre that were not there before have ended, `within` the time, then tells what is
    /// there that was not.
    pub fn compare(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        for (pid, name) in nacre_processes()? {
            if !self.0.contains(&format!("process {pid} {name}")) {
                wait_for_end(pid, until).with_context(|| format!("process {pid} ({name}) does not end"))?;
            }
        }
        let after = Self::take()?;
        let new: Vec<&String> = after.0.difference(&self.0).collect();
        ensure!(new.is_empty(), "left behind: {new:#?}");
        let gone: Vec<&String> = self.0.difference(&after.0).collect();
        ensure!(gone.is_empty(), "taken away: {gone:#?}");
        Ok(())
    }
}

/// Pids and names of every process whose program is Nacre's.
pub fn nacre_processes() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // A process may end between the listing and the look.
        let Ok(program) = fs::read_link(path.join("exe")) else {
            continue;
        };
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("nacre-vmm") || name.starts_with("containerd-shim-nacre") {
            found.push((pid, name));
        }
    }
    Ok(found)
}

/// Waits for the end of a process that may be no child of ours.
pub fn wait_for_end(pid: u32, until: Instant) -> Result<()> {
    let raw = i32::try_from(pid)?;
    let pid = Pid::from_raw(raw).context("pid 0")?;
    let pidfd: OwnedFd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    wait_readable(&pidfd, until)
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>, only_directories: bool) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory {
            walk(&entry.path(), found, only_directories);
        }
        if is_directory || !only_directories {
            found.push(entry.path());
        }
    }
}
