//! The redirection of everything that arrives on one link to another: an ingress qdisc with one u32 filter
//! that matches all packets, and the action mirred. The action has a cookie, the owner, by which the
//! redirection is found and removed again.

use crate::message::{F_CREATE_NEW, Message, attributes, attributes_after, text, u32_at};

const NEWQDISC: u16 = 36;
const DELQDISC: u16 = 37;
const GETQDISC: u16 = 38;
const NEWTFILTER: u16 = 44;
const GETTFILTER: u16 = 46;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;

/// TC_H_INGRESS, the parent of an ingress qdisc.
const INGRESS: u32 = 0xffff_fff1;
/// The handle of an ingress qdisc, and the parent of its filters.
const QDISC: u32 = 0xffff_0000;
/// All protocols (ETH_P_ALL in network byte order) at the highest priority, 1.
const ALL_FIRST: u32 = 1 << 16 | (libc::ETH_P_ALL.cast_unsigned() & 0xff) << 8;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const ACTION_COOKIE: u16 = 6;
const MIRRED_PARAMETERS: u16 = 2;

/// TC_ACT_STOLEN: nothing else sees the packet.
const STOLEN: u32 = 4;
/// TCA_EGRESS_REDIR: it is sent out by the other link.
const TO_EGRESS: u32 = 1;

/// Longest cookie of an action, bytes.
pub const MAX_OWNER: usize = 16;

fn header(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, index, handle, parent, info]
        .map(u32::to_ne_bytes)
        .as_flattened()
        .to_vec()
}

/// Adds the ingress qdisc to a link. Fails with EEXIST if the link has one, or a clsact qdisc.
#[must_use]
pub fn add_qdisc(index: u32) -> Message {
    let message = Message::new(NEWQDISC, F_CREATE_NEW, &header(index, QDISC, INGRESS, 0));
    message.with_text(KIND, "ingress")
}

/// Removes the ingress qdisc of a link with its filters.
#[must_use]
pub fn remove_qdisc(index: u32) -> Message {
    Message::new(DELQDISC, 0, &header(index, QDISC, INGRESS, 0))
}

/// Asks for the qdiscs of all links.
#[must_use]
pub fn list_qdiscs() -> Message {
    Message::new(GETQDISC, 0, &header(0, 0, 0, 0))
}

/// The index of the link in one entry of [`list_qdiscs`], if it is an ingress qdisc.
#[must_use]
pub fn parse_qdisc(body: &[u8]) -> Option<u32> {
    let (_, kind) = attributes_after(body, HEADER).find(|(kind, _)| *kind == KIND)?;
    (text(kind) == "ingress").then(|| u32_at(body, 4))?
}

/// Sends everything that arrives on link `from`, which has the qdisc, out by link `to`. `owner` has at most
/// [`MAX_OWNER`] bytes.
#[must_use]
pub fn add_filter(from: u32, to: u32, owner: &[u8]) -> Message {
    // tc_u32_sel: the filter is the last one (TC_U32_TERMINAL), with one key, whose mask is 0.
    let mut selector = [0; 32];
    selector[0] = 1;
    selector[2] = 1;
    // tc_mirred.
    let parameters = [0, 0, STOLEN, 0, 0, TO_EGRESS, to].map(u32::to_ne_bytes);
    Message::new(NEWTFILTER, F_CREATE_NEW, &header(from, 0, QDISC, ALL_FIRST))
        .with_text(KIND, "u32")
        .with_nested(OPTIONS, |options| {
            options
                .with(U32_SELECTOR, &selector)
                .with_nested(U32_ACTIONS, |actions| {
                    actions.with_nested(1, |action| {
                        action
                            .with_text(ACTION_KIND, "mirred")
                            .with(ACTION_COOKIE, owner)
                            .with_nested(ACTION_OPTIONS, |options| {
                                options.with(MIRRED_PARAMETERS, parameters.as_flattened())
                            })
                    })
                })
        })
}

/// Asks for the filters of a link's ingress qdisc; there are none if there is no qdisc.
#[must_use]
pub fn list(index: u32) -> Message {
    Message::new(GETTFILTER, 0, &header(index, 0, QDISC, 0))
}

/// The owner in one entry of [`list`], if it is a filter that [`add_filter`] makes.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Vec<u8>> {
    u32_at(body, 0)?;
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let mut filter = attributes_after(body, HEADER);
    let (_, kind) = filter.find(|(kind, _)| *kind == KIND)?;
    let (_, options) = filter.find(|(kind, _)| *kind == OPTIONS)?;
    let (_, actions) = find(options, U32_ACTIONS)?;
    let (_, action) = attributes(actions).next()?;
    let (_, owner) = find(action, ACTION_COOKIE)?;
    (text(kind) == "u32").then(|| owner.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_found_by_its_owner() {
        let bytes = add_filter(3, 4, b"0123456789abcdef").finish(0, 0);
        assert_eq!(parse(&bytes[16..]), Some(b"0123456789abcdef".to_vec()));
        let of_another = Message::new(NEWTFILTER, 0, &[0; HEADER]).with_text(KIND, "flower");
        assert_eq!(parse(&of_another.with(OPTIONS, &[]).finish(0, 0)[16..]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn an_ingress_qdisc_is_found_by_its_kind() {
        assert_eq!(parse_qdisc(&add_qdisc(7).finish(0, 0)[16..]), Some(7));
        let of_another = Message::new(NEWQDISC, 0, &header(7, 0, 0, 0)).with_text(KIND, "clsact");
        assert_eq!(parse_qdisc(&of_another.finish(0, 0)[16..]), None);
        assert_eq!(parse_qdisc(&[]), None);
    }

    #[test]
    fn a_filter_is_for_all_protocols_in_network_byte_order() {
        assert_eq!(ALL_FIRST, 1 << 16 | u32::from(3_u16.to_be()));
    }
}
