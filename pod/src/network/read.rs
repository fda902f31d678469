//! Lists what is in the network namespace that the process is in: six bounded lists. Decides nothing.

use nacre_netlink::{Error as NetlinkError, Socket, address, link, neighbour, route, rule};
use nacre_protocol::agent::{Address, Neighbour};

use super::Error;

/// Most entries of each list that are read.
const MAX_LISTED: usize = 4096;

/// What is in a network namespace.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// All links, by their index.
    pub links: Vec<link::Found>,
    /// With the link's index.
    pub addresses: Vec<(u32, Address)>,
    /// In all tables but the kernel's own.
    pub routes: Vec<route::Found>,
    /// Permanent ones.
    pub neighbours: Vec<Neighbour>,
    /// The routing policy without the kernel's own rules.
    pub rules: Vec<Vec<u8>>,
    /// Indices of links with IPv6, but without a link-local address: the kernel adds it when the link has a
    /// carrier.
    pub needs_link_local: Vec<u32>,
}

/// Lists everything.
pub fn read(socket: &mut Socket) -> Result<Found, Error> {
    let failed = |what| move |source: NetlinkError| Error::Read { what, source };
    let mut links = socket
        .dump(link::list(), MAX_LISTED, link::parse)
        .map_err(failed("links"))?;
    links.sort_by_key(|link| link.index);
    let name_of = |index| Some(links.iter().find(|link| link.index == index)?.name.clone());
    let mut found = Found {
        addresses: socket
            .dump(address::list(), MAX_LISTED, address::parse)
            .map_err(failed("addresses"))?,
        neighbours: socket
            .dump(neighbour::list(), MAX_LISTED, |body| {
                neighbour::parse(body, &name_of)
            })
            .map_err(failed("neighbours"))?,
        ..Found::default()
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        let parse = |body: &[u8]| {
            route::parse(body, &name_of).filter(|found| !matches!(found.route.table, 0 | route::LOCAL_TABLE))
        };
        let routes = socket.dump(route::list(family), MAX_LISTED, parse);
        found.routes.extend(routes.map_err(failed("routes"))?);
        let rules = socket.dump(rule::list(family), MAX_LISTED, rule::parse);
        found.rules.extend(rules.map_err(failed("routing rules"))?);
    }
    for link in links.iter().filter(|link| link.is_ethernet() && link.is_up()) {
        let mut own = found.addresses.iter().filter(|(index, _)| *index == link.index);
        if !own.any(|(_, address)| is_link_local(address)) && has_ipv6(&link.name) {
            found.needs_link_local.push(link.index);
        }
    }
    found.links = links;
    Ok(found)
}

/// Whether it is in fe80::/10.
fn is_link_local(address: &Address) -> bool {
    address.address.len() == 16 && address.address.starts_with(&[0xfe, 0x80])
}

/// Whether IPv6 is switched on.
fn has_ipv6(link: &str) -> bool {
    let file = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
    std::fs::read_to_string(file).is_ok_and(|value| value.trim() == "0")
}
