//! How far a pod's VM has come, and what waits for that: Create for the agent, calls for the reason of the VM's end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, StepFailed};
use crate::guest::{CallError, Guest};

/// How long to wait for the reason of the VM's end after the agent's stream is lost: most likely it is on its
/// way.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// How far the VM has come.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    Starting,
    Running,
    Ready(Guest),
    Ended(Arc<StepFailed>),
}

impl Progress {
    /// The guest, if its agent is ready.
    pub(super) fn guest(&self) -> Option<Guest> {
        match self {
            Self::Ready(guest) => Some(guest.clone()),
            Self::Starting | Self::Running | Self::Ended(_) => None,
        }
    }
}

/// The guest, when its agent is ready.
pub(super) async fn ready(progress: &mut watch::Receiver<Progress>) -> Result<Guest, Error> {
    let known = |progress: &Progress| matches!(progress, Progress::Ready(_) | Progress::Ended(_));
    match &*changed(progress, known).await? {
        Progress::Ready(guest) => Ok(guest.clone()),
        Progress::Ended(reason) => Err(StepFailed::clone(reason).into()),
        Progress::Starting | Progress::Running => Err(Error::Closing),
    }
}

/// Waits until the progress is one of those that `until` accepts.
pub(super) async fn changed(
    progress: &mut watch::Receiver<Progress>,
    until: impl FnMut(&Progress) -> bool,
) -> Result<watch::Ref<'_, Progress>, Error> {
    progress.wait_for(until).await.map_err(|_| Error::Closing)
}

/// Why the VM ended, if it ends within [`END_DEADLINE`].
pub(super) async fn ended(progress: &mut watch::Receiver<Progress>) -> Option<StepFailed> {
    let end = progress.wait_for(|progress| matches!(progress, Progress::Ended(_)));
    match &*tokio::time::timeout(END_DEADLINE, end).await.ok()?.ok()? {
        Progress::Ended(reason) => Some(StepFailed::clone(reason)),
        Progress::Starting | Progress::Running | Progress::Ready(_) => None,
    }
}

/// The result of `step` for its caller. If the agent did not carry it out: why the VM ended, if it has.
pub(super) async fn explained<T>(
    result: Result<T, CallError>,
    step: &str,
    progress: &mut watch::Receiver<Progress>,
) -> Result<T, Error> {
    let error = match result {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let end = match &error {
        CallError::Lost(_) => ended(progress).await,
        CallError::Answer(..) | CallError::TimedOut => None,
    };
    Err(end.map_or_else(|| error.into_error(step), Error::from))
}

/// Returns when the VM has ended, or the sandbox has exited.
pub(super) async fn until_ended(progress: &mut watch::Receiver<Progress>) {
    // An error: the sandbox has exited.
    let _ = progress
        .wait_for(|progress| matches!(progress, Progress::Ended(_)))
        .await;
}
