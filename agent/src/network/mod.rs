//! Sets up the pod's network in the guest: each link under its name, with its MTU, addresses, neighbours and
//! routes, as the engine found them on the host. Called by the requests Setup and ConfigureNetwork of an agent
//! that is PID 1; never by an agent outside a guest. Removes nothing: a step that fails ends the pod's start.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use nacre_netlink::{Error as NetlinkError, Message, Socket, address, link, neighbour, route, rule, show};
use nacre_protocol::agent::{Link, Network};

use crate::error::Error;
use crate::pci;
use crate::pod;

/// Most links of a guest that are looked at; a container can create more.
const MAX_LINKS: usize = 4096;
/// What a link's name begins with before it gets its own.
const ASIDE: &str = "nacre";

/// Finds devices that were attached to the VM since its boot, and then sets up `network`.
pub async fn set_up_attached(network: &Network) -> Result<(), Error> {
    pci::find_attached().await?;
    set_up(network)
}

/// Whether a link of `network` is a device of the VM.
pub fn has_devices(network: &Network) -> bool {
    network.links.iter().any(|link| !link.mac.is_empty())
}

/// Sets up `network`; costs nothing if it is empty. When this returns, the links can send: the driver takes them for up
/// until their device reports another status (`guest-kernel-config/virtio-net.patch`).
pub fn set_up(network: &Network) -> Result<(), Error> {
    if network.links.is_empty() && network.routes.is_empty() && network.rules.is_empty() {
        return Ok(());
    }
    take_devices(&network.links)?;
    let mut socket = Socket::open().map_err(|error| Error::Network(error.to_string()))?;
    let indices = find(&mut socket, &network.links)?;
    let mut requests = Requests {
        socket: &mut socket,
        indices: &indices,
    };
    for link in &network.links {
        requests.set_up_link(link)?;
    }
    requests.add_neighbours(network)?;
    requests.add_routes(network)
}

/// Moves the devices of `links` from the guest's initial network namespace to the pod's, if that is another.
fn take_devices(links: &[Link]) -> Result<(), Error> {
    let moved = pod::in_initial_network(|pod| {
        let mut socket = Socket::open()?;
        let present = socket.dump(link::list(), MAX_LINKS, link::parse)?;
        let is_wanted = |found: &&link::Found| {
            links
                .iter()
                .any(|link| link.mac == found.mac && found.is_ethernet())
        };
        present
            .iter()
            .filter(is_wanted)
            .try_for_each(|found| socket.request(link::move_to(found.index, pod, ASIDE)))
    })?;
    let failed =
        |error: NetlinkError| Error::Network(format!("moving links to the pod's namespace: {error}"));
    moved.unwrap_or(Ok(())).map_err(failed)
}

/// Finds the devices of `links` by their hardware addresses and gives them their names; returns the links'
/// indices by name.
fn find(socket: &mut Socket, links: &[Link]) -> Result<BTreeMap<String, u32>, Error> {
    let listed = socket.dump(link::list(), MAX_LINKS, link::parse);
    let present = listed.map_err(|error| Error::Network(format!("listing the guest's links: {error}")))?;
    let mut indices = BTreeMap::new();
    let mut renamed = Vec::new();
    for wanted in links {
        let is_it = |found: &&link::Found| {
            if wanted.mac.is_empty() {
                found.is_loopback()
            } else {
                found.mac == wanted.mac && found.is_ethernet()
            }
        };
        let found = present.iter().find(is_it).ok_or_else(|| {
            let mac = show::mac(&wanted.mac);
            Error::Network(format!(
                "link {}: the guest has no device with address {mac}",
                wanted.name
            ))
        })?;
        if found.name != wanted.name {
            renamed.push((found.index, &wanted.name));
        }
        indices.insert(wanted.name.clone(), found.index);
    }
    // One may have the name of another, so all give theirs up first.
    let aside = renamed
        .iter()
        .map(|(index, name)| (*index, format!("{ASIDE}{index}"), *name));
    let named = renamed
        .iter()
        .map(|(index, name)| (*index, (*name).clone(), *name));
    let is_taken = |name: &str| present.iter().any(|found| found.name == name);
    let needs_two_steps = renamed.iter().any(|(_, name)| is_taken(name));
    for (index, name, wanted) in aside.filter(|_| needs_two_steps).chain(named) {
        let request = link::rename(index, &name);
        socket
            .request(request)
            .map_err(failed(wanted, format_args!("renaming it to {name}")))?;
    }
    if let Some(loopback) = present.iter().find(|found| found.is_loopback()) {
        indices.insert(loopback.name.clone(), loopback.index);
    }
    Ok(indices)
}

fn failed(link: &str, step: impl std::fmt::Display) -> impl FnOnce(NetlinkError) -> Error {
    move |error| Error::Network(format!("link {link}: {step}: {error}"))
}

/// What the requests of one network need.
struct Requests<'a> {
    socket: &'a mut Socket,
    /// The links' indices by name.
    indices: &'a BTreeMap<String, u32>,
}

impl Requests<'_> {
    fn index(&self, name: &str) -> Option<u32> {
        self.indices.get(name).copied()
    }

    fn set_up_link(&mut self, link: &Link) -> Result<(), Error> {
        let name = &link.name;
        // `find` has found all links.
        let Some(index) = self.index(name) else {
            return Ok(());
        };
        let is_nic = !link.mac.is_empty();
        if is_nic {
            let request = link::set_mtu(index, link.mtu);
            self.request(request, name, format_args!("setting MTU {}", link.mtu))?;
        }
        if is_nic && !link.needs_link_local {
            self.request(
                link::set_no_own_addresses(index),
                name,
                "setting its address mode",
            )?;
        }
        if link.up {
            // Before its addresses: an IPv6 address of a link that is down has no route.
            let request = if is_nic {
                link::set_operational(index)
            } else {
                link::set_up(index)
            };
            self.request(request, name, "setting it up")?;
        }
        for address in &link.addresses {
            let step = format!(
                "adding address {}/{}",
                show::ip(&address.address),
                address.prefix_length
            );
            self.request(address::add(index, address), name, step)?;
        }
        Ok(())
    }

    fn request(&mut self, message: Message, link: &str, step: impl std::fmt::Display) -> Result<(), Error> {
        self.socket.request(message).map_err(failed(link, step))
    }

    fn add_neighbours(&mut self, network: &Network) -> Result<(), Error> {
        for neighbour in &network.neighbours {
            let step = format!("adding neighbour {}", show::ip(&neighbour.address));
            let request = neighbour::add(neighbour, &|name| self.index(name));
            let request = request.ok_or_else(|| unknown_link(&step))?;
            self.request(request, &neighbour.link, step)?;
        }
        Ok(())
    }

    /// In the given order, in which the way to a gateway precedes the routes through it.
    fn add_routes(&mut self, network: &Network) -> Result<(), Error> {
        for route in &network.routes {
            let step = format!("adding the route to {}", show::destination(route));
            let request = route::add(route, &|name| self.index(name)).ok_or_else(|| unknown_link(&step))?;
            let added = self.socket.request(request);
            added.map_err(|error| Error::Network(format!("{step}: {error}")))?;
        }
        for rule in &network.rules {
            let added = self.socket.request(rule::add(rule));
            added.map_err(|error| Error::Network(format!("adding a routing rule: {error}")))?;
        }
        Ok(())
    }
}

fn unknown_link(step: &str) -> Error {
    Error::Network(format!("{step}: its link is not among the pod's"))
}
