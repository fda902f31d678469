//! Id maps of mounts: mount_setattr(2) takes one as a user namespace that has it. The namespace is made by two
//! short-lived processes: one enters it, the other, which has the host's capabilities, writes the map. No
//! process is left in it. Never mounts anything.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::Error;
use crate::mount::{IdMap, IdRange};
use crate::sys;

/// A user namespace with the id map `map`.
///
/// # Errors
/// [`Error::Child`] if no child process can be made, [`Error::Staged`] if the map is refused by the kernel.
pub async fn user_namespace(map: &IdMap) -> Result<OwnedFd, Error> {
    let made = sys::in_child_with_files(|| Ok(((), vec![make(map)?])));
    let ((), made) = made.await.map_err(Error::Child)?.map_err(Error::Staged)?;
    let namespace = made.into_iter().next();
    namespace.ok_or_else(|| Error::Staged("the child process sent no user namespace".into()))
}

/// User namespaces of a container's mounts, one for each map.
#[derive(Debug, Default)]
pub struct Namespaces(Vec<(IdMap, OwnedFd)>);

impl Namespaces {
    /// The user namespace with the id map `map`, made by the first call.
    ///
    /// # Errors
    /// As [`user_namespace`].
    pub async fn get(&mut self, map: &IdMap) -> Result<&OwnedFd, Error> {
        let index = match self.0.iter().position(|(known, _)| known == map) {
            Some(index) => index,
            None => {
                self.0.push((map.clone(), user_namespace(map).await?));
                self.0.len() - 1
            }
        };
        Ok(&self.0[index].1)
    }
}

/// The child's part. Its own child enters the namespace and waits to be killed.
fn make(map: &IdMap) -> Result<OwnedFd, String> {
    let failed = |error: io::Error| format!("making a user namespace for an id map: {error}");
    let (mut reports, mut reporter) = io::pipe().map_err(failed)?;
    let child = sys::fork_into(move || {
        // Neither outlives the other.
        let entered = set_pdeathsig(Signal::SIGKILL).and_then(|()| unshare(CloneFlags::CLONE_NEWUSER));
        let code = entered.map_or_else(|errno| errno as i32, |()| 0);
        if reporter.write_all(&code.to_ne_bytes()).is_ok() {
            nix::unistd::pause();
        }
        1
    });
    let child = child.map_err(failed)?;
    let mut code = [0; 4];
    let made = reports
        .read_exact(&mut code)
        .and_then(|()| match i32::from_ne_bytes(code) {
            0 => map_and_open(child, map),
            errno => Err(io::Error::from_raw_os_error(errno)),
        });
    // Ignore errors: it is our child and has not been waited for.
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    made.map_err(failed)
}

/// Gives the user namespace of `process` its map, and opens it.
fn map_and_open(process: Pid, map: &IdMap) -> io::Result<OwnedFd> {
    let directory = PathBuf::from(format!("/proc/{process}"));
    std::fs::write(directory.join("uid_map"), lines(&map.uids))?;
    std::fs::write(directory.join("gid_map"), lines(&map.gids))?;
    Ok(File::open(directory.join("ns/user"))?.into())
}

/// `ranges` as user_namespaces(7) takes them.
fn lines(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.container, range.host, range.size);
    ranges.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u32) -> IdMap {
        let range = |container, host| IdRange {
            container,
            host,
            size,
        };
        IdMap {
            uids: vec![range(0, 1000), range(5000, 9000)],
            gids: vec![range(0, 2000)],
        }
    }

    #[test]
    fn ranges_become_lines() {
        assert_eq!(lines(&map(7).uids), "0 1000 7\n5000 9000 7\n");
        assert_eq!(lines(&[]), "");
    }

    #[tokio::test]
    async fn a_user_namespace_has_the_map_and_no_process() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let namespace = user_namespace(&map(7)).await.unwrap();
        let read = sys::in_child(move || {
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWUSER).map_err(|error| error.to_string())?;
            let uids = std::fs::read_to_string("/proc/self/uid_map").unwrap();
            let gids = std::fs::read_to_string("/proc/self/gid_map").unwrap();
            Err(uids + &gids)
        });
        let lines = read.await.unwrap().unwrap_err();
        let words: Vec<&str> = lines.split_whitespace().collect();
        assert_eq!(words, ["0", "1000", "7", "5000", "9000", "7", "0", "2000", "7"]);
        // A range of no ids.
        let error = user_namespace(&map(0)).await.unwrap_err().to_string();
        assert!(error.contains("id map: Invalid argument"), "{error}");
    }
}
