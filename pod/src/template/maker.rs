//! Makes a template: runs `nacre-vmm --save`, which boots a guest of the template's kind and saves it. For a
//! pod that has found no template, a process of its own does that ([`prepare`]), which outlives the pod.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Absent, Begun, Error, Kind, Store};
use crate::{log, sys};

/// The name of the process that makes a template, as in /proc/PID/comm.
pub const PROCESS_NAME: &std::ffi::CStr = c"nacre-template";
/// How long that process waits for the pod's start, which needs the host's CPUs first.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long the guest may take to be saved once it has booted.
const SAVE_DEADLINE: Duration = Duration::from_secs(60);
/// The OOM killer's preference for a process that makes a template: nobody waits for it.
const OOM_SCORE_ADJ: &str = "1000";
/// Most of the end of the VMM's standard error that is read, bytes.
const MAX_STDERR: i64 = 16 * 1024;
/// Lines of it that are reported.
const REPORTED_LINES: usize = 3;
/// The exit code of a process that could not execute the VMM, as a shell reports it.
const NOT_EXECUTED: i32 = 127;

/// How a template came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was made now.
    Now,
    /// It existed.
    Before,
    /// Another process is making it.
    Elsewhere,
}

/// A process that makes a template once this is dropped.
#[derive(Debug)]
pub struct Waiting(#[expect(dead_code, reason = "it is closed on drop")] io::PipeWriter);

/// Starts a process that makes a template of `kind` in `store` when the result is dropped. The guest may take
/// `boot_deadline` to boot.
///
/// The process is nobody's child, and in the cgroup in which this one is now. It logs what it does.
///
/// # Errors
/// If the process can't be started.
pub fn prepare(store: &Store, kind: &Kind, boot_deadline: Duration) -> io::Result<Waiting> {
    let waiting = sys::detached_after(START_DEADLINE, be_dispensable, || {
        // Another pod's may have failed meanwhile.
        let key = kind.key().unwrap_or_default();
        if matches!(store.find(&key), Err(Absent::Failed(_))) {
            return;
        }
        match make(store, kind, boot_deadline) {
            Ok(Made::Now) => log::info("a template for pods of this kind was made"),
            Ok(Made::Before | Made::Elsewhere) => {}
            Err(error) => log::warn(format_args!("making a template: {error}")),
        }
    })?;
    Ok(Waiting(waiting))
}

/// Lets the OOM killer take this process before others.
fn be_dispensable() {
    // None of these can fail for root; if one does, the template is made all the same.
    let _ = nix::sys::prctl::set_name(PROCESS_NAME);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
}

/// Makes a template of `kind` in `store`. The guest may take `boot_deadline` to boot.
///
/// # Errors
/// [`Error`]. If the guest could not be saved, the reason is also in the store, so that pods don't try it again at once.
pub fn make(store: &Store, kind: &Kind, boot_deadline: Duration) -> Result<Made, Error> {
    let key = kind.key().map_err(|error| Error::NotMade(error.to_string()))?;
    let making = match store.begin(&key)? {
        Begun::Making(making) => making,
        Begun::Exists => return Ok(Made::Before),
        Begun::Elsewhere => return Ok(Made::Elsewhere),
    };
    let saved = save(kind, &making.files(), boot_deadline.saturating_add(SAVE_DEADLINE));
    let published = saved.and_then(|()| making.publish(kind).map_err(|error| error.to_string()));
    if let Err(reason) = published {
        if let Err(error) = making.fail(&format!(
            "no template could be made for this kind of pod: {reason}"
        )) {
            log::warn(format_args!("recording that a template was not made: {error}"));
        }
        return Err(Error::NotMade(reason));
    }
    Ok(Made::Now)
}

/// Runs the VMM until it has saved a guest of `kind` to `directory`, which it creates; `deadline` is how long it
/// may take. Returns the reason if it has not.
fn save(kind: &Kind, directory: &std::path::Path, deadline: Duration) -> Result<(), String> {
    let mut vmm = Command::new(&kind.vmm.path);
    vmm.arg("--kernel").arg(&kind.kernel.path);
    vmm.arg("--initrd").arg(&kind.initrd.path);
    vmm.arg("--save").arg(directory);
    vmm.arg(format!("--cmdline={}", kind.kernel_params));
    vmm.arg(format!("--memory-mib={}", kind.memory_mib));
    vmm.arg(format!("--vcpus={}", kind.vcpus));
    vmm.arg(format!("--max-vcpus={}", kind.max_vcpus));
    let stderr = sys::memory_file("nacre-template-stderr", 0);
    let mut stderr = stderr.map_err(|error| format!("memfd_create: {error}"))?;
    let ended = start(vmm, &stderr).map_err(|error| format!("starting the VMM: {error}"))?;
    let until = Instant::now() + deadline;
    if !sys::wait_readable(&ended, until).unwrap_or(false) {
        sys::end_child(&ended);
        return Err(format!(
            "the VMM has not saved the guest within {} s",
            deadline.as_secs()
        ));
    }
    let status = sys::reap(&ended).map_err(|error| format!("waiting for the VMM: {error}"))?;
    if status.exit_status() == Some(0) {
        return Ok(());
    }
    let mut text = Vec::new();
    let end = stderr.seek(SeekFrom::End(0)).unwrap_or_default();
    let from = i64::try_from(end).unwrap_or_default().min(MAX_STDERR);
    let read = stderr
        .seek(SeekFrom::End(-from))
        .and_then(|_| stderr.read_to_end(&mut text));
    let text = read.map_or_else(|error| error.to_string(), |_| last_lines(&text));
    Err(match status.terminating_signal() {
        Some(signal) => format!("the VMM was killed by signal {signal}: {text}"),
        None => text,
    })
}

/// Starts `vmm`, which is killed with this process, and writes its standard error to `stderr`. Returns a descriptor
/// that is readable when it has ended.
fn start(mut vmm: Command, stderr: &File) -> io::Result<OwnedFd> {
    vmm.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    vmm.stderr(stderr.try_clone()?);
    let child = sys::fork_bound(move || {
        let error = vmm.exec();
        log::error(format_args!("executing {}: {error}", vmm.get_program().display()));
        NOT_EXECUTED
    })?;
    let child = Pid::from_raw(child.as_raw()).ok_or_else(|| io::Error::other("no pid"))?;
    Ok(pidfd_open(child, PidfdFlags::empty())?)
}

/// The last lines of the VMM's standard error, in one line.
fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.len().saturating_sub(REPORTED_LINES);
    nacre_protocol::text::printable(&lines.split_at(last).1.join("; "), crate::guest_text::MAX_MESSAGE)
}
