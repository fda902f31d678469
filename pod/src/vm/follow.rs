//! Follows a VMM from its first message to its end: messages become events in the sandbox's queue, in order; the last
//! one is [`Event::Ended`]. A VMM that closes its socket and does not end is killed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::control::{Channel, Error, FromVmm, Step};
use nacre_protocol::vsock::StreamAddress;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::{End, LastWords, Status};
use crate::sys;

/// A VMM's last message is the end of its work; then it has this long to be gone.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// What a VMM tells.
#[derive(Debug)]
pub enum Event {
    /// A step of the start is done.
    Step(Step),
    /// Its mount namespace is ready, the guest boots.
    Running,
    /// The guest opened a vsock connection.
    Connection {
        /// The ports of both ends.
        address: StreamAddress,
        /// The host's end.
        stream: OwnedFd,
    },
    /// VM exits by kind.
    Exits(BTreeMap<String, u64>),
    /// It is gone.
    Ended(End),
}

/// What is needed to follow a VMM; made with it.
#[derive(Debug)]
pub struct VmmMonitor {
    channel: Arc<AsyncFd<Channel>>,
    pidfd: Arc<OwnedFd>,
    stderr: io::PipeReader,
    last_words: Arc<LastWords>,
}

impl VmmMonitor {
    pub(super) fn new(
        channel: Arc<AsyncFd<Channel>>,
        pidfd: Arc<OwnedFd>,
        stderr: io::PipeReader,
        last_words: Arc<LastWords>,
    ) -> Self {
        Self {
            channel,
            pidfd,
            stderr,
            last_words,
        }
    }
}

/// Sends what `followed` tells to `queue`, until its end.
pub async fn follow<E: From<Event>>(followed: VmmMonitor, queue: mpsc::Sender<E>) {
    let VmmMonitor {
        channel,
        pidfd,
        stderr,
        last_words,
    } = followed;
    let words = tokio::spawn(async move { last_words.read(stderr).await });
    let mut end = End::default();
    loop {
        match receive(&channel).await {
            Ok((message, fds)) => {
                let Some(event) = event_of(message, fds, &mut end) else {
                    continue;
                };
                if queue.send(event.into()).await.is_err() {
                    break;
                }
            }
            Err(Error::Closed) => break,
            Err(error) => {
                // What it says can't be understood, so it can't be trusted to run.
                end.protocol_error = Some(error.to_string());
                break;
            }
        }
    }
    end.status = reap(&pidfd, end.protocol_error.is_some()).await;
    if words.await.is_err() {
        crate::log::error("the reader of the VMM's standard error panicked");
    }
    // The owner is gone where nobody takes it: then the process ends anyway.
    let _ = queue.send(Event::Ended(end).into()).await;
}

async fn receive(channel: &AsyncFd<Channel>) -> Result<(FromVmm, Vec<OwnedFd>), Error> {
    loop {
        let mut ready = channel.readable().await.map_err(|_| Error::Closed)?;
        match channel.get_ref().receive() {
            Err(Error::Socket(nix::Error::EAGAIN)) => ready.clear_ready(),
            Err(Error::Socket(nix::Error::ECONNRESET)) => return Err(Error::Closed),
            received => return received,
        }
    }
}

fn event_of(message: FromVmm, fds: Vec<OwnedFd>, end: &mut End) -> Option<Event> {
    match message {
        FromVmm::Step(step) => Some(Event::Step(step)),
        FromVmm::Running => Some(Event::Running),
        FromVmm::Connection {
            host_port,
            guest_port,
        } => {
            let stream = fds.into_iter().next();
            if stream.is_none() {
                crate::log::warn(format_args!(
                    "the VMM reports a connection to port {host_port} without its stream"
                ));
            }
            Some(Event::Connection {
                address: StreamAddress {
                    host_port,
                    guest_port,
                },
                stream: stream?,
            })
        }
        FromVmm::Exits(exits) => Some(Event::Exits(exits)),
        FromVmm::Failed { step, error, hint } => {
            end.failed = Some((step, error, hint));
            None
        }
        FromVmm::Ended(outcome) => {
            end.outcome = Some(outcome);
            None
        }
    }
}

/// Waits for the VMM's end, and takes its status from the kernel.
async fn reap(pidfd: &OwnedFd, at_once: bool) -> Status {
    let kill = || pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
    if at_once && let Err(error) = kill() {
        crate::log::warn(format_args!("killing the VMM: {error}"));
    }
    let ended = async {
        let watched = sys::watch(pidfd.try_clone()?)?;
        let _ready = watched.readable().await?;
        io::Result::Ok(())
    };
    let mut killed_late = false;
    match tokio::time::timeout(END_DEADLINE, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Status::Unknown(error.to_string()),
        Err(_elapsed) => {
            killed_late = true;
            if let Err(error) = kill() {
                crate::log::warn(format_args!(
                    "killing the VMM, which closed its socket and stayed: {error}"
                ));
            }
        }
    }
    // After SIGKILL the wait is as long as the kernel needs to free the guest's memory.
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            _ if killed_late => Status::Stuck,
            (Some(code), _) => Status::Exited(code),
            (_, Some(signal)) => Status::Signal(signal),
            _ => Status::Unknown(format!("{status:?}")),
        },
        Ok(None) => Status::Unknown("no status".into()),
        Err(error) => Status::Unknown(error.to_string()),
    }
}
