//! Routes.

use nacre_protocol::agent::{Metric, NextHop, Route};

use crate::message::{Message, attributes, attributes_after, byte, u8_at, u16_at, u32_at};
use crate::{IndexOf, NameOf};

const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
/// Length of `struct rtmsg`.
const HEADER: usize = 12;
/// Length of `struct rtnexthop`.
const NEXT_HOP_HEADER: usize = 8;
/// Appending keeps the order of routes with the same destination.
const F_CREATE_APPEND: u16 = 0xc00;

const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const INPUT: u16 = 3;
const OUTPUT: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFERRED_SOURCE: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const FLOW: u16 = 11;
const TABLE: u16 = 15;
const MARK: u16 = 16;
const VIA: u16 = 18;
const NEW_DESTINATION: u16 = 19;
const PREFERENCE: u16 = 20;
const ENCAPSULATION: u16 = 22;

/// RTAX_CC_ALGO, the only metric that is not a number.
const CONGESTION_CONTROL: u16 = 16;
/// RTM_F_CLONED: an entry of a cache.
const CLONED: u32 = 0x200;
const ONLINK: u8 = 4;
/// RTN_BLACKHOLE to RTN_THROW: routes that lead nowhere.
const WITHOUT_LINK: std::ops::RangeInclusive<u32> = 6..=9;

/// RT_TABLE_MAIN.
pub const MAIN_TABLE: u32 = 254;
/// RT_TABLE_LOCAL: the kernel's routes for the addresses themselves.
pub const LOCAL_TABLE: u32 = 255;
/// RTPROT_KERNEL.
pub const BY_KERNEL: u32 = 2;

/// A route as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The route.
    pub route: Route,
    /// The first property of it that [`Route`] has no field for.
    pub unsupported: Option<&'static str>,
}

/// Asks for the routes of a family, in all tables.
#[must_use]
pub fn list(family: i32) -> Message {
    let mut header = [0; HEADER];
    header[0] = byte(family.unsigned_abs());
    Message::new(GETROUTE, 0, &header)
}

/// Reads one entry of [`list`]; None for entries of a cache.
#[must_use]
pub fn parse(body: &[u8], name_of: NameOf<'_>) -> Option<Found> {
    let mut route = Route {
        family: u8_at(body, 0)?.into(),
        prefix_length: u8_at(body, 1)?.into(),
        tos: u8_at(body, 3)?.into(),
        table: u8_at(body, 4)?.into(),
        protocol: u8_at(body, 5)?.into(),
        scope: u8_at(body, 6)?.into(),
        type_: u8_at(body, 7)?.into(),
        ..Route::default()
    };
    let flags = u32_at(body, 8)?;
    if flags & CLONED != 0 {
        return None;
    }
    let mut single = NextHop {
        onlink: flags.to_le_bytes()[0] & ONLINK != 0,
        weight: 1,
        ..NextHop::default()
    };
    let mut unsupported = None;
    for (kind, value) in attributes_after(body, HEADER) {
        match kind {
            DESTINATION => route.destination = value.to_vec(),
            OUTPUT => single.link = name_of(u32_at(value, 0)?)?,
            GATEWAY => single.gateway = value.to_vec(),
            VIA => single.gateway = value.get(2..)?.to_vec(),
            PRIORITY => route.priority = u32_at(value, 0)?,
            PREFERRED_SOURCE => route.preferred_source = value.to_vec(),
            TABLE => route.table = u32_at(value, 0)?,
            PREFERENCE => route.preference = u8_at(value, 0)?.into(),
            METRICS => unsupported = parse_metrics(value, &mut route).or(unsupported),
            MULTIPATH => route.next_hops = parse_next_hops(value, name_of)?,
            SOURCE => unsupported = Some("a source prefix"),
            INPUT => unsupported = Some("an input link"),
            FLOW => unsupported = Some("a realm"),
            MARK => unsupported = Some("a mark"),
            NEW_DESTINATION | ENCAPSULATION => unsupported = Some("an encapsulation"),
            _ => {}
        }
    }
    if WITHOUT_LINK.contains(&route.type_) {
        route.next_hops.clear();
    } else if route.next_hops.is_empty() {
        route.next_hops.push(single);
    }
    Some(Found { route, unsupported })
}

