//! A forked child that does not outlive its parent.

use std::io;

use nix::unistd::Pid;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use super::fork_into;

/// The exit code of a child whose parent has ended, which nobody reads.
const NO_PARENT: i32 = 1;

/// As [`fork_into`], but the child is killed when this process ends.
///
/// # Errors
/// As fork(2).
pub fn fork_bound(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    let parent = getpid();
    fork_into(move || {
        // It can't fail: the signal exists.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        // A parent that has ended before that sends no signal.
        match getppid() {
            Some(now) if now == parent => child(),
            _ => NO_PARENT,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_child_ends_with_its_parent() {
        let (mut reader, writer) = io::pipe().unwrap();
        let parent = fork_into(|| {
            let bound = fork_bound(|| {
                nix::unistd::pause();
                0
            });
            i32::from(bound.is_err())
        });
        let status = nix::sys::wait::waitpid(parent.unwrap(), None).unwrap();
        assert!(
            matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
            "{status:?}"
        );
        drop(writer);
        // The child has the other end until it is killed.
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
}
