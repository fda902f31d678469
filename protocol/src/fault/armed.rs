//! What a build with fault points does when it reaches one. Never part of an installed program of `make`.

use std::fs;
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::{ARMED_FILE, ARMED_PARAMETER, FaultPoint, Program};

/// What [`prepare`] has read: a point of the VMM and its victim.
static PREPARED: OnceLock<Option<(String, String)>> = OnceLock::new();

pub fn prepare() {
    let line = armed_on_host().filter(|(name, _)| is_of(name, Program::Vmm));
    if line.is_some() {
        let _ = fs::remove_file(ARMED_FILE);
    }
    let _ = PREPARED.set(line);
}

fn is_of(name: &str, program: Program) -> bool {
    FaultPoint::ALL
        .iter()
        .any(|point| point.name() == name && point.program() == program)
}

pub fn reach(point: FaultPoint) {
    let armed = match point.program() {
        Program::Shim => armed_on_host(),
        Program::Vmm => PREPARED.get().cloned().flatten(),
        Program::Agent => armed_in_guest(),
    };
    let Some((_, victim)) = armed.filter(|(name, _)| name == point.name()) else {
        return;
    };
    if point.program() == Program::Shim {
        let _ = fs::remove_file(ARMED_FILE);
    }
    eprintln!("fault point {}: ends {victim}", point.name());
    match victim.as_str() {
        "self" => end_self(),
        "vmm" => vmms().for_each(kill),
        "panic" => {
            let _ = fs::write("/proc/sysrq-trigger", "c");
        }
        pid => kill(pid.parse().unwrap_or(0)),
    }
}

fn armed_on_host() -> Option<(String, String)> {
    pair(&fs::read_to_string(ARMED_FILE).ok()?, ' ')
}

fn armed_in_guest() -> Option<(String, String)> {
    let cmdline = fs::read_to_string("/proc/cmdline").ok()?;
    let mut words = cmdline.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(ARMED_PARAMETER)?.strip_prefix('='))?;
    pair(value, ':')
}

fn pair(text: &str, separator: char) -> Option<(String, String)> {
    let (name, victim) = text.trim().split_once(separator)?;
    Some((name.to_owned(), victim.to_owned()))
}

/// PID 1 of a PID namespace, which VMM and agent are, can't kill itself by SIGKILL: a crash ends it as abruptly.
fn end_self() {
    if getpid().is_init() {
        std::process::abort();
    }
    kill(getpid().as_raw_nonzero().get());
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The VMMs that this process has started.
fn vmms() -> impl Iterator<Item = i32> {
    let own = getpid().as_raw_nonzero().get().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let parent = rest.split_whitespace().nth(1)?;
        (name == "nacre-vmm" && parent == own).then_some(pid)
    })
}
