//! Where the agent's own program is in a template's memory. The kernel unpacks the initramfs to pages wherever some are
//! free, and a VM that continues from the template touches each of them at an EPT violation of its own. So the agent of
//! a template executes itself once more, from a copy in huge pages, which the VMM stores as such. Called by `main`.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use crate::error::Error;

/// The program that the kernel executes.
const PROGRAM: &str = "/init";
/// A directory of the initramfs, on which the file system of the copy is mounted. It is not below the root that the
/// agent makes afterwards.
const DIRECTORY: &str = "/tmp";
const COPY: &str = "/tmp/init";

/// Executes this program again from huge pages, and does nothing when it runs from there.
pub fn move_to_huge_pages() -> Result<(), Error> {
    if !fs::exists(PROGRAM).map_err(Error::file("looking for", PROGRAM))? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", DIRECTORY, "tmpfs", flags, c"huge=always,mode=0700")
        .map_err(Error::system("mounting a tmpfs with huge pages"))?;
    fs::copy(PROGRAM, COPY).map_err(Error::file("copying to", COPY))?;
    // Its memory is free when this program has ended.
    fs::remove_file(PROGRAM).map_err(Error::file("removing", PROGRAM))?;
    let mut arguments = std::env::args_os();
    let mut copy = Command::new(COPY);
    copy.arg0(arguments.next().unwrap_or_default()).args(arguments);
    Err(Error::file("executing", COPY)(copy.exec()))
}
