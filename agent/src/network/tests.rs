//! A pod's network, set up in a network namespace of a forked child, where veth links stand in for the VM's
//! devices; ip(8) shows the result. Needs root, and is skipped without.

use std::os::fd::AsFd as _;
use std::process::Command;

use nacre_protocol::agent::{Address, Link, Neighbour, NextHop, Route};

use super::*;

/// Runs `work` in a new network namespace with two veth links, "eth0" with address 02:…:01 and "eth1" with
/// 02:…:02; returns what it returns.
fn in_namespace(work: impl FnOnce() -> String + Send + 'static) -> Option<String> {
    if !rustix::process::getuid().is_root() || !std::path::Path::new("/sbin/ip").exists() {
        println!("skipped: needs root and ip");
        return None;
    }
    // Only the thread enters the namespace, and its children with it.
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up
             ip link add eth0 address 02:00:00:00:00:01 type veth peer name peer0
             ip link add eth1 address 02:00:00:00:00:02 type veth peer name peer1
             ip link set peer0 up; ip link set peer1 up");
        work()
    });
    Some(thread.join().unwrap())
}

fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn link(name: &str, last: u8, addresses: Vec<Address>) -> Link {
    Link {
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, last],
        mtu: 1400,
        up: true,
        addresses,
        ..Link::default()
    }
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

fn ipv6(first: u8, last: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = first;
    bytes[15] = last;
    bytes
}

fn route(family: u32, destination: (&[u8], u32), hops: &[(&str, &[u8])]) -> Route {
    let hop = |(link, gateway): &(&str, &[u8])| NextHop {
        link: (*link).into(),
        gateway: gateway.to_vec(),
        weight: 1,
        ..NextHop::default()
    };
    Route {
        family,
        destination: destination.0.to_vec(),
        prefix_length: destination.1,
        type_: 1,
        protocol: 3,
        table: route::MAIN_TABLE,
        next_hops: hops.iter().map(hop).collect(),
        ..Route::default()
    }
}

/// Links change their names; the gateway is in no subnet; IPv6 addresses are usable at once.
#[test]
fn links_addresses_routes_and_neighbours_are_as_on_the_host() {
    let mut link_local = address(&ipv6(0xfe, 5), 64);
    link_local.address[1] = 0x80;
    link_local.scope = 253;
    let mut to_gateway = route(2, (&[169, 254, 1, 1], 32), &[("eth0", &[])]);
    to_gateway.scope = 253;
    let mut blackhole = route(2, (&[10, 9, 0, 0], 16), &[]);
    blackhole.type_ = 6;
    let mut through_both = route(
        2,
        (&[10, 8, 0, 0], 16),
        &[("net1", &[10, 1, 0, 1]), ("net1", &[10, 1, 0, 9])],
    );
    through_both.next_hops[1].weight = 5;
    let mut of_table = route(10, (&ipv6(0xfc, 0), 16), &[("eth0", &ipv6(0xfd, 1))]);
    of_table.table = 1000;
    let network = Network {
        links: vec![
            // The device that the kernel calls eth1, and the reverse.
            link(
                "eth0",
                2,
                vec![
                    address(&[10, 0, 0, 2], 32),
                    address(&ipv6(0xfd, 2), 64),
                    link_local,
                ],
            ),
            link("net1", 1, vec![address(&[10, 1, 0, 2], 24)]),
        ],
        routes: vec![
            to_gateway,
            blackhole,
            route(2, (&[], 0), &[("eth0", &[169, 254, 1, 1])]),
            route(10, (&[], 0), &[("eth0", &ipv6(0xfd, 1))]),
            through_both,
            of_table,
        ],
        neighbours: vec![Neighbour {
            link: "eth0".into(),
            address: vec![169, 254, 1, 1],
            mac: vec![0xee; 6],
            ..Neighbour::default()
        }],
        ..Network::default()
    };
    let shown = in_namespace(move || {
        set_up(&network).unwrap();
        run("ip -d -o link; ip -o addr; ip route; ip -6 route; ip -6 route show table 1000; ip neigh")
    });
    let Some(shown) = shown else { return };
    let words: Vec<&str> = shown.split_ascii_whitespace().collect();
    let shown = words.join(" ");
    for expected in [
        "eth0 inet 10.0.0.2/32 scope global eth0",
        "eth0 inet6 fd00::2/64 scope global nodad",
        "eth0 inet6 fe80::5/64 scope link nodad",
        "net1 inet 10.1.0.2/24 scope global net1",
        "default via 169.254.1.1 dev eth0",
        "10.1.0.0/24 dev net1 proto kernel scope link src 10.1.0.2",
        "10.8.0.0/16 nexthop via 10.1.0.1 dev net1 weight 1 nexthop via 10.1.0.9 dev net1 weight 5",
        "blackhole 10.9.0.0/16",
        "169.254.1.1 dev eth0 scope link",
        "default via fd00::1 dev eth0",
        "fc00::/16 via fd00::1 dev eth0",
        "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT",
    ] {
        assert!(shown.contains(expected), "{expected} is missing in:\n{shown}");
    }
    assert_eq!(shown.matches("mtu 1400").count(), 2, "{shown}");
    assert!(!shown.contains("nodad tentative"), "{shown}");
    // net1 has IPv6, but the host's link had no address of it. The kernel would give it one at some later time.
    assert_eq!(shown.matches("addrgenmode none").count(), 2, "{shown}");
    assert!(!shown.contains("net1 inet6"), "{shown}");
}

