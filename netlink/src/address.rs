//! IP addresses of links.

use nacre_protocol::agent::Address;

use crate::message::{F_CREATE_NEW, Message, attributes_after, byte, family_of, u8_at, u32_at};

const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
/// Length of `struct ifaddrmsg`.
const HEADER: usize = 8;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const CACHE: u16 = 6;
const FLAGS: u16 = 8;
const ROUTE_PRIORITY: u16 = 9;

/// IFA_F_SECONDARY; on IPv6 the same bit says that it is a temporary address.
pub const SECONDARY: u32 = 0x01;
/// IFA_F_NODAD.
pub const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// IFA_F_NOPREFIXROUTE.
pub const NO_PREFIX_ROUTE: u32 = 0x200;
/// The flags that a program sets; the kernel sets the others by itself. IFA_F_HOMEADDRESS,
/// IFA_F_MANAGETEMPADDR and IFA_F_MCAUTOJOIN.
const SETTABLE: u32 = 0x10 | 0x100 | 0x400 | NO_PREFIX_ROUTE;
/// The lifetime of an address that stays.
const FOREVER: u32 = u32::MAX;

/// Asks for the addresses of all links.
#[must_use]
pub fn list() -> Message {
    Message::new(GETADDR, 0, &[0; HEADER])
}

/// Reads one entry of [`list`]: the link's index and the address, with all flags.
#[must_use]
pub fn parse(body: &[u8]) -> Option<(u32, Address)> {
    let mut address = Address {
        prefix_length: u8_at(body, 1)?.into(),
        flags: u8_at(body, 2)?.into(),
        scope: u8_at(body, 3)?.into(),
        preferred_s: FOREVER,
        valid_s: FOREVER,
        ..Address::default()
    };
    let index = u32_at(body, 4)?;
    let mut of_prefix = Vec::new();
    for (kind, value) in attributes_after(body, HEADER) {
        match kind {
            ADDRESS => of_prefix = value.to_vec(),
            LOCAL => address.address = value.to_vec(),
            BROADCAST => address.broadcast = value.to_vec(),
            FLAGS => address.flags = u32_at(value, 0)?,
            ROUTE_PRIORITY => address.route_priority = u32_at(value, 0)?,
            CACHE => (address.preferred_s, address.valid_s) = (u32_at(value, 0)?, u32_at(value, 4)?),
            _ => {}
        }
    }
    // IPv6 has IFA_LOCAL only if there is a peer.
    if address.address.is_empty() {
        address.address = of_prefix;
    } else if address.address != of_prefix {
        address.peer = of_prefix;
    }
    matches!(address.address.len(), 4 | 16).then_some((index, address))
}

/// Adds an address to a link. An IPv6 address is usable at once: nobody else has it, since it was the pod's
/// on the host.
#[must_use]
pub fn add(index: u32, address: &Address) -> Message {
    let mut header = [
        family_of(&address.address),
        byte(address.prefix_length),
        0,
        byte(address.scope),
        0,
        0,
        0,
        0,
    ];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let is_v4 = address.address.len() == 4;
    let without_detection = if is_v4 { 0 } else { NO_DUPLICATE_DETECTION };
    let of_prefix = if address.peer.is_empty() {
        &address.address
    } else {
        &address.peer
    };
    let mut message = Message::new(NEWADDR, F_CREATE_NEW, &header)
        .with(LOCAL, &address.address)
        .with(ADDRESS, of_prefix)
        .with_u32(FLAGS, address.flags & SETTABLE | without_detection);
    if !address.broadcast.is_empty() {
        message = message.with(BROADCAST, &address.broadcast);
    }
    if address.route_priority != 0 {
        message = message.with_u32(ROUTE_PRIORITY, address.route_priority);
    }
    if address.valid_s != FOREVER {
        let lifetimes = [address.preferred_s, address.valid_s, 0, 0].map(u32::to_ne_bytes);
        message = message.with(CACHE, lifetimes.as_flattened());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(address: &Address) -> (u32, Address) {
        let bytes = add(9, address).finish(0, 0);
        parse(&bytes[16..]).unwrap()
    }

    #[test]
    fn an_address_is_created_as_it_was_read() {
        let v4 = Address {
            address: vec![10, 0, 0, 2],
            prefix_length: 24,
            broadcast: vec![10, 0, 0, 255],
            scope: 253,
            flags: NO_PREFIX_ROUTE,
            route_priority: 5,
            preferred_s: FOREVER,
            valid_s: FOREVER,
            ..Address::default()
        };
        assert_eq!(read_back(&v4), (9, v4));
        let with_peer = Address {
            address: vec![10, 0, 0, 2],
            peer: vec![10, 0, 0, 1],
            prefix_length: 32,
            preferred_s: 10,
            valid_s: 20,
            ..Address::default()
        };
        assert_eq!(read_back(&with_peer), (9, with_peer));
    }

    #[test]
    fn an_ipv6_address_is_not_probed_for_and_keeps_no_flag_of_the_kernel() {
        let v6 = Address {
            address: vec![0xfd; 16],
            prefix_length: 64,
            // IFA_F_PERMANENT and IFA_F_TENTATIVE.
            flags: 0x80 | 0x40,
            ..Address::default()
        };
        assert_eq!(read_back(&v6).1.flags, NO_DUPLICATE_DETECTION);
        assert_eq!(parse(&[0; 8]), None);
    }
}
