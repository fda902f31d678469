//! Tests of the monitor with processes that stand in for the VMM.

use super::*;
use crate::vm::RequestError;
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

/// Somebody else has its end, too: a VMM that was taken over can send it to the shim as a stream.
#[tokio::test]
async fn a_vmm_that_exits_is_noticed_while_its_socket_is_open() {
    let vmm = stand_in("exit 3");
    vmm.control.send(&FromVmm::Running, &[]).unwrap();
    let last = tokio::time::timeout(EXIT_DEADLINE * 3, last_event(vmm.monitor));
    let (events, end) = last.await.unwrap();
    assert!(matches!(events.as_slice(), [Event::Running]), "{events:?}");
    assert_eq!((end.outcome, end.status), (None, Status::Exited(3)));
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
