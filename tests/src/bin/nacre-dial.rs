//! What an end-to-end test runs in a container: a process that dials the host over vsock, as one would that
//! wants another process's streams. It reads lines `HOST_PORT GUEST_PORT`, in which guest port 0 stands for
//! any, and prints the result of each. Never sends a byte.

use std::io::stdin;
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nacre_protocol::vsock::HOST_CID;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, socket};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    println!("ready");
    for line in stdin().lines() {
        let line = line?;
        let (host, guest) = line.split_once(' ').context("expected two ports")?;
        match dial(host.parse()?, guest.parse()?) {
            Ok(()) => println!("connected"),
            Err(error) => println!("{error:?}"),
        }
    }
    Ok(())
}

/// Connects, and closes the connection.
fn dial(host_port: u32, guest_port: u32) -> nix::Result<()> {
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    if guest_port != 0 {
        bind(
            socket.as_raw_fd(),
            &VsockAddr::new(libc::VMADDR_CID_ANY, guest_port),
        )?;
    }
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, host_port))
}
