//! The end of a container whose pod died at any moment, whatever containerd still knows of it. Called by `nacre-faults`
//! and `nacre-soak`, which kill shims and VMMs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::ctr::ctr;

/// Waits until the task has stopped or is gone. One that was created and not started has no end, and Delete removes it:
/// its creation went on without containerd.
///
/// # Errors
/// If it has not within `limit`.
pub fn wait_for_end(id: &str, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    loop {
        let listed = ctr(["task", "list"])?.success()?;
        let task = listed
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id));
        if task.is_none_or(|line| line.contains("STOPPED") || line.contains("CREATED")) {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "the task has not ended after {limit:?}: {listed}"
        );
    }
}

/// Removes the container. Its task is there still if its delete was lost with containerd, or if it was being created.
///
/// # Errors
/// If it can't be removed within `limit`.
pub fn remove(id: &str, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    loop {
        let removed = ctr(["containers", "delete", id])?;
        if removed.code == Some(0) {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "removing the container: {}",
            removed.stderr
        );
        ctr(["task", "delete", "--force", id])?;
    }
}
