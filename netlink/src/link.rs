//! Links: their list, and changes of one.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::message::{Message, attributes, attributes_after, text, u16_at, u32_at};

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;
const ETHERNET: u16 = libc::ARPHRD_ETHER;

const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const QUEUE_LENGTH: u16 = 13;
const OPERATIONAL_STATE: u16 = 16;
const INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const FAMILY_SPEC: u16 = 26;
const NAMESPACE_FD: u16 = 28;
const FAMILY_INET6: u16 = 10;
const INET6_ADDRESS_MODE: u16 = 8;
/// IN6_ADDR_GEN_MODE_NONE.
const NO_ADDRESSES: u8 = 1;

/// IF_OPER_UP.
const OPERATIONAL: u8 = 6;

const UP: u32 = 0x1;
const LOOPBACK: u32 = 0x8;
const NO_ARP: u32 = 0x80;

/// A link of the network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; 6 bytes on Ethernet.
    pub mac: Vec<u8>,
    /// In bytes.
    pub mtu: u32,
    /// Packets that its queue may hold.
    pub queue_length: u32,
    /// The driver of a virtual link, such as "veth"; empty for others.
    pub kind: String,
    /// The index of the bridge or bond that it is a port of; 0 if it is none.
    pub master: u32,
    /// ARPHRD_*.
    pub medium: u16,
    /// IFF_*.
    pub flags: u32,
}

impl Found {
    /// Whether it is the loopback device.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }

    /// Whether it carries Ethernet frames.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.medium == ETHERNET
    }

    /// Whether it was set up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// Whether hosts on it are found by ARP or neighbour discovery.
    #[must_use]
    pub fn has_neighbours(&self) -> bool {
        self.flags & NO_ARP == 0
    }
}

/// Asks for all links.
#[must_use]
pub fn list() -> Message {
    Message::new(GETLINK, 0, &[0; HEADER])
}

/// Reads one entry of [`list`].
#[must_use]
pub fn parse(body: &[u8]) -> Option<Found> {
    let mut link = Found {
        medium: u16_at(body, 2)?,
        index: u32_at(body, 4)?,
        flags: u32_at(body, 8)?,
        name: String::new(),
        mac: Vec::new(),
        mtu: 0,
        queue_length: 0,
        kind: String::new(),
        master: 0,
    };
    for (kind, value) in attributes_after(body, HEADER) {
        match kind {
            ADDRESS => link.mac = value.to_vec(),
            NAME => link.name = text(value),
            MTU => link.mtu = u32_at(value, 0)?,
            MASTER => link.master = u32_at(value, 0)?,
            QUEUE_LENGTH => link.queue_length = u32_at(value, 0)?,
            INFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn change(index: u32, flags: u32) -> Message {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    Message::new(NEWLINK, 0, &header)
}

/// Sets a link up.
#[must_use]
pub fn set_up(index: u32) -> Message {
    change(index, UP)
}

/// Sets a link up. If the kernel does not know its operational state, because its carrier has never changed, that
/// becomes "up", too.
#[must_use]
pub fn set_operational(index: u32) -> Message {
    set_up(index).with(OPERATIONAL_STATE, &[OPERATIONAL])
}

/// Renames a link that is down.
#[must_use]
pub fn rename(index: u32, name: &str) -> Message {
    change(index, 0).with_text(NAME, name)
}

/// Moves a link to the network namespace that is open as `namespace`. It gets a new name there, `prefix` with a
/// number, and is down.
#[must_use]
pub fn move_to(index: u32, namespace: BorrowedFd<'_>, prefix: &str) -> Message {
    // The kernel reads the descriptor as an unsigned number.
    let namespace = namespace.as_raw_fd().unsigned_abs();
    change(index, 0)
        .with_text(NAME, &format!("{prefix}%d"))
        .with_u32(NAMESPACE_FD, namespace)
}

/// Sets a link's MTU, in bytes.
#[must_use]
pub fn set_mtu(index: u32, mtu: u32) -> Message {
    change(index, 0).with_u32(MTU, mtu)
}

/// Sets how many packets a link's queue may hold.
#[must_use]
pub fn set_queue_length(index: u32, packets: u32) -> Message {
    change(index, 0).with_u32(QUEUE_LENGTH, packets)
}

/// Keeps the kernel from giving a link IPv6 addresses of its own when it comes up.
#[must_use]
pub fn set_no_own_addresses(index: u32) -> Message {
    change(index, 0).with_nested(FAMILY_SPEC, |families| {
        families.with_nested(FAMILY_INET6, |inet6| {
            inet6.with(INET6_ADDRESS_MODE, &[NO_ADDRESSES])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read() {
        let mut header = [0; HEADER];
        header[2] = 1;
        header[4] = 7;
        header[8] = 0x81;
        let message = Message::new(16, 0, &header)
            .with_text(NAME, "eth0")
            .with(ADDRESS, &[2, 0, 0, 0, 0, 1])
            .with_u32(MTU, 1400)
            .with_u32(QUEUE_LENGTH, 1000)
            .with_u32(MASTER, 3)
            .with_nested(INFO, |info| info.with_text(INFO_KIND, "veth"))
            .with(999, &[1, 2, 3]);
        let bytes = message.finish(0, 0);
        let link = parse(&bytes[16..]).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mtu), (7, "eth0", 1400));
        assert_eq!(
            (link.kind.as_str(), link.master, link.queue_length),
            ("veth", 3, 1000)
        );
        assert_eq!(link.mac, [2, 0, 0, 0, 0, 1]);
        assert!(link.is_up() && link.is_ethernet());
        assert!(!link.is_loopback() && !link.has_neighbours());
        assert_eq!(parse(&bytes[16..20]), None);
    }
}
