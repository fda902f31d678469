//! The host's CPUs that a VMM may run on. Called when it is started, and when they are changed.

use std::collections::BTreeSet;
use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Most times that the threads are listed. Those of a VMM are made at its start.
const ROUNDS: usize = 16;

/// Lets the thread `pid`, and what it makes, run on `cpus` only; on all CPUs if there are none.
pub fn set(pid: Pid, cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(sched_setaffinity(pid, &set)?)
}

/// Lets every thread of the process `pid` run on `cpus` only.
///
/// # Errors
/// EINVAL if this host has none of these CPUs; nothing is changed then.
pub fn set_all(pid: u32, cpus: &[usize]) -> io::Result<()> {
    let mut done = BTreeSet::new();
    for _ in 0..ROUNDS {
        let mut found = false;
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = entry?.file_name();
            let thread: i32 = name
                .to_str()
                .and_then(|name| name.parse().ok())
                .ok_or_else(|| io::Error::other("no thread id"))?;
            if !done.insert(thread) {
                continue;
            }
            found = true;
            match set(Pid::from_raw(thread), cpus) {
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                result => result?,
            }
        }
        // A thread that was made meanwhile by one that still had the old CPUs is found in the next round.
        if !found {
            return Ok(());
        }
    }
    Err(io::Error::other("the VMM makes ever more threads"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(task: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    }

    #[test]
    fn a_process_runs_on_the_given_cpus_only() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let all = allowed(&pid.to_string());
        set(pid, &[]).unwrap();
        let before = allowed(&pid.to_string());
        set(pid, &[0]).unwrap();
        let after = allowed(&pid.to_string());
        let error = set(pid, &[1023]).map_err(|error| error.kind());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((before, after.as_str()), (all, "0"));
        assert_eq!(error, Err(io::ErrorKind::InvalidInput));
    }

    /// The threads of this test's process, whose CPUs are those of the whole host afterwards.
    #[test]
    fn every_thread_runs_on_the_given_cpus() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (number, numbers) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            number.send(rustix::thread::gettid()).unwrap();
            // An error: the test goes on.
            let _ = ended.recv();
        });
        let task = format!("self/task/{}", numbers.recv().unwrap().as_raw_nonzero());
        let all = allowed(&task);
        set_all(std::process::id(), &[0]).unwrap();
        let after = (allowed("self"), allowed(&task));
        let error = set_all(std::process::id(), &[1023]).map_err(|error| error.kind());
        let list = nacre_protocol::cpu_list::parse(&all).unwrap();
        set_all(std::process::id(), &list).unwrap();
        drop(end);
        thread.join().unwrap();
        assert_eq!(after, ("0".to_owned(), "0".to_owned()));
        assert_eq!(error, Err(io::ErrorKind::InvalidInput));
    }
}
