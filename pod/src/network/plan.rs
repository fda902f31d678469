//! Decides from the lists of a network namespace what the guest gets and which links are tied. Pure. What a
//! guest can't have is refused by name: a pod must not start with half of its network.

use std::collections::{BTreeMap, BTreeSet};

use nacre_netlink::link::Found as Link;
use nacre_netlink::{address, route, show};
use nacre_protocol::agent::{self, Address, Network, Route};

use super::read::Found;
use super::{Error, MAX_LINKS};

/// Bounds of a link's MTU, bytes: the least for IPv6, and the most that a tap has room for.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_521;
/// Most addresses of one link.
const MAX_ADDRESSES: usize = 64;
/// Most routes, neighbours, and rules of a pod.
const MAX_ROUTES: usize = 512;
const MAX_NEIGHBOURS: usize = 512;
const MAX_RULES: usize = 64;
/// The kernel's priority for the route to an IPv6 prefix.
const IPV6_PREFIX_PRIORITY: u32 = 256;
/// RT_SCOPE_LINK.
const ON_LINK: u32 = 253;

/// What is done with a namespace.
#[derive(Debug, Default)]
pub struct Plan {
    /// The guest's part.
    pub network: Network,
    /// The links to tie, in the order of the guest's.
    pub ties: Vec<Tie>,
    /// Links that the guest does not get, and why.
    pub ignored: Vec<String>,
}

/// A link that is tied to a tap of its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its address.
    pub mac: [u8; 6],
    /// In bytes.
    pub mtu: u16,
    /// In packets.
    pub queue_length: u32,
}

/// Plans the network of a pod.
pub fn plan(found: Found) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    let mut addresses: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
    for (index, address) in found.addresses {
        addresses.entry(index).or_default().push(address);
    }
    let mut routes = Routes::new(found.routes)?;
    for link in &found.links {
        let mut own = addresses.remove(&link.index).unwrap_or_default();
        check_count("addresses", &link.name, own.len(), MAX_ADDRESSES)?;
        if link.is_loopback() {
            routes.remove_prefix_routes(link, &mut own);
            own.retain(|address| !is_of_loopback(address));
            if !own.is_empty() {
                plan.network.links.push(guest_link(link, own));
            }
            continue;
        }
        if !link.is_up() && own.is_empty() {
            let ignored = format!("link {}: it is down and has no address", link.name);
            plan.ignored.push(ignored);
            continue;
        }
        let tie = tie(link)?;
        if link.is_up() {
            routes.remove_prefix_routes(link, &mut own);
        }
        let mut guest_link = guest_link(link, own);
        guest_link.mac = tie.mac.to_vec();
        guest_link.needs_link_local = found.needs_link_local.contains(&link.index);
        plan.network.links.push(guest_link);
        plan.ties.push(tie);
    }
    check_ties(&plan.ties)?;
    plan.network.routes = routes.finish();
    plan.network.neighbours = found.neighbours;
    plan.network.rules = found.rules;
    let network = &plan.network;
    check_count("routes", "", network.routes.len(), MAX_ROUTES)?;
    check_count(
        "permanent neighbours",
        "",
        network.neighbours.len(),
        MAX_NEIGHBOURS,
    )?;
    check_count("routing rules", "", network.rules.len(), MAX_RULES)?;
    Ok(plan)
}

fn guest_link(link: &Link, addresses: Vec<Address>) -> agent::Link {
    agent::Link {
        name: link.name.clone(),
        mtu: link.mtu,
        up: link.is_up(),
        addresses,
        ..Default::default()
    }
}

/// 127.0.0.1 and ::1, which every guest has.
fn is_of_loopback(address: &Address) -> bool {
    let mut ipv6 = [0; 16];
    ipv6[15] = 1;
    address.address == [127, 0, 0, 1] || address.address == ipv6
}

fn check_count(what: &str, link: &str, count: usize, most: usize) -> Result<(), Error> {
    if count <= most {
        return Ok(());
    }
    let what = if link.is_empty() {
        what.to_owned()
    } else {
        format!("{what} on link {link}")
    };
    Err(Error::TooMany { what, count, most })
}

fn unsupported(link: &Link, reason: impl Into<String>) -> Error {
    let kind = match link.kind.as_str() {
        "" => String::new(),
        kind => format!(" ({kind})"),
    };
    Error::Unsupported {
        object: format!("link {}{kind}", link.name),
        reason: reason.into(),
    }
}

