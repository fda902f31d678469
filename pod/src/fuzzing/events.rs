//! The target of the control socket's other end: any packets of a VMM that the guest has taken over.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nacre_protocol::control::{Channel, MAX_MESSAGE as MAX_PACKET, Outcome, socket_pair};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use nacre_fuzzing::Input;

use super::sized;
use crate::guest_text::{MAX_MESSAGE, MAX_NAME};
use crate::vm::{Event, received};

/// A socket holds at least as many packets.
const MAX_PACKETS: usize = 32;

pub fn events(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (ours, vmm) = socket_pair().unwrap();
    send(data, &vmm);
    drop(vmm);
    let (events, end) = runtime.block_on(received(Channel::new(ours)));
    for event in events {
        if let Event::Step(step) = event {
            assert!(step.name.len() <= MAX_NAME);
        }
    }
    assert!(end.protocol_error.is_none_or(|error| error.len() <= MAX_MESSAGE));
    if let Some(failed) = end.failed {
        assert!(failed.step.len() <= MAX_NAME && failed.error.len() <= MAX_MESSAGE);
        assert!(failed.hint.is_none_or(|hint| hint.len() <= MAX_MESSAGE));
    }
    if let Some(Outcome::Fault { part, error }) = end.outcome {
        assert!(part.len() <= MAX_NAME && error.len() <= MAX_MESSAGE);
    }
}

/// Sends the packets of `data`, each with up to three descriptors. Not of `vmm`: the socket would then stay open, and no
/// process exits here.
fn send(data: &[u8], vmm: &OwnedFd) {
    let mut input = Input(data);
    let null = File::open("/dev/null").unwrap();
    for _ in 0..MAX_PACKETS {
        if input.is_empty() {
            return;
        }
        let fds = vec![null.as_raw_fd(); usize::from(input.u8() % 4)];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let packet = sized(&mut input);
        let parts = [std::io::IoSlice::new(&packet[..packet.len().min(MAX_PACKET)])];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if sendmsg::<UnixAddr>(vmm.as_raw_fd(), &parts, rights, flags, None).is_err() {
            return;
        }
    }
}
