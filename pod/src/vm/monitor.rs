//! Watches a VMM from its first message until its process has exited. Messages become events in the sandbox's
//! queue, in order; the last event is [`Event::Ended`], and it always comes: a VMM that has sent its last
//! message, has closed its control socket or was killed must exit within a deadline. Started by the sandbox
//! as a task; never calls the guest.

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
        let mut end = End::default();
        {
            let mut messages = pin!(receive_until_last(
                &self.channel,
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
        end.status = wait_for_exit(&self.pidfd, end.protocol_error.is_some()).await;
        // The pipe closes when the process exits; one that hangs keeps it open.
        if let Ok(Err(error)) = tokio::time::timeout(EXIT_DEADLINE, stderr).await {
            crate::log::error(format_args!("reading the VMM's standard error: {error}"));
        }
        // Fails only if the sandbox task has exited, and then the shim is exiting, too.
        let _ = queue.send(Event::Ended(end).into()).await;
    }
}

/// Returns after the VMM's last message (Ended or Failed), if it has closed its socket, or if it sent
/// something that is not a message, or one with a wrong number of descriptors.
async fn receive_until_last<E: From<Event>>(
    channel: &AsyncFd<Channel>,
    requests: &Requests,
    queue: &mpsc::Sender<E>,
    end: &mut End,
) {
    loop {
        let (message, fds) = match receive(channel).await {
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
        receive_until_last(&channel, &requests, &queue, &mut end).await;
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
async fn wait_for_exit(pidfd: &OwnedFd, at_once: bool) -> Status {
    let exited = match pidfd.try_clone().and_then(sys::watch) {
        Ok(exited) => exited,
        Err(error) => return Status::Unknown(error.to_string()),
    };
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
mod tests {
    use super::super::RequestError;
    use super::*;
    use std::collections::BTreeMap;
    use std::os::fd::AsRawFd as _;
    use std::time::Instant;

    use nacre_protocol::control::{Answer, Request};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    /// A process that stands in for the VMM, and the VMM's end of the control socket.
    struct StandIn {
        control: Channel,
        monitor: VmmMonitor,
        killed: Arc<Notify>,
    }

    fn stand_in(command: &str) -> StandIn {
        let (stderr, writer) = io::pipe().unwrap();
        #[expect(clippy::zombie_processes, reason = "the monitor waits for it")]
        let child = std::process::Command::new("sh")
            .args(["-c", command])
            .stderr(writer)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )
        .unwrap();
        let killed = Arc::new(Notify::new());
        let channel = Arc::new(sys::watch_channel(Channel::new(ours)).unwrap());
        let monitor = VmmMonitor {
            requests: Arc::new(Requests::new(Arc::clone(&channel))),
            channel,
            pidfd: Arc::new(pidfd_open(pid, PidfdFlags::empty()).unwrap()),
            stderr,
            stderr_tail: Arc::default(),
            killed: Arc::clone(&killed),
        };
        let control = Channel::new(theirs);
        StandIn {
            control,
            monitor,
            killed,
        }
    }

    async fn last_event(monitor: VmmMonitor) -> (Vec<Event>, End) {
        let (queue, mut received) = mpsc::channel::<Event>(64);
        tokio::spawn(monitor.run(queue));
        let mut events = Vec::new();
        loop {
            match received.recv().await.unwrap() {
                Event::Ended(end) => return (events, end),
                event @ (Event::Step(_)
                | Event::Running
                | Event::Connection { .. }
                | Event::TemplateRefused { .. }
                | Event::MemoryPlugged { .. }) => events.push(event),
            }
        }
    }

    #[tokio::test]
    async fn a_vmm_that_stays_after_its_last_message_is_killed() {
        for message in [
            FromVmm::Ended(Outcome::Panic),
            FromVmm::Failed {
                step: "s".into(),
                error: "e".into(),
                hint: None,
            },
        ] {
            let vmm = stand_in("exec sleep 1000");
            vmm.control.send(&message, &[]).unwrap();
            let begun = Instant::now();
            let (_, end) = last_event(vmm.monitor).await;
            assert!(begun.elapsed() < EXIT_DEADLINE * 2, "{:?}", begun.elapsed());
            assert_eq!(end.status, Status::KilledLate);
            assert!(
                end.outcome == Some(Outcome::Panic) || end.failed.is_some(),
                "{end:?}"
            );
            drop(vmm.control);
        }
    }

    #[tokio::test]
    async fn a_killed_vmm_that_keeps_its_socket_open_is_not_waited_for() {
        let vmm = stand_in("exec sleep 1000");
        vmm.killed.notify_one();
        let begun = Instant::now();
        let (_, end) = last_event(vmm.monitor).await;
        assert!(begun.elapsed() < EXIT_DEADLINE * 3, "{:?}", begun.elapsed());
        assert_eq!((end.outcome, end.status), (None, Status::KilledLate));
        drop(vmm.control);
    }

    #[tokio::test]
    async fn messages_before_the_last_one_become_events() {
        let vmm = stand_in("exit 3");
        vmm.control.send(&FromVmm::Running, &[]).unwrap();
        let step = Step {
            name: "\x1b".repeat(1000),
            done_ns: 1,
        };
        vmm.control.send(&FromVmm::Step(step), &[]).unwrap();
        drop(vmm.control);
        let (events, end) = last_event(vmm.monitor).await;
        let [Event::Running, Event::Step(step)] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert!(step.name.len() <= MAX_NAME && !step.name.contains('\x1b'));
        assert_eq!(end.status, Status::Exited(3));
    }

    #[tokio::test]
    async fn answers_reach_their_requests_until_the_vm_ends() {
        let vmm = stand_in("exit 0");
        let requests = Arc::clone(&vmm.monitor.requests);
        let send = || requests.send(Request::Exits, Duration::from_secs(60));
        let (answered, never_answered) = (send(), send());
        let exits = Answer::Exits([("kind".to_owned(), 1)].into());
        for id in [7, 0, 0] {
            let result = Ok(exits.clone());
            vmm.control.send(&FromVmm::Answer { id, result }, &[]).unwrap();
        }
        vmm.control.send(&FromVmm::Ended(Outcome::PowerOff), &[]).unwrap();
        let (events, end) = last_event(vmm.monitor).await;
        assert!(events.is_empty(), "{events:?}");
        assert_eq!(end.outcome, Some(Outcome::PowerOff));
        assert_eq!(answered.await.unwrap(), exits);
        assert!(matches!(never_answered.await, Err(RequestError::Ended)));
        assert!(matches!(send().await, Err(RequestError::Ended)));
    }

    #[tokio::test]
    async fn a_missing_or_superfluous_descriptor_ends_the_vmm() {
        let connection = FromVmm::Connection {
            host_port: 5,
            guest_port: 6,
        };
        let exits = FromVmm::Answer {
            id: 0,
            result: Ok(Answer::Exits(BTreeMap::new())),
        };
        for (message, count, named) in [
            (connection.clone(), 0, "host_port: 5"),
            (connection, 2, "host_port: 5"),
            (FromVmm::Running, 1, "Running"),
            (exits, 1, "Exits"),
        ] {
            let vmm = stand_in("exec sleep 1000");
            let fds = vec![vmm.control.as_raw_fd(); count];
            vmm.control.send(&message, &fds).unwrap();
            let (events, end) = last_event(vmm.monitor).await;
            assert!(events.is_empty(), "{events:?}");
            let error = end.protocol_error.unwrap();
            assert!(
                error.contains(named) && error.contains(&format!("{count} descriptors")),
                "{error}"
            );
            assert_eq!(end.status, Status::Signal(libc::SIGKILL));
            drop(vmm.control);
        }
    }
}
