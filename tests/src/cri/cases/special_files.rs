//! Files of volumes that are more than their bytes: sockets, and files whose content the host's kernel makes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use super::plain_pod;
use crate::cri::pod::{Pod, this_program};
use crate::cri::{Case, PodKind, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("special files");

pub const CASES: &[Case] = &[
    in_pod(
        "volume: a socket and a lock of another container",
        &POD,
        socket_of_container,
    ),
    in_pod("volume: a socket that the host serves", &POD, socket_of_host).allow_difference(
        "a socket of the host's kernel is none of the guest's",
        "Connection refused",
    ),
    in_pod("volume: files of procfs and sysfs", &POD, files_of_the_kernel),
];

/// Serves connections to a new socket at `path`, for ever: each gets a line. Meanwhile it locks the file beside it. A
/// container's command.
///
/// # Errors
/// If the socket can't be bound, or the file can't be locked.
pub fn serve_at(path: &Path) -> Result<()> {
    let _lock = try_lock(path)?;
    let listener = UnixListener::bind(path)?;
    println!("serving");
    loop {
        listener.accept()?.0.write_all(b"served\n")?;
    }
}

fn try_lock(socket: &Path) -> Result<Flock<File>> {
    let file = File::create(socket.with_extension("lock"))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    locked.map_err(|(_, errno)| errno.into())
}

/// Connects to the socket at `path` and prints what it gets, or why it can't, and the same of a lock of the file beside
/// it. A container's command.
///
/// # Errors
/// If what it gets can't be read.
pub fn connect_to(path: &Path) -> Result<()> {
    match try_lock(path) {
        Ok(_) => println!("locked"),
        Err(error) => println!("{error}"),
    }
    let mut text = String::new();
    match UnixStream::connect(path) {
        Ok(mut stream) => stream.read_to_string(&mut text).map(drop)?,
        Err(error) => text = format!("{error}\n"),
    }
    print!("{text}");
    Ok(())
}

/// A container of this program with `arguments` that has `directory` at `/volume`.
fn with_volume(arguments: &[&str], directory: &Path) -> Result<Value> {
    let mut config = this_program(arguments)?;
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.push(json!({"container_path": "/volume", "host_path": directory}));
    }
    Ok(config)
}

fn connected(pod: &Pod<'_>, directory: &Path) -> Result<Outcome> {
    pod.run("", with_volume(&["--connect", "/volume/socket"], directory)?)
}

fn socket_of_container(pod: &Pod<'_>) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let server = pod.start("", with_volume(&["--serve", "/volume/socket"], directory.path())?)?;
    server.prints("serving")?;
    let mut seen = server.output("/test --connect /volume/socket")?;
    seen.push_str(&connected(pod, directory.path())?.to_string());
    Ok(Outcome::text(seen))
}

fn socket_of_host(pod: &Pod<'_>) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let listener = UnixListener::bind(directory.path().join("socket"))?;
    // It fails or ends with the listener.
    std::thread::spawn(move || -> std::io::Result<()> { listener.accept()?.0.write_all(b"served\n") });
    connected(pod, directory.path())
}

fn files_of_the_kernel(pod: &Pod<'_>) -> Result<Outcome> {
    let mounts = json!({"mounts": [
        {"container_path": "/version", "host_path": "/proc/version", "readonly": true},
        {"container_path": "/kernel", "host_path": "/sys/kernel", "readonly": true},
        {"container_path": "/group", "host_path": "/sys/fs/cgroup", "readonly": true},
    ]});
    let script = "cat /version; stat -c %s /version; cat /kernel/mm/transparent_hugepage/enabled
        head -c 5 /version; dd if=/version bs=3 skip=1 count=2 2>/dev/null; wc -c </group/cgroup.controllers
        while read line; do echo $line; done </version";
    let outcome = pod.run(script, mounts)?;
    let host = fs::read_to_string("/proc/version")?;
    ensure!(outcome.stdout.starts_with(&host), "{outcome}");
    Ok(outcome)
}
