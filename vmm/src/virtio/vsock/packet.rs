//! Packets on the wire (virtio 1.2, 5.10.6): a header read once from guest memory into a type, and back. Used by the
//! muxer; pure, knows no connection.

use nacre_protocol::vsock::{GUEST_CID, HOST_CID};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::{AtomicBitmap, WithBitmapSlice};

/// Most payload bytes in a packet, either way; what Linux sends at most.
pub const MAX_PAYLOAD: u32 = 64 * 1024;
/// The only type of socket here (virtio 1.2, 5.10.6.2).
const STREAM: u16 = 1;

type Bits<'a> = <AtomicBitmap as WithBitmapSlice<'a>>::S;
/// A packet that lies in guest memory.
pub type Packet<'a> = VsockPacket<'a, Bits<'a>>;
/// A piece of guest memory.
pub type Slice<'a> = VolatileSlice<'a, Bits<'a>>;

/// A connection's address: the guest's port and the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The guest's end.
    pub guest: u32,
    /// The host's end.
    pub host: u32,
}

/// What a side will not do any more (virtio 1.2, 5.10.6.5): the flags of SHUTDOWN, as the sender's own halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shut(u32);

impl Shut {
    /// Nothing is shut.
    pub const NONE: Self = Self(0);
    /// It will not receive.
    pub const RECEIVE: Self = Self(1);
    /// It will not send.
    pub const SEND: Self = Self(2);
    /// Neither.
    pub const BOTH: Self = Self(3);

    /// Whether all of `other` is in this.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both together.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without what is in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What a packet is for (virtio 1.2, 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Opens a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one at once.
    Reset,
    /// Closes halves of one.
    Shutdown(Shut),
    /// Data.
    Data,
    /// Tells of room; every packet does.
    CreditUpdate,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest,
}

impl Op {
    fn parse(number: u16, flags: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown(Shut(flags & Shut::BOTH.0)),
            5 => Self::Data,
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
            Self::Shutdown(shut) => (4, shut.0),
            Self::Data => (5, 0),
            Self::CreditUpdate => (6, 0),
            Self::CreditRequest => (7, 0),
        }
    }
}

/// A header that makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which connection.
    pub ports: Ports,
    /// What for.
    pub op: Op,
    /// Payload bytes; 0 for everything but data.
    pub length: u32,
    /// Receive buffer of the sender, bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of its receive buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

/// Why a packet is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody to tell.
    Drop,
    /// The sender is told by a RST, of the type that it used.
    Reset(Reset),
}

/// A RST for what is no connection of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// Where the packet was for.
    pub ports: Ports,
    cid: u64,
    kind: u16,
}

/// Reads the header of a packet from the guest.
pub fn parse(packet: &Packet<'_>) -> Result<Header, Refusal> {
    let ports = Ports {
        guest: packet.src_port(),
        host: packet.dst_port(),
    };
    if packet.src_cid() != u64::from(GUEST_CID)
        || packet.op() == Op::Reset.number_and_flags().0 && packet.type_() != STREAM
    {
        return Err(Refusal::Drop);
    }
    let refused = Refusal::Reset(Reset {
        ports,
        cid: packet.dst_cid(),
        kind: packet.type_(),
    });
    if packet.dst_cid() != u64::from(HOST_CID) || packet.type_() != STREAM {
        return Err(refused);
    }
    let op = Op::parse(packet.op(), packet.flags()).ok_or(refused)?;
    let length = if op == Op::Data { packet.len() } else { 0 };
    Ok(Header {
        ports,
        op,
        length,
        buf_alloc: packet.buf_alloc(),
        fwd_cnt: packet.fwd_cnt(),
    })
}

/// The RST that answers a packet for which there is no connection.
pub fn unknown(ports: Ports) -> Reset {
    Reset {
        ports,
        cid: u64::from(HOST_CID),
        kind: STREAM,
    }
}

/// Bytes of a header for the guest.
pub fn encode(header: &Header) -> [u8; PKT_HEADER_SIZE] {
    bytes(header, u64::from(HOST_CID), STREAM)
}

/// Bytes of a RST.
pub fn encode_reset(reset: &Reset) -> [u8; PKT_HEADER_SIZE] {
    let header = Header {
        ports: reset.ports,
        op: Op::Reset,
        length: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    };
    bytes(&header, reset.cid, reset.kind)
}

fn bytes(header: &Header, source: u64, kind: u16) -> [u8; PKT_HEADER_SIZE] {
    let (op, flags) = header.op.number_and_flags();
    let mut bytes = [0; PKT_HEADER_SIZE];
    let fields = source
        .to_le_bytes()
        .into_iter()
        .chain(u64::from(GUEST_CID).to_le_bytes())
        .chain(header.ports.host.to_le_bytes())
        .chain(header.ports.guest.to_le_bytes())
        .chain(header.length.to_le_bytes())
        .chain(kind.to_le_bytes())
        .chain(op.to_le_bytes())
        .chain(flags.to_le_bytes())
        .chain(header.buf_alloc.to_le_bytes())
        .chain(header.fwd_cnt.to_le_bytes());
    for (byte, value) in bytes.iter_mut().zip(fields) {
        *byte = value;
    }
    bytes
}
