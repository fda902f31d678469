//! What is planned for a namespace: pure, from the namespace's lists.

use nacre_netlink::{address, link, route};
use nacre_protocol::agent::{Address, Neighbour, NextHop, Route};

use super::super::plan::{Plan, plan};
use super::super::read::Found;

const UP: u32 = 1;
const LOOPBACK: u32 = 8;
const NO_ARP: u32 = 0x80;
const ETHERNET: u16 = 1;

/// A link whose address ends with its index.
fn link(index: u32, name: &str, medium: u16, flags: u32, mtu: u32) -> link::Found {
    let [low, ..] = index.to_le_bytes();
    link::Found {
        index,
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, low],
        mtu,
        queue_length: 1000,
        kind: String::new(),
        master: 0,
        medium,
        flags,
    }
}

fn lo() -> link::Found {
    link(1, "lo", 772, UP | LOOPBACK, 65_536)
}

fn eth(index: u32, name: &str) -> link::Found {
    link(index, name, ETHERNET, UP, 1500)
}

fn address(bytes: &[u8], prefix_length: u32) -> Address {
    Address {
        address: bytes.to_vec(),
        prefix_length,
        preferred_s: u32::MAX,
        valid_s: u32::MAX,
        ..Address::default()
    }
}

fn route(destination: &[u8], prefix_length: u32, hop: (&str, &[u8])) -> Route {
    Route {
        family: 2,
        destination: destination.to_vec(),
        prefix_length,
        type_: 1,
        protocol: 3,
        table: route::MAIN_TABLE,
        next_hops: vec![NextHop {
            link: hop.0.into(),
            gateway: hop.1.to_vec(),
            weight: 1,
            ..NextHop::default()
        }],
        ..Route::default()
    }
}

/// The route that the kernel makes for 10.0.0.2/24 on eth0.
fn prefix_route() -> Route {
    Route {
        protocol: route::BY_KERNEL,
        scope: 253,
        preferred_source: vec![10, 0, 0, 2],
        ..route(&[10, 0, 0, 0], 24, ("eth0", &[]))
    }
}

fn found(links: Vec<link::Found>, addresses: Vec<(u32, Address)>, routes: Vec<Route>) -> Found {
    let supported = |route| route::Found {
        route,
        unsupported: None,
    };
    Found {
        links,
        addresses,
        routes: routes.into_iter().map(supported).collect(),
        ..Found::default()
    }
}

fn refused(found: Found) -> String {
    plan(found).unwrap_err().to_string()
}

#[test]
fn an_ordinary_pod() {
    let default = route(&[], 0, ("eth0", &[10, 0, 0, 1]));
    let mut namespace = found(
        vec![lo(), eth(2, "eth0")],
        vec![(1, address(&[127, 0, 0, 1], 8)), (2, address(&[10, 0, 0, 2], 24))],
        vec![default.clone(), prefix_route()],
    );
    namespace.needs_link_local = vec![2];
    let Plan {
        network,
        ties,
        ignored,
    } = plan(namespace).unwrap();
    assert_eq!(network.links.len(), 1, "the guest has its own loopback device");
    let eth0 = &network.links[0];
    assert_eq!((eth0.name.as_str(), eth0.mtu, eth0.up), ("eth0", 1500, true));
    assert_eq!(eth0.mac, [2, 0, 0, 0, 0, 2]);
    assert_eq!(eth0.addresses, [address(&[10, 0, 0, 2], 24)]);
    assert!(eth0.needs_link_local);
    assert_eq!(
        network.routes,
        [default],
        "the prefix route comes with the address"
    );
    assert_eq!((ties.len(), ties[0].index, ties[0].queue_length), (1, 2, 1000));
    assert_eq!(ignored, [""; 0]);
}

#[test]
fn a_gateway_s_route_precedes_the_routes_through_it() {
    // Calico's: the only address is a /32, and the gateway is in no subnet.
    let default = route(&[], 0, ("eth0", &[169, 254, 1, 1]));
    let mut to_gateway = route(&[169, 254, 1, 1], 32, ("eth0", &[]));
    to_gateway.scope = 253;
    let neighbour = Neighbour {
        link: "eth0".into(),
        address: vec![169, 254, 1, 1],
        mac: vec![0xee; 6],
        ..Neighbour::default()
    };
    let mut namespace = found(
        vec![eth(2, "eth0")],
        vec![(2, address(&[10, 0, 0, 2], 32))],
        vec![default.clone(), to_gateway.clone()],
    );
    namespace.neighbours = vec![neighbour.clone()];
    namespace.rules = vec![vec![2; 12]];
    let network = plan(namespace).unwrap().network;
    assert_eq!(network.routes, [to_gateway, default]);
    assert_eq!(
        (network.neighbours, network.rules),
        (vec![neighbour], vec![vec![2; 12]])
    );
    assert_eq!(network.links[0].addresses[0].flags, 0);
}

#[test]
fn a_prefix_route_that_was_replaced_is_not_made_by_the_guest() {
    // The ptp plugin's: the prefix is behind a gateway.
    let through_gateway = Route {
        preferred_source: vec![10, 0, 0, 2],
        ..route(&[10, 0, 0, 0], 24, ("eth0", &[10, 0, 0, 1]))
    };
    let addresses = vec![(2, address(&[10, 0, 0, 2], 24))];
    let namespace = found(vec![eth(2, "eth0")], addresses, vec![through_gateway.clone()]);
    let network = plan(namespace).unwrap().network;
    assert_eq!(network.links[0].addresses[0].flags, address::NO_PREFIX_ROUTE);
    assert_eq!(network.routes, [through_gateway]);
}

