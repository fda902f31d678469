//! Watches a VMM from its first message until its process has exited. Messages become events in the sandbox's
//! queue, in order; the last event is [`Event::Ended`], and it always comes, also if somebody else has the VMM's
//! end of the control socket: a VMM that has sent its last message, has closed that socket or was killed must exit
//! within a deadline. Started by the sandbox as a task; never calls the guest.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::control::{Channel, Error, FromVmm, Outcome, Step};
use nacre_protocol::text::printable;
use nacre_protocol::vsock::StreamAddress;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};

use super::end::{End, FailedStart, Status};
use super::requests::Requests;
use super::stderr_tail::StderrTail;
use crate::guest_text::{MAX_MESSAGE, MAX_NAME};
use crate::sys;

/// A VMM exits right after its last message; after this long it is killed.
pub(super) const EXIT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a killed process may take to exit. The kernel frees the guest's memory in this time; a process in
/// an uninterruptible system call does not exit at all.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// What happens to a VMM.
#[derive(Debug)]
pub enum Event {
    /// A step of the start is done.
    Step(Step),
    /// The guest boots, since its template can't be used.
    TemplateRefused {
        /// What is wrong.
        reason: String,
        /// Whether another VMM can use it.
        is_transient: bool,
    },
    /// The VMM's mount namespace is ready and the guest boots.
    Running,
    /// The guest opened a vsock connection.
    Connection {
        /// The ports of both ends.
        address: StreamAddress,
        /// The host's end of the stream.
        stream: OwnedFd,
    },
    /// The guest has plugged as much memory as it was asked to last. A VMM that the guest has taken over may
    /// send this at any time.
    MemoryPlugged {
        /// How much, in MiB.
        mib: u32,
    },
    /// The process has exited, or does not even react to SIGKILL. No event follows.
    Ended(End),
}

/// A VMM's control socket, standard error and process, to be watched.
#[derive(Debug)]
pub struct VmmMonitor {
    pub(super) channel: Arc<AsyncFd<Channel>>,
    pub(super) requests: Arc<Requests>,
    pub(super) pidfd: Arc<OwnedFd>,
    pub(super) stderr: io::PipeReader,
    pub(super) stderr_tail: Arc<StderrTail>,
    /// Notified when the sandbox kills the VMM.
    pub(super) killed: Arc<Notify>,
}

impl VmmMonitor {
    /// Sends the VMM's events to `queue` until [`Event::Ended`].
    pub async fn run<E: From<Event>>(self, queue: mpsc::Sender<E>) {
        let tail = Arc::clone(&self.stderr_tail);
        let stderr = tokio::spawn(async move { tail.read(self.stderr).await });
        let exited = self.pidfd.try_clone().and_then(sys::watch);
        let mut end = End::default();
        {
            let mut messages = pin!(receive_until_last(
                &self.channel,
                exited.as_ref().ok(),
                &self.requests,
                &queue,
                &mut end
            ));
            tokio::select! {
                () = &mut messages => {}
                // A killed process closes its socket when it exits; what it had sent before is still
                // received.
                () = self.killed.notified() => drop(tokio::time::timeout(EXIT_DEADLINE, messages).await),
            }
        }
        self.requests.end();
        end.status = match exited {
            Ok(exited) => wait_for_exit(&self.pidfd, &exited, end.protocol_error.is_some()).await,
            Err(error) => Status::Unknown(error.to_string()),
        };
        // The pipe closes when the process exits; one that hangs keeps it open.
        if let Ok(Err(error)) = tokio::time::timeout(EXIT_DEADLINE, stderr).await {
            crate::log::error(format_args!("reading the VMM's standard error: {error}"));
        }
        // Fails only if the sandbox task has exited, and then the shim is exiting, too.
        let _ = queue.send(Event::Ended(end).into()).await;
    }
}

/// Returns after the VMM's last message (Ended or Failed), if it has closed its socket or `exited`, or if it sent
/// something that is not a message, or one with a wrong number of descriptors.
async fn receive_until_last<E: From<Event>>(
    channel: &AsyncFd<Channel>,
    exited: Option<&AsyncFd<OwnedFd>>,
    requests: &Requests,
    queue: &mpsc::Sender<E>,
    end: &mut End,
) {
    loop {
        let (message, fds) = match receive(channel, exited).await {
            Ok(received) => received,
            Err(Error::Closed) => return,
            Err(error) => {
                end.protocol_error = Some(printable(&error.to_string(), MAX_MESSAGE));
                return;
            }
        };
        let expected = usize::from(matches!(message, FromVmm::Connection { .. }));
        if fds.len() != expected {
            let error = format!("{} descriptors, not {expected}, with {message:?}", fds.len());
            end.protocol_error = Some(printable(&error, MAX_MESSAGE));
            return;
        }
        if let FromVmm::Answer { id, result } = message {
            if !requests.answer(id, result) {
                // A VMM that sends one after the other must not occupy the only thread.
                tokio::task::yield_now().await;
            }
            continue;
        }
        let Some(event) = event(message, fds, end) else {
            return;
        };
        if queue.send(event.into()).await.is_err() {
            return;
        }
    }
}