#[test]
fn a_link_that_may_choose_gets_a_link_local_address() {
    let mut free = link("eth0", 1, vec![]);
    free.needs_link_local = true;
    let shown = in_namespace(move || {
        let network = Network {
            links: vec![free],
            ..Network::default()
        };
        set_up(&network).unwrap();
        run("ip -o addr show dev eth0")
    });
    assert!(shown.is_none_or(|shown| shown.contains("inet6 fe80::ff:fe00:1/64")));
}

#[test]
fn a_link_is_moved_to_another_namespace() {
    let shown = in_namespace(|| {
        let namespace = || std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let enter = |namespace: &std::fs::File| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        };
        let first = namespace();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        // The name that the link would keep.
        run("ip link add eth0 type dummy || ip link add eth0 type veth peer name peer0");
        let second = namespace();
        enter(&first);
        let mut socket = Socket::open().unwrap();
        let present = socket.dump(link::list(), MAX_LINKS, link::parse).unwrap();
        for found in present.iter().filter(|found| found.name.starts_with("eth")) {
            let request = link::move_to(found.index, second.as_fd(), ASIDE);
            socket.request(request).unwrap();
        }
        let left = run("ip -o link");
        enter(&second);
        let names = run(
            "ip -o link | grep link/ether | grep 02:00:00:00:00 | cut -d: -f 2 | cut -d@ -f 1 | sort | xargs",
        );
        format!("{}{names}", left.contains(": eth"))
    });
    if let Some(shown) = shown {
        assert_eq!(shown, "falsenacre0 nacre1\n");
    }
}

#[test]
fn an_error_names_the_object_and_the_kernel_s_reason() {
    let unreachable = Network {
        links: vec![link("eth0", 1, vec![])],
        routes: vec![route(2, (&[], 0), &[("eth0", &[10, 7, 0, 1])])],
        ..Network::default()
    };
    let missing = Network {
        links: vec![link("eth0", 9, vec![])],
        ..Network::default()
    };
    let elsewhere = Network {
        routes: vec![route(2, (&[10, 0, 0, 0], 8), &[("eth7", &[])])],
        ..Network::default()
    };
    let twice = Network {
        links: vec![link("eth0", 1, vec![address(&[10, 0, 0, 2], 24); 2])],
        ..Network::default()
    };
    let errors = in_namespace(move || {
        let errors =
            [unreachable, missing, elsewhere, twice].map(|network| set_up(&network).unwrap_err().to_string());
        errors.join("\n")
    });
    let Some(errors) = errors else { return };
    // Newer kernels explain more of their errors.
    for (error, (begin, end)) in errors.lines().zip([
        (
            "adding the route to default: ",
            "Network is unreachable (os error 101)",
        ),
        (
            "link eth0: ",
            "the guest has no device with address 02:00:00:00:00:09",
        ),
        (
            "adding the route to 10.0.0.0/8: ",
            "its link is not among the pod's",
        ),
        (
            "link eth0: adding address 10.0.0.2/24: ",
            "File exists (os error 17)",
        ),
    ]) {
        let rest = error
            .strip_prefix("set up network: ")
            .and_then(|rest| rest.strip_prefix(begin));
        assert!(rest.is_some_and(|rest| rest.ends_with(end)), "{error}");
    }
}

#[test]
fn an_empty_network_needs_nothing() {
    set_up(&Network::default()).unwrap();
}