#[test]
fn ipv6_prefixes_and_loopback_addresses() {
    let prefix = |bytes: &[u8], length, link| Route {
        family: 10,
        protocol: route::BY_KERNEL,
        priority: 256,
        ..route(bytes, length, (link, &[]))
    };
    let mut fd = [0; 16];
    fd[0] = 0xfd;
    let mut host = fd;
    host[15] = 2;
    let mut loopback = [0; 16];
    loopback[15] = 1;
    let namespace = found(
        vec![lo(), eth(2, "eth0")],
        vec![
            (1, address(&loopback, 128)),
            (1, address(&host, 128)),
            (2, address(&host, 64)),
        ],
        vec![
            prefix(&loopback, 128, "lo"),
            prefix(&fd, 64, "eth0"),
            prefix(&host, 128, "lo"),
        ],
    );
    let network = plan(namespace).unwrap().network;
    assert_eq!(network.routes, []);
    let [lo, eth0] = &network.links[..] else {
        panic!("{network:?}")
    };
    assert_eq!((lo.name.as_str(), lo.mac.len()), ("lo", 0));
    assert_eq!(lo.addresses, [address(&host, 128)]);
    assert_eq!(eth0.addresses, [address(&host, 64)]);
}

#[test]
fn links_that_a_guest_can_t_have_are_refused_by_name() {
    let with = |link| found(vec![lo(), link], vec![(2, address(&[10, 0, 0, 2], 24))], vec![]);
    for (link, reason) in [
        (
            link(2, "tunl0", 768, UP, 1480),
            "link tunl0: only an Ethernet link",
        ),
        (
            link(2, "d0", ETHERNET, UP | NO_ARP, 1500),
            "link d0: it has no ARP",
        ),
        (link(2, "eth0", ETHERNET, UP, 1279), "got 1279 and 6"),
        (link(2, "eth0", ETHERNET, UP, 65_522), "got 65522 and 6"),
        (link(2, "eth0", ETHERNET, UP, 70_000), "got 70000 and 6"),
        (
            link::Found {
                master: 7,
                ..eth(2, "eth0")
            },
            "link eth0: it is a port of a bridge",
        ),
        (
            link::Found {
                mac: vec![1; 20],
                kind: "ipoib".into(),
                ..eth(2, "ib0")
            },
            "link ib0 (ipoib): expected",
        ),
    ] {
        let error = refused(with(link));
        assert!(error.contains(reason), "{error}");
    }
    for mtu in [1280, 65_521] {
        plan(with(link(2, "eth0", ETHERNET, UP, mtu))).unwrap();
    }
    let same_address = link::Found {
        mac: vec![2, 0, 0, 0, 0, 2],
        ..eth(3, "eth1")
    };
    let error = refused(found(vec![eth(2, "eth0"), same_address], vec![], vec![]));
    assert!(
        error.starts_with("link eth1: it has the same address as link eth0"),
        "{error}"
    );
}

#[test]
fn links_without_addresses() {
    let is_down = link(3, "sit0", 776, 0, 1480);
    let plan = plan(found(vec![lo(), eth(2, "eth0"), is_down], vec![], vec![])).unwrap();
    assert_eq!((plan.ties.len(), plan.network.links[0].addresses.len()), (1, 0));
    assert_eq!(plan.ignored, ["link sit0: it is down and has no address"]);
}

#[test]
fn every_list_has_a_bound() {
    let links = |count: u32| (2..2 + count).map(|index| eth(index, &format!("eth{index}")));
    assert_eq!(
        plan(found(links(16).collect(), vec![], vec![]))
            .unwrap()
            .ties
            .len(),
        16
    );
    let error = refused(found(links(17).collect(), vec![], vec![]));
    assert_eq!(error, "it has 17 links, but a pod has at most 16");
    let addresses = (0..65).map(|n| (2, address(&[10, 0, 0, n], 24)));
    let error = refused(found(vec![eth(2, "eth0")], addresses.collect(), vec![]));
    assert_eq!(
        error,
        "it has 65 addresses on link eth0, but a pod has at most 64"
    );
    let many = vec![route(&[10, 0, 0, 0], 24, ("eth0", &[])); 513];
    let error = refused(found(vec![eth(2, "eth0")], vec![], many));
    assert_eq!(error, "it has 513 routes, but a pod has at most 512");
    let mut many = found(vec![], vec![], vec![]);
    many.rules = vec![vec![0; 12]; 65];
    assert_eq!(refused(many), "it has 65 routing rules, but a pod has at most 64");
}

#[test]
fn a_route_with_an_unsupported_property_is_refused() {
    let mut namespace = found(vec![eth(2, "eth0")], vec![], vec![]);
    namespace.routes = vec![route::Found {
        route: route(&[10, 1, 0, 0], 16, ("eth0", &[])),
        unsupported: Some("a realm"),
    }];
    let error = refused(namespace);
    assert_eq!(
        error,
        "route to 10.1.0.0/16: it has a realm, which a guest does not get"
    );
}
