//! ttrpc's frames over a vsock stream, with nothing that checks them: 10 bytes of header (length, stream, type,
//! flags) and a message. Used by [`super::agent`] in the guest.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nacre_protocol::vsock::HOST_CID;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, socket};
use protobuf::Message;

/// Type of a frame with a response.
pub const RESPONSE: u8 = 2;

/// A call of the shim.
#[derive(Debug, Clone)]
pub struct Call {
    /// The number that the answer needs.
    pub stream: u32,
    /// The method's name.
    pub method: String,
    /// The request.
    pub payload: Vec<u8>,
}

impl Call {
    /// The request as `T`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn request<T: Message>(&self) -> io::Result<T> {
        Ok(T::parse_from_bytes(&self.payload)?)
    }
}

/// The agent's stream.
#[derive(Debug)]
pub struct Wire(File);

impl Wire {
    /// Connects to `host_port`, from `guest_port` if it is given.
    ///
    /// # Errors
    /// As connect(2): ECONNRESET if the host does not expect the connection.
    pub fn dial(guest_port: Option<u32>, host_port: u32) -> io::Result<Self> {
        let socket: OwnedFd = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        if let Some(port) = guest_port {
            bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        }
        connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, host_port))?;
        Ok(Self(socket.into()))
    }

    /// The same stream once more, for another thread.
    ///
    /// # Errors
    /// As dup(2).
    pub fn duplicate(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Waits for the next call.
    ///
    /// # Errors
    /// If the stream ends.
    pub fn call(&mut self) -> io::Result<Call> {
        let mut header = [0; 10];
        self.0.read_exact(&mut header)?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, ..] = header;
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).map_err(io::Error::other)?;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        let request = ttrpc::Request::parse_from_bytes(&payload)?;
        Ok(Call {
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            method: request.method,
            payload: request.payload,
        })
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// If the shim has closed the stream.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Answers call number `stream` with `message`.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub fn answer(&mut self, stream: u32, message: &dyn protobuf::MessageDyn) -> io::Result<()> {
        let mut response = ttrpc::Response::new();
        response.payload = message.write_to_bytes_dyn()?;
        self.respond(stream, &response)
    }

    /// Refuses call number `stream` with this text.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub fn refuse(&mut self, stream: u32, message: String) -> io::Result<()> {
        let mut response = ttrpc::Response::new();
        response.set_status(ttrpc::get_status(ttrpc::Code::INTERNAL, message));
        self.respond(stream, &response)
    }

    fn respond(&mut self, stream: u32, response: &ttrpc::Response) -> io::Result<()> {
        self.send(&frame(stream, &response.write_to_bytes()?))
    }
}

/// A frame with a response.
#[must_use]
pub fn frame(stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = [length.to_be_bytes(), stream.to_be_bytes()].concat();
    bytes.extend([RESPONSE, 0]);
    bytes.extend(payload);
    bytes
}
