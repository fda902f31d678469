//! Finds what a test leaves behind on the host: processes, mounts, sockets, cgroups, network interfaces, files.
//! [`crate::runner`] and `nacre-cri` take a snapshot before each test and compare the host with it afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::state::{FAILURES_DIR, STATE_ROOT, TEMPLATES_DIR};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::containerd::ctr::wait_readable;
use crate::templates;

/// Directories below which nothing may be left: of shims, of CNI, and what CRI has for each pod. Network
/// namespaces are files in /run/netns.
const DIRECTORIES: [&str; 8] = [
    STATE_ROOT,
    "/run/containerd/s",
    "/run/netns",
    "/var/lib/cni/results",
    "/run/containerd/lab/addresses",
    "/run/containerd/io.containerd.grpc.v1.cri",
    "/var/lib/containerd/io.containerd.grpc.v1.cri",
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
];

/// Files in which CNI's host-local keeps the address that it gave last.
const LAST_ADDRESS: &str = "last_reserved_ip";
/// The directory that containerd from 2.1 on makes for its first image volume, and keeps.
const IMAGE_VOLUMES: &str = "/run/containerd/io.containerd.grpc.v1.cri/image-volumes";

/// A description of each object on the host that Nacre or a container could leave behind.
#[derive(Debug)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Lists the objects that exist now.
    pub fn take() -> Result<Self> {
        let mut seen = BTreeSet::new();
        for (pid, name) in nacre_processes()? {
            seen.insert(format!("process {pid} {name}"));
        }
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let target = line
                .split(' ')
                .nth(4)
                .context("a line of mountinfo has no mount point")?;
            // It outlives pods by design.
            if Path::new(target) != templates::directory() {
                seen.insert(format!("mount {target}"));
            }
        }
        for line in fs::read_to_string("/proc/net/unix")?.lines() {
            let path = line.split(' ').next_back().unwrap_or_default();
            if path.contains("nacre") {
                seen.insert(format!("socket {path}"));
            }
        }
        for link in fs::read_dir("/sys/class/net")? {
            seen.insert(format!("interface {}", link?.file_name().to_string_lossy()));
        }
        let mut cgroups = Vec::new();
        walk(Path::new("/sys/fs/cgroup"), &mut cgroups, true);
        seen.extend(cgroups.iter().map(|path| format!("cgroup {}", path.display())));
        let mut files = Vec::new();
        for directory in DIRECTORIES {
            walk(Path::new(directory), &mut files, false);
        }
        // These outlive their pods by design.
        let kept = [FAILURES_DIR, TEMPLATES_DIR].map(|name| Path::new(STATE_ROOT).join(name));
        seen.extend(
            files
                .iter()
                .filter(|path| !kept.iter().any(|kept| path.starts_with(kept)))
                .filter(|path| !path.to_string_lossy().contains(LAST_ADDRESS))
                .filter(|path| *path != Path::new(IMAGE_VOLUMES))
                .map(|path| format!("file {}", path.display())),
        );
        Ok(Self(seen))
    }

    /// Waits up to `within` for new Nacre processes to exit, then fails if the host differs from this
    /// snapshot.
    pub fn compare(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        for (pid, name) in nacre_processes()? {
            if !self.0.contains(&format!("process {pid} {name}")) {
                wait_for_exit(pid, until).with_context(|| format!("process {pid} ({name}) does not exit"))?;
            }
        }
        let after = Self::take()?;
        let new: Vec<&String> = after.0.difference(&self.0).collect();
        ensure!(new.is_empty(), "left behind: {new:#?}");
        let removed: Vec<&String> = self.0.difference(&after.0).collect();
        ensure!(removed.is_empty(), "removed: {removed:#?}");
        Ok(())
    }
}

/// PIDs and program names of all running shims and VMMs, but those that make a template: they belong to no pod.
pub fn nacre_processes() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // The process may have exited since the directory was read.
        let Ok(program) = fs::read_link(path.join("exe")) else {
            continue;
        };
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_nacre_s = name.starts_with("nacre-vmm") || name.starts_with("containerd-shim-nacre");
        if is_nacre_s && !makes_a_template(&path) {
            found.push((pid, name));
        }
    }
    Ok(found)
}

/// Whether the process in `directory`, of /proc, is one of those that make a template.
fn makes_a_template(directory: &Path) -> bool {
    let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
    let arguments = fs::read(directory.join("cmdline")).unwrap_or_default();
    name.trim_end() == "nacre-template" || arguments.split(|byte| *byte == 0).any(|word| word == b"--save")
}

/// The PID of the only Nacre process whose program name starts with `name`.
///
/// # Errors
/// If there is none, or more than one.
pub fn only_process(name: &str) -> Result<u32> {
    let mut found = nacre_processes()?
        .into_iter()
        .filter(|(_, process)| process.starts_with(name));
    let (pid, _) = found.next().with_context(|| format!("no {name} is running"))?;
    ensure!(found.next().is_none(), "more than one {name} is running");
    Ok(pid)
}

/// Sends SIGKILL to the process `pid`.
///
/// # Errors
/// If it has exited.
pub fn send_sigkill(pid: u32) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?)
}

/// Waits until process `pid`, which need not be our child, has exited.
pub fn wait_for_exit(pid: u32, until: Instant) -> Result<()> {
    let raw = i32::try_from(pid)?;
    let pid = Pid::from_raw(raw).context("pid 0")?;
    let pidfd: OwnedFd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // EINVAL: no process has this id any more, but it is still the id of a process group or session.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    wait_readable(&pidfd, until)
}

/// Adds the paths below `directory` to `found`, depth first. Unreadable directories are skipped.
pub(crate) fn walk(directory: &Path, found: &mut Vec<PathBuf>, only_directories: bool) {
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_dead_leader_of_a_living_process_group_has_exited() {
        let mut leader = Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .unwrap();
        let group = i32::try_from(leader.id()).unwrap();
        let mut member = Command::new("cat")
            .stdin(Stdio::piped())
            .process_group(group)
            .spawn()
            .unwrap();
        leader.kill().unwrap();
        leader.wait().unwrap();
        let exited = wait_for_exit(leader.id(), Instant::now() + Duration::from_secs(1));
        member.kill().unwrap();
        member.wait().unwrap();
        exited.unwrap();
    }
}