/// How a link is tied. Whether it is real or virtual does not matter, as long as it carries Ethernet frames
/// for its own address.
fn tie(link: &Link) -> Result<Tie, Error> {
    if !link.is_ethernet() {
        return Err(unsupported(link, "only an Ethernet link can be given to a guest"));
    }
    if !link.has_neighbours() {
        let reason = "it has no ARP (a dummy link, or ipvlan in mode l3), so a guest can't find hosts on it";
        return Err(unsupported(link, reason));
    }
    if link.master != 0 {
        return Err(unsupported(
            link,
            "it is a port of a bridge or bond in the namespace",
        ));
    }
    let mtu = u16::try_from(link.mtu).ok().filter(|_| MTU.contains(&link.mtu));
    let (Some(mtu), Ok(mac)) = (mtu, <[u8; 6]>::try_from(&link.mac[..])) else {
        let reason = format!(
            "expected an MTU of {} to {} bytes and an address of 6 bytes, got {} and {}",
            MTU.start(),
            MTU.end(),
            link.mtu,
            link.mac.len()
        );
        return Err(unsupported(link, reason));
    };
    Ok(Tie {
        name: link.name.clone(),
        index: link.index,
        mac,
        mtu,
        queue_length: link.queue_length,
    })
}

fn check_ties(ties: &[Tie]) -> Result<(), Error> {
    check_count("links", "", ties.len(), MAX_LINKS)?;
    let mut macs = BTreeMap::new();
    for tie in ties {
        if let Some(other) = macs.insert(tie.mac, &tie.name) {
            return Err(Error::Unsupported {
                object: format!("link {}", tie.name),
                reason: format!("it has the same address as link {other}, by which the guest finds it"),
            });
        }
    }
    Ok(())
}

/// The routes of a namespace, and which of them the guest's kernel makes by itself.
struct Routes {
    all: Vec<Route>,
    /// Positions of routes that come with an address.
    with_address: BTreeSet<usize>,
}

impl Routes {
    fn new(found: Vec<route::Found>) -> Result<Self, Error> {
        let mut all = Vec::new();
        for found in found {
            if let Some(property) = found.unsupported {
                return Err(Error::Unsupported {
                    object: format!("route to {}", show::destination(&found.route)),
                    reason: format!("it has {property}, which a guest does not get"),
                });
            }
            all.push(found.route);
        }
        Ok(Self {
            all,
            with_address: BTreeSet::new(),
        })
    }

    /// Leaves the routes to the prefixes of `addresses` to the guest's kernel. If there is none for an
    /// address, because somebody removed it, the address says so.
    fn remove_prefix_routes(&mut self, link: &Link, addresses: &mut [Address]) {
        for address in addresses {
            let is_its = |(_, route): &(usize, &Route)| is_prefix_route(route, &link.name, address);
            let own: Vec<usize> = self
                .all
                .iter()
                .enumerate()
                .filter(is_its)
                .map(|(at, _)| at)
                .collect();
            let is_v4 = address.address.len() == 4;
            let has_none = is_v4
                && (address.flags & address::SECONDARY != 0
                    || address.prefix_length == 32 && address.peer.is_empty());
            if own.is_empty() && !has_none {
                address.flags |= address::NO_PREFIX_ROUTE;
            }
            self.with_address.extend(own);
        }
    }

    /// The routes to add, in an order in which each gateway can be reached when it is needed.
    fn finish(self) -> Vec<Route> {
        let all = self.all.into_iter().enumerate();
        let rest = all.filter(|(at, _)| !self.with_address.contains(at));
        let mut rest: Vec<Route> = rest.map(|(_, route)| route).collect();
        rest.sort_by_key(|route| route.next_hops.iter().any(|hop| !hop.gateway.is_empty()));
        rest
    }
}

/// Whether `route` is the one that a kernel makes for the prefix of `address` on `link`.
fn is_prefix_route(route: &Route, link: &str, address: &Address) -> bool {
    let is_v4 = address.address.len() == 4;
    let [hop] = &route.next_hops[..] else { return false };
    let of_prefix = if address.peer.is_empty() {
        &address.address
    } else {
        &address.peer
    };
    let priority = match (address.route_priority, is_v4) {
        (0, false) => IPV6_PREFIX_PRIORITY,
        (priority, _) => priority,
    };
    let is_its_source = !is_v4 || route.preferred_source == address.address && route.scope == ON_LINK;
    route::is_v4(route) == is_v4
        && (hop.link == link && hop.gateway.is_empty())
        && route.prefix_length == address.prefix_length
        && route.destination == network_of(of_prefix, address.prefix_length)
        && (route.protocol, route.table, route.priority) == (route::BY_KERNEL, route::MAIN_TABLE, priority)
        && is_its_source
}

/// The first `length` bits of an address; the others are 0.
fn network_of(address: &[u8], length: u32) -> Vec<u8> {
    let mut left = length;
    let mut masked = |byte: &u8| {
        let bits = left.min(8);
        left -= bits;
        let mask = u8::MAX.checked_shl(8 - bits).unwrap_or(0);
        byte & mask
    };
    address.iter().map(&mut masked).collect()
}
