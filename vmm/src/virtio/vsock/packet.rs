//! The headers of vsock packets (virtio 1.2, 5.10.6): parses one that was copied out of guest memory, and
//! encodes one. Used by the muxer. Pure; knows no connection.

use nacre_protocol::vsock::{GUEST_CID, HOST_CID};

/// Size of a header, `struct virtio_vsock_hdr`, in bytes.
pub const HEADER_LENGTH: u32 = 44;
/// The same, for arrays.
pub const HEADER_BYTES: usize = HEADER_LENGTH as usize;
/// Most payload bytes of a packet in either direction. Linux sends no longer ones.
pub const MAX_PAYLOAD: u32 = 64 * 1024;
/// VIRTIO_VSOCK_TYPE_STREAM (virtio 1.2, 5.10.6.2), the only supported socket type.
const STREAM: u16 = 1;

/// The ports of a connection. The CIDs are the same for all connections of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The guest's port.
    pub guest: u32,
    /// The host's port.
    pub host: u32,
}

/// The flags of SHUTDOWN (virtio 1.2, 5.10.6.5): what the sender of the packet will not do any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShutdownFlags(u32);

impl ShutdownFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The sender will not receive data.
    pub const RECEIVE: Self = Self(1);
    /// The sender will not send data.
    pub const SEND: Self = Self(2);
    /// Neither of both.
    pub const BOTH: Self = Self(3);

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of either.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags that are not in `other`.
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The operation of a packet (virtio 1.2, 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Requests a connection.
    Request,
    /// Accepts a request.
    Response,
    /// Refuses a request, or closes a connection at once (RST).
    Reset,
    /// Shuts down one or both directions of a connection.
    Shutdown(ShutdownFlags),
    /// Carries data.
    Rw,
    /// Carries `buf_alloc` and `fwd_cnt`, as every packet does, and nothing else.
    CreditUpdate,
    /// Asks for an [`Op::CreditUpdate`].
    CreditRequest,
}

impl Op {
    fn parse(number: u16, flags: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown(ShutdownFlags(flags & ShutdownFlags::BOTH.0)),
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    fn number_and_flags(self) -> (u16, u32) {
        match self {
            Self::Request => (1, 0),
            Self::Response => (2, 0),
            Self::Reset => (3, 0),
            Self::Shutdown(flags) => (4, flags.0),
            Self::Rw => (5, 0),
            Self::CreditUpdate => (6, 0),
            Self::CreditRequest => (7, 0),
        }
    }
}

/// The header of a packet with a valid operation and type, between the guest's CID and the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The connection.
    pub ports: Ports,
    /// The operation.
    pub op: Op,
    /// Bytes of payload; 0 unless the operation is [`Op::Rw`].
    pub length: u32,
    /// The size of the sender's receive buffer, in bytes.
    pub buf_alloc: u32,
    /// How many bytes the sender has removed from its receive buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

/// What to do about a packet without a valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError {
    /// Drop it: it has a wrong source, or is itself an RST.
    Ignore,
    /// Answer with this RST.
    Reset(Reset),
}

/// An RST for a packet that belongs to no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The ports of that packet.
    pub ports: Ports,
    /// Its destination, from which the RST seems to come.
    cid: u64,
    /// Its socket type.
    socket_type: u16,
}

/// The fields of `struct virtio_vsock_hdr`, in its order and without checks.
struct RawHeader {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    len: u32,
    socket_type: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl RawHeader {
    fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            socket_type: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let fields = self
            .src_cid
            .to_le_bytes()
            .into_iter()
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.socket_type.to_le_bytes())
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        let mut bytes = [0; HEADER_BYTES];
        for (byte, value) in bytes.iter_mut().zip(fields) {
            *byte = value;
        }
        bytes
    }
}

/// Removes the first `N` bytes of `rest`; zeros if there are fewer.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, after) = rest.split_first_chunk().unwrap_or((&[0; N], &[]));
    *rest = after;
    *first
}

/// Parses the header of a packet from the guest.
pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Header, ParseError> {
    let raw = RawHeader::from_bytes(bytes);
    let ports = Ports {
        guest: raw.src_port,
        host: raw.dst_port,
    };
    if raw.src_cid != u64::from(GUEST_CID)
        || raw.op == Op::Reset.number_and_flags().0 && raw.socket_type != STREAM
    {
        return Err(ParseError::Ignore);
    }
    let reset = ParseError::Reset(Reset {
        ports,
        cid: raw.dst_cid,
        socket_type: raw.socket_type,
    });
    if raw.dst_cid != u64::from(HOST_CID) || raw.socket_type != STREAM {
        return Err(reset);
    }
    let op = Op::parse(raw.op, raw.flags).ok_or(reset)?;
    let length = if op == Op::Rw { raw.len } else { 0 };
    Ok(Header {
        ports,
        op,
        length,
        buf_alloc: raw.buf_alloc,
        fwd_cnt: raw.fwd_cnt,
    })
}

/// The RST that answers a packet with a valid header for which there is no connection.
pub fn reset_for(ports: Ports) -> Reset {
    Reset {
        ports,
        cid: u64::from(HOST_CID),
        socket_type: STREAM,
    }
}

/// The bytes of a header of a packet to the guest.
pub fn encode(header: &Header) -> [u8; HEADER_BYTES] {
    to_bytes(header, u64::from(HOST_CID), STREAM)
}

/// The bytes of an RST.
pub fn encode_reset(reset: &Reset) -> [u8; HEADER_BYTES] {
    let header = Header {
        ports: reset.ports,
        op: Op::Reset,
        length: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    };
    to_bytes(&header, reset.cid, reset.socket_type)
}

fn to_bytes(header: &Header, src_cid: u64, socket_type: u16) -> [u8; HEADER_BYTES] {
    let (op, flags) = header.op.number_and_flags();
    let raw = RawHeader {
        src_cid,
        dst_cid: u64::from(GUEST_CID),
        src_port: header.ports.host,
        dst_port: header.ports.guest,
        len: header.length,
        socket_type,
        op,
        flags,
        buf_alloc: header.buf_alloc,
        fwd_cnt: header.fwd_cnt,
    };
    raw.to_bytes()
}