/// The events of all messages on `channel`, and what they say about the VMM's end. For the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) async fn received(channel: Channel) -> (Vec<Event>, End) {
    let channel = Arc::new(super::nonblocking(channel).unwrap());
    let requests = Requests::new(Arc::clone(&channel));
    let (queue, mut events) = mpsc::channel::<Event>(1);
    let (mut received, mut end) = (Vec::new(), End::default());
    let messages = async {
        receive_until_last(&channel, None, &requests, &queue, &mut end).await;
        drop(queue);
    };
    let collect = async {
        while let Some(event) = events.recv().await {
            received.push(event);
        }
    };
    tokio::join!(messages, collect);
    (received, end)
}

/// The event that `message` reports. None if no message may follow: then `end` has the reason.
fn event(message: FromVmm, fds: Vec<OwnedFd>, end: &mut End) -> Option<Event> {
    match message {
        FromVmm::Step(Step { name, done_ns }) => Some(Event::Step(Step {
            name: printable(&name, MAX_NAME),
            done_ns,
        })),
        FromVmm::TemplateRefused { reason, is_transient } => Some(Event::TemplateRefused {
            reason: printable(&reason, MAX_MESSAGE),
            is_transient,
        }),
        FromVmm::Running => Some(Event::Running),
        FromVmm::Connection {
            host_port,
            guest_port,
        } => {
            // The caller has checked that there is one.
            let stream = fds.into_iter().next()?;
            let address = StreamAddress {
                host_port,
                guest_port,
            };
            Some(Event::Connection { address, stream })
        }
        FromVmm::Failed { step, error, hint } => {
            end.failed = Some(FailedStart {
                step: printable(&step, MAX_NAME),
                error: printable(&error, MAX_MESSAGE),
                hint: hint.map(|hint| printable(&hint, MAX_MESSAGE)),
            });
            None
        }
        FromVmm::MemoryPlugged { mib } => Some(Event::MemoryPlugged { mib }),
        FromVmm::Ended(outcome) => {
            end.outcome = Some(bounded_outcome(outcome));
            None
        }
        // The caller has taken it.
        FromVmm::Answer { .. } => None,
    }
}

/// The next message. Nobody sends any more once the process has `exited`, but its socket may still be open: a VMM that
/// was taken over can have sent its end of it as a stream.
async fn receive(
    channel: &AsyncFd<Channel>,
    exited: Option<&AsyncFd<OwnedFd>>,
) -> Result<(FromVmm, Vec<OwnedFd>), Error> {
    loop {
        let mut ready = tokio::select! {
            biased;
            ready = channel.readable() => Some(ready.map_err(|_| Error::Closed)?),
            () = has_exited(exited) => None,
        };
        match (channel.get_ref().receive(), &mut ready) {
            (Err(Error::Socket(nix::Error::EAGAIN)), Some(ready)) => ready.clear_ready(),
            (Err(Error::Socket(nix::Error::EAGAIN)), None)
            | (Err(Error::Socket(nix::Error::ECONNRESET)), _) => {
                return Err(Error::Closed);
            }
            (received, _) => return received,
        }
    }
}

/// Returns when the process of the pidfd `exited` has exited; never without one.
async fn has_exited(exited: Option<&AsyncFd<OwnedFd>>) {
    match exited {
        Some(exited) => drop(exited.readable().await),
        None => pending().await,
    }
}

fn bounded_outcome(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Reset { cause } => Outcome::Reset {
            cause: printable(&cause, MAX_NAME),
        },
        Outcome::Fault { part, error } => Outcome::Fault {
            part: printable(&part, MAX_NAME),
            error: printable(&error, MAX_MESSAGE),
        },
        plain @ (Outcome::PowerOff | Outcome::Panic) => plain,
    }
}

/// Waits until the process has exited, kills it at the deadline or `at_once`, and takes its exit status.
async fn wait_for_exit(pidfd: &OwnedFd, exited: &AsyncFd<OwnedFd>, at_once: bool) -> Status {
    let mut was_late = false;
    if at_once
        || tokio::time::timeout(EXIT_DEADLINE, exited.readable())
            .await
            .is_err()
    {
        was_late = !at_once;
        if let Err(error) = pidfd_send_signal(pidfd.as_fd(), Signal::KILL) {
            crate::log::warn(format_args!("killing the VMM: {error}"));
        }
        if tokio::time::timeout(KILL_DEADLINE, exited.readable())
            .await
            .is_err()
        {
            return Status::Unkillable;
        }
    }
    match sys::reap(pidfd) {
        Ok(_) if was_late => Status::KilledLate,
        Ok(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Status::Exited(code),
            (_, Some(signal)) => Status::Signal(signal),
            _ => Status::Unknown(format!("{status:?}")),
        },
        Err(error) => Status::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
