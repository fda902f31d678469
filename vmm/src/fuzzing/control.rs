//! The target of the control socket: any packet with any descriptors as the VMM's first message, and as a
//! request to a running VM.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, RawFd};

use nacre_protocol::control::{FromVmm, Lenient, Request, ToVmm, socket_pair};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::control::Control;
use crate::shim_managed;
use nacre_fuzzing::Input;

/// Stands for this build's id in an input, which would else be stale with each change of the protocol.
const BUILD: &[u8] = b"BUILD";

pub fn control(data: &[u8]) {
    let mut input = Input(data);
    let files: Vec<File> = (0..input.u8() % 8).map(file).collect();
    let text = with_build_id(input.bytes(usize::MAX));
    configure(&text, &files);
    messages(&text);
}

fn file(kind: u8) -> File {
    let file = match kind % 2 {
        0 => tempfile::tempfile().unwrap(),
        _ => File::open("/dev/null").unwrap(),
    };
    // Fails for the device.
    let _ = file.set_len(0x8000);
    file
}

fn with_build_id(text: &[u8]) -> Vec<u8> {
    match text.windows(BUILD.len()).position(|window| window == BUILD) {
        Some(at) => {
            let rest = &text[at + BUILD.len()..];
            [&text[..at], nacre_protocol::BUILD_ID.as_bytes(), rest].concat()
        }
        None => text.to_vec(),
    }
}

/// Receives `text` as the first message, and checks it.
fn configure(text: &[u8], files: &[File]) {
    let (shim, vmm) = socket_pair().unwrap();
    let control = Control::new(vmm.into_raw_fd());
    let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let parts = [IoSlice::new(text)];
    // Fails if it is too long for the socket.
    if sendmsg::<UnixAddr>(shim.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None).is_err() {
        return;
    }
    drop(shim);
    if let Ok((configure, descriptors)) = control.receive_configuration() {
        let _ = shim_managed::check_configuration(configure, descriptors, &control);
    }
}

/// Parses `text` as either side does. What is parsed and written is parsed to the same again.
fn messages(text: &[u8]) {
    if let Ok(ToVmm::Request { id, request }) = serde_json::from_slice::<ToVmm<Lenient<Request>>>(text)
        && let Ok(request) = request.0
    {
        same(&ToVmm::Request { id, request });
    }
    if let Ok(message) = serde_json::from_slice::<FromVmm>(text) {
        same(&message);
    }
}

fn same<T>(message: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_vec(message).unwrap();
    assert_eq!(&serde_json::from_slice::<T>(&text).unwrap(), message);
}