fn parse_metrics(value: &[u8], route: &mut Route) -> Option<&'static str> {
    let mut unsupported = None;
    for (kind, value) in attributes(value) {
        match (kind, u32_at(value, 0)) {
            (CONGESTION_CONTROL, _) => unsupported = Some("a congestion control algorithm"),
            (kind, Some(value)) => route.metrics.push(Metric {
                kind: kind.into(),
                value,
                ..Metric::default()
            }),
            (_, None) => {}
        }
    }
    unsupported
}

fn parse_next_hops(mut value: &[u8], name_of: NameOf<'_>) -> Option<Vec<NextHop>> {
    let mut hops = Vec::new();
    while let Some(length) = u16_at(value, 0).map(usize::from) {
        let entry = value.get(..length)?;
        let mut hop = NextHop {
            link: name_of(u32_at(entry, 4)?)?,
            onlink: u8_at(entry, 2)? & ONLINK != 0,
            weight: u32::from(u8_at(entry, 3)?).saturating_add(1),
            ..NextHop::default()
        };
        for (kind, value) in attributes_after(entry, NEXT_HOP_HEADER) {
            match kind {
                GATEWAY => hop.gateway = value.to_vec(),
                VIA => hop.gateway = value.get(2..)?.to_vec(),
                _ => {}
            }
        }
        hops.push(hop);
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(hops)
}

/// Adds a route; None if one of its links does not exist.
#[must_use]
pub fn add(route: &Route, index_of: IndexOf<'_>) -> Option<Message> {
    let mut header = [0; HEADER];
    let table = u8::try_from(route.table).unwrap_or(0);
    header[0] = byte(route.family);
    header[1] = byte(route.prefix_length);
    header[3] = byte(route.tos);
    header[4] = table;
    header[5] = byte(route.protocol);
    header[6] = byte(route.scope);
    header[7] = byte(route.type_);
    let single = match &route.next_hops[..] {
        [hop] => Some(hop),
        _ => None,
    };
    if single.is_some_and(|hop| hop.onlink) {
        header[8] = ONLINK;
    }
    let mut message = Message::new(NEWROUTE, F_CREATE_APPEND, &header);
    if table == 0 {
        message = message.with_u32(TABLE, route.table);
    }
    if !route.destination.is_empty() {
        message = message.with(DESTINATION, &route.destination);
    }
    if !route.preferred_source.is_empty() {
        message = message.with(PREFERRED_SOURCE, &route.preferred_source);
    }
    if route.priority != 0 {
        message = message.with_u32(PRIORITY, route.priority);
    }
    if route.preference != 0 {
        message = message.with(PREFERENCE, &[byte(route.preference)]);
    }
    if !route.metrics.is_empty() {
        message = message.with_nested(METRICS, |nested| {
            route.metrics.iter().fold(nested, |nested, metric| {
                nested.with_u32(u16::try_from(metric.kind).unwrap_or_default(), metric.value)
            })
        });
    }
    if let Some(hop) = single {
        return Some(with_gateway(
            message.with_u32(OUTPUT, index_of(&hop.link)?),
            route,
            hop,
        ));
    }
    if !route.next_hops.is_empty() {
        let mut hops = Vec::new();
        for hop in &route.next_hops {
            hops.extend(next_hop(route, hop, index_of(&hop.link)?));
        }
        message = message.with(MULTIPATH, &hops);
    }
    Some(message)
}

fn with_gateway(message: Message, route: &Route, hop: &NextHop) -> Message {
    let family_length = if is_v4(route) { 4 } else { 16 };
    if hop.gateway.is_empty() {
        message
    } else if hop.gateway.len() == family_length {
        message.with(GATEWAY, &hop.gateway)
    } else {
        let other = if is_v4(route) {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        let family = u16::try_from(other).unwrap_or_default();
        message.with(VIA, &[&family.to_ne_bytes(), &hop.gateway[..]].concat())
    }
}

/// A `struct rtnexthop` with its attributes.
fn next_hop(route: &Route, hop: &NextHop, index: u32) -> Vec<u8> {
    let attributes = with_gateway(Message::new(0, 0, &[]), route, hop)
        .finish(0, 0)
        .split_off(16);
    let length = u16::try_from(NEXT_HOP_HEADER + attributes.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.push(if hop.onlink { ONLINK } else { 0 });
    bytes.push(byte(hop.weight.saturating_sub(1)));
    bytes.extend(index.to_ne_bytes());
    bytes.extend(attributes);
    bytes
}

/// Whether it is a route for IPv4.
#[must_use]
pub fn is_v4(route: &Route) -> bool {
    route.family == libc::AF_INET.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["lo", "eth0", "eth1"];

    fn name_of(index: u32) -> Option<String> {
        let name = NAMES.get(usize::try_from(index).ok()?.checked_sub(1)?)?;
        Some((*name).to_owned())
    }

    fn index_of(name: &str) -> Option<u32> {
        let at = NAMES.iter().position(|known| *known == name)?;
        u32::try_from(at + 1).ok()
    }

    fn read_back(route: &Route) -> Found {
        let bytes = add(route, &index_of).unwrap().finish(0, 0);
        parse(&bytes[16..], &name_of).unwrap()
    }

    fn hop(link: &str, gateway: &[u8]) -> NextHop {
        NextHop {
            link: link.into(),
            gateway: gateway.to_vec(),
            weight: 1,
            ..NextHop::default()
        }
    }

    fn default_route(next_hops: Vec<NextHop>) -> Route {
        Route {
            family: 2,
            type_: 1,
            protocol: 3,
            table: MAIN_TABLE,
            next_hops,
            ..Route::default()
        }
    }

    #[test]
    fn a_route_is_created_as_it_was_read() {
        let mut onlink = default_route(vec![hop("eth0", &[169, 254, 1, 1])]);
        onlink.next_hops[0].onlink = true;
        let specific = Route {
            family: 10,
            destination: vec![0xfd; 16],
            prefix_length: 48,
            priority: 1024,
            preferred_source: vec![0xfe; 16],
            preference: 1,
            metrics: vec![Metric {
                kind: 2,
                value: 1300,
                ..Metric::default()
            }],
            ..default_route(vec![hop("eth1", &[0xfc; 16])])
        };
        let via_other_family = default_route(vec![hop("eth0", &[0xfe; 16])]);
        let mut weighted = default_route(vec![hop("eth0", &[10, 0, 0, 1]), hop("eth1", &[])]);
        weighted.next_hops[1].weight = 256;
        let blackhole = Route {
            type_: 6,
            table: 1000,
            ..default_route(vec![])
        };
        for route in [onlink, specific, via_other_family, weighted, blackhole] {
            let found = read_back(&route);
            assert_eq!((&found.route, found.unsupported), (&route, None));
        }
    }

    #[test]
    fn what_can_t_be_carried_over_is_named() {
        let route = default_route(vec![hop("eth0", &[])]);
        let message = add(&route, &index_of).unwrap();
        let parsed = |message: Message| parse(&message.finish(0, 0)[16..], &name_of);
        for (message, unsupported) in [
            (message.clone().with(ENCAPSULATION, &[]), "an encapsulation"),
            (message.clone().with_u32(FLOW, 1), "a realm"),
            (
                message
                    .clone()
                    .with_nested(METRICS, |metrics| metrics.with_text(CONGESTION_CONTROL, "bbr")),
                "a congestion control algorithm",
            ),
        ] {
            assert_eq!(parsed(message).unwrap().unsupported, Some(unsupported));
        }
        let of_unknown_link = Message::new(NEWROUTE, 0, &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        assert_eq!(parsed(of_unknown_link.with_u32(OUTPUT, 9)), None);
        let cached = [2, 0, 0, 0, 254, 3, 0, 1, 0, 2, 0, 0];
        assert_eq!(parsed(Message::new(NEWROUTE, 0, &cached)), None);
        let unknown = default_route(vec![hop("eth9", &[])]);
        assert_eq!(add(&unknown, &index_of), None);
    }

    #[test]
    fn a_list_of_next_hops_that_is_cut_off_is_no_route() {
        assert_eq!(parse_next_hops(&[0; 8], &name_of), None);
        assert_eq!(parse_next_hops(&[200, 0, 0, 0, 2, 0, 0, 0], &name_of), None);
        assert_eq!(parse_next_hops(&[], &name_of), Some(vec![]));
    }
}
