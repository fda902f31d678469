//! Pausing and resuming a container by its cgroup's freezer. Each runs in a separate task, so that a caller
//! that disconnects does not leave a container between two states.

use std::sync::Arc;
use std::time::Duration;

use super::Container;
use super::state::FreezeInput;
use tokio::sync::RwLockWriteGuard;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::Error;

/// How long pausing may take in all, so that its end is known on the host: shorter than the host waits for the reply.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(40);

impl Container {
    /// Freezes all processes of the container.
    pub async fn pause(self: &Arc<Self>) -> Result<(), Error> {
        let container = Arc::clone(self);
        let frozen = tokio::spawn(async move { container.freeze().await });
        frozen.await.map_err(|error| Error::Runtime(error.to_string()))?
    }

    /// Thaws all processes of the container.
    pub async fn resume(self: &Arc<Self>) -> Result<(), Error> {
        let container = Arc::clone(self);
        let thawed = tokio::spawn(async move { container.thaw().await });
        thawed.await.map_err(|error| Error::Runtime(error.to_string()))?
    }

    async fn freeze(&self) -> Result<(), Error> {
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let _no_exec_starts = self.block_execs(deadline).await?;
        self.apply_freeze(FreezeInput::Pause, "pause")?;
        let frozen = timeout_at(deadline, self.cgroup.freeze(true)).await;
        let frozen = frozen.unwrap_or_else(|_| Err(self.too_late("freezing its cgroup")));
        if frozen.is_err() {
            // Ignore this error: the original one is returned.
            let _ = self.cgroup.begin_freeze(false);
        }
        self.finish_freeze(frozen, "pause")
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.apply_freeze(FreezeInput::Resume, "resume")?;
        let thawed = timeout(FREEZE_TIMEOUT, self.cgroup.freeze(false)).await;
        let thawed = thawed.unwrap_or_else(|_| Err(self.too_late("thawing its cgroup")));
        self.finish_freeze(thawed, "resume")
    }

    /// Keeps exec processes from being started, once those that are being started run.
    async fn block_execs(&self, deadline: Instant) -> Result<RwLockWriteGuard<'_, ()>, Error> {
        let locked = timeout_at(deadline, self.freeze_lock.write()).await;
        locked.map_err(|_| self.too_late("waiting for an exec process that is being started"))
    }

    fn too_late(&self, doing: &str) -> Error {
        let seconds = FREEZE_TIMEOUT.as_secs();
        Error::Runtime(format!(
            "container {:?}: timed out after {seconds} s {doing}",
            self.id
        ))
    }

    fn finish_freeze(&self, result: Result<(), Error>, action: &'static str) -> Result<(), Error> {
        let input = if result.is_ok() {
            FreezeInput::Done
        } else {
            FreezeInput::Failed
        };
        self.apply_freeze(input, action)?;
        result
    }

    fn apply_freeze(&self, input: FreezeInput, action: &'static str) -> Result<(), Error> {
        self.transition(|lifecycle| lifecycle.next_freeze(input), action)
            .map(drop)
    }
}
