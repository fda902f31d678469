//! Where the agent's own program is in a template's memory. The kernel unpacks the initramfs to pages wherever some are
//! free, and a VM that continues from the template touches each of them at an EPT violation of its own. So the agent of
//! a template executes itself once more, from a copy in huge pages, which the VMM stores as such. Called by `main`.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt;

use nix::unistd::fexecve;
use rustix::fs::{CWD, Mode, OFlags, openat};
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
    let copy = openat(CWD, COPY, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::file("opening", COPY))?;
    let words = |words: &mut dyn Iterator<Item = Vec<u8>>| -> Vec<CString> {
        words.filter_map(|word| CString::new(word).ok()).collect()
    };
    let arguments = words(&mut std::env::args_os().map(OsStringExt::into_vec));
    let environment =
        words(&mut std::env::vars_os().map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'=')));
    match fexecve(copy.as_fd(), &arguments, &environment) {
        Err(error) => Err(Error::system("executing the copy")(error)),
        Ok(never) => match never {},
    }
}
