//! The requests of the driver and the device's responses as bytes (virtio 1.2, 5.15.6). Pure.

use super::blocks::{Response, Span, State};

/// Size of a request.
pub const REQUEST_BYTES: usize = 24;
/// Size of a response.
pub const RESPONSE_BYTES: usize = 10;

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// VIRTIO_MEM_REQ_PLUG.
    Plug(Span),
    /// VIRTIO_MEM_REQ_UNPLUG.
    Unplug(Span),
    /// VIRTIO_MEM_REQ_UNPLUG_ALL.
    UnplugAll,
    /// VIRTIO_MEM_REQ_STATE.
    State(Span),
}

impl Request {
    /// None if there is no request of this type.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let [
            t0,
            t1,
            _,
            _,
            _,
            _,
            _,
            _,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            n0,
            n1,
            ..,
        ] = *bytes;
        let span = Span {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            blocks: u16::from_le_bytes([n0, n1]),
        };
        match u16::from_le_bytes([t0, t1]) {
            0 => Some(Self::Plug(span)),
            1 => Some(Self::Unplug(span)),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State(span)),
            _ => None,
        }
    }
}

impl Response {
    /// The response as the driver reads it.
    pub fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
            Self::State(State::Plugged) => (0, 0),
            Self::State(State::Unplugged) => (0, 1),
            Self::State(State::Mixed) => (0, 2),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request of type `kind`, as a driver writes it.
    pub fn request(kind: u16, address: u64, blocks: u16) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0xee; REQUEST_BYTES];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
        bytes
    }

    #[test]
    fn each_type_of_request_is_parsed() {
        let span = Span {
            address: 0x1122_3344_5566_7788,
            blocks: 0x0102,
        };
        for (kind, expected) in [
            (0, Some(Request::Plug(span))),
            (1, Some(Request::Unplug(span))),
            (2, Some(Request::UnplugAll)),
            (3, Some(Request::State(span))),
            (4, None),
            (0x100, None),
            (u16::MAX, None),
        ] {
            let bytes = request(kind, span.address, span.blocks);
            assert_eq!(Request::parse(&bytes), expected, "type {kind}");
        }
    }

    #[test]
    fn responses_have_the_specification_s_numbers() {
        for (response, kind, state) in [
            (Response::Ack, 0, 0),
            (Response::Nack, 1, 0),
            (Response::Error, 3, 0),
            (Response::State(State::Plugged), 0, 0),
            (Response::State(State::Unplugged), 0, 1),
            (Response::State(State::Mixed), 0, 2),
        ] {
            let bytes = response.to_bytes();
            assert_eq!((bytes[0], bytes[8]), (kind, state), "{response:?}");
        }
    }
}
