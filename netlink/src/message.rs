//! The form of netlink messages: a builder for requests, and iterators over the messages that were received
//! and over their attributes. Pure. The kernel is trusted, but nothing here panics on a short message: its
//! rest is ignored.

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct rtattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// The bits of an attribute's type that are its number (NLA_TYPE_MASK).
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// NLM_F_CREATE and NLM_F_EXCL: what the request makes must not exist.
pub(crate) const F_CREATE_NEW: u16 = 0x600;

/// A field of one byte; larger values do not occur in what this crate parses.
pub(crate) fn byte(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// The address family of an IPv4 or IPv6 address, by its length.
pub(crate) fn family_of(address: &[u8]) -> u8 {
    let family = if address.len() == 4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    byte(family.unsigned_abs())
}

/// A request: `nlmsghdr`, the fixed header of its family, attributes. Attributes of more than 65531 bytes are
/// not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of type `kind` (`RTM_*`) with `flags` (`NLM_F_*`) and its family's fixed header.
    #[must_use]
    pub fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(family_header);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Appends a string with its terminating NUL.
    #[must_use]
    pub fn with_text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, &bytes)
    }

    /// Appends an attribute that contains those that `fill` appends.
    #[must_use]
    pub fn with_nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = filled.0.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        filled
    }

    /// The request as it is sent, with its length, `extra` flags and `sequence` number.
    pub(crate) fn finish(mut self, extra: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let flags = u16_at(&self.0, 6).unwrap_or_default() | extra;
        for (at, value) in [
            (0, &length.to_ne_bytes()[..]),
            (6, &flags.to_ne_bytes()),
            (8, &sequence.to_ne_bytes()),
        ] {
            if let Some(place) = self.0.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        }
        self.0
    }
}

/// A received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// What follows `nlmsghdr`.
    pub body: &'a [u8],
}

/// The messages in a datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Received {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`, each as its type and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attributes that follow a fixed header of `header` bytes.
pub(crate) fn attributes_after(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(body.get(header..).unwrap_or_default())
}

/// The string in an attribute's value, without its terminating NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_back() {
        let message = Message::new(16, 1, &[7; 6])
            .with_text(3, "eth0")
            .with_nested(18, |inner| inner.with_text(1, "veth").with(2, &[9]))
            .with_u32(4, 1400);
        let bytes = message.finish(4, 5);
        let received: Vec<_> = messages(&bytes).collect();
        let [message] = received[..] else {
            panic!("{received:?}")
        };
        assert_eq!((message.kind, message.flags, message.sequence), (16, 5, 5));
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = attributes_after(message.body, 8).collect();
        assert_eq!(read[0], (3, &b"eth0\0"[..]));
        let inner: Vec<_> = attributes(read[1].1).collect();
        assert_eq!(inner, [(1, &b"veth\0"[..]), (2, &[9][..])]);
        assert_eq!((read[1].0, u32_at(read[2].1, 0)), (18, Some(1400)));
        assert_eq!((read.len(), text(read[0].1).as_str()), (3, "eth0"));
    }

    #[test]
    fn messages_and_attributes_that_are_cut_off_end_the_iteration() {
        let bytes = Message::new(16, 0, &[0; 16]).with_u32(4, 1).finish(0, 1);
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
        for length in 0..8 {
            assert_eq!(attributes(&bytes[32..32 + length]).count(), 0, "{length}");
        }
        // A length of 0 must not repeat the same attribute for ever.
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
