//! The host that the tests run on: containerd's version, socket and process.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{DEADLINE, ctr};
use nacre_tests::leaks::wait_for_exit;

/// The server's version in the output of `ctr version`.
pub fn containerd_version() -> Result<String> {
    let text = ctr(["version"])?.success()?;
    let server = text
        .split("Server:")
        .nth(1)
        .context("ctr version prints no server")?;
    let version = server
        .lines()
        .find_map(|line| line.trim().strip_prefix("Version:"));
    Ok(version
        .context("ctr version prints no server version")?
        .trim()
        .to_owned())
}

/// The socket of the containerd under test.
pub fn containerd_address() -> Result<PathBuf> {
    std::env::var_os("CONTAINERD_ADDRESS")
        .map(PathBuf::from)
        .context("CONTAINERD_ADDRESS is not set; run the tests with tests/lab/run")
}

/// containerd's PID, from the peer credentials of its socket.
pub fn containerd_pid() -> Result<u32> {
    let stream = UnixStream::connect(containerd_address()?)?;
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(u32::try_from(peer.pid())?)
}

/// Kills containerd and starts it again with the same program, arguments and environment.
pub fn restart_containerd() -> Result<()> {
    let pid = containerd_pid()?;
    let strings_of = |file: &str| -> Result<Vec<String>> {
        let bytes = fs::read(format!("/proc/{pid}/{file}"))?;
        Ok(bytes
            .split(|b| *b == 0)
            .filter(|s| !s.is_empty())
            .map(|s| String::from_utf8_lossy(s).into_owned())
            .collect())
    };
    let arguments = strings_of("cmdline")?;
    let environment = strings_of("environ")?;
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let raw = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGKILL)?;
    wait_for_exit(pid, Instant::now() + DEADLINE)?;
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open("/tmp/containerd-restarted.log")?;
    let mut command = Command::new(program);
    command.args(arguments.iter().skip(1)).env_clear();
    command.envs(environment.iter().filter_map(|pair| pair.split_once('=')));
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting containerd again")?;
    wait_for_socket()
}

/// Runs `ctr version` until containerd answers. ctr itself waits up to 10 s for the socket, so that the loop
/// does not spin.
fn wait_for_socket() -> Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        if ctr(["version"])?.code == Some(0) {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "timed out waiting for containerd to answer after its restart"
        );
    }
}
