//! Permanent entries of links' neighbour tables.

use nacre_protocol::agent::Neighbour;

use crate::message::{Message, attributes_after, family_of, u16_at, u32_at};
use crate::{IndexOf, NameOf};

const NEWNEIGH: u16 = 28;
const GETNEIGH: u16 = 30;
/// Length of `struct ndmsg`.
const HEADER: usize = 12;
const F_CREATE_REPLACE: u16 = 0x500;
const DESTINATION: u16 = 1;
const HARDWARE_ADDRESS: u16 = 2;
const PERMANENT: u16 = libc::NUD_PERMANENT;

/// Asks for the neighbours on all links.
#[must_use]
pub fn list() -> Message {
    Message::new(GETNEIGH, 0, &[0; HEADER])
}

/// Reads one entry of [`list`]; None unless it is permanent and has a hardware address.
#[must_use]
pub fn parse(body: &[u8], name_of: NameOf<'_>) -> Option<Neighbour> {
    if u16_at(body, 8)? & PERMANENT == 0 {
        return None;
    }
    let mut neighbour = Neighbour {
        link: name_of(u32_at(body, 4)?)?,
        ..Neighbour::default()
    };
    for (kind, value) in attributes_after(body, HEADER) {
        match kind {
            DESTINATION => neighbour.address = value.to_vec(),
            HARDWARE_ADDRESS => neighbour.mac = value.to_vec(),
            _ => {}
        }
    }
    let is_complete = matches!(neighbour.address.len(), 4 | 16) && !neighbour.mac.is_empty();
    is_complete.then_some(neighbour)
}

/// Adds an entry, in the place of one for the same address; None if its link does not exist.
#[must_use]
pub fn add(neighbour: &Neighbour, index_of: IndexOf<'_>) -> Option<Message> {
    let mut header = [0; HEADER];
    header[0] = family_of(&neighbour.address);
    header[4..8].copy_from_slice(&index_of(&neighbour.link)?.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    let message = Message::new(NEWNEIGH, F_CREATE_REPLACE, &header);
    Some(
        message
            .with(DESTINATION, &neighbour.address)
            .with(HARDWARE_ADDRESS, &neighbour.mac),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permanent_entry_is_created_as_it_was_read() {
        let name_of = |index: u32| (index == 3).then(|| "eth0".to_owned());
        let index_of = |name: &str| (name == "eth0").then_some(3);
        for address in [vec![10, 0, 0, 1], vec![0xfe; 16]] {
            let neighbour = Neighbour {
                link: "eth0".into(),
                address,
                mac: vec![2; 6],
                ..Neighbour::default()
            };
            let mut bytes = add(&neighbour, &index_of).unwrap().finish(0, 0);
            assert_eq!(parse(&bytes[16..], &name_of), Some(neighbour));
            // NUD_REACHABLE.
            bytes[16 + 8] = 2;
            assert_eq!(parse(&bytes[16..], &name_of), None);
        }
    }
}
