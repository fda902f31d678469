//! A pod's network beside runc's veth and beside QEMU's microvm machine with a tap, with vhost and without:
//! throughput of TCP both ways, the latency of small requests on one connection, small datagrams per second both
//! ways. All peers have the same server ([`traffic`]), bridge and veth, and take turns. The host is the client.
//! Only in a lab with CRI (`tests/lab/run --cri`).

mod cost;
pub mod qemu;
pub mod traffic;

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use nacre_tests::containerd::Runtime;
use nacre_tests::cri::node::{Node, prepare_cgroup};
use nacre_tests::cri::pod::{Pod, this_program};
use serde_json::{Value, json};

use self::traffic::{Client, DATAGRAMS, ROUND_TRIPS, TRANSFER};
use crate::results::{Measure, Results};
use crate::runtimes::MeasuredRuntimes;
use crate::statistics::median;

/// Who has the network of a pod.
struct Peer {
    name: &'static str,
    /// Of the names of rows beside it.
    suffix: &'static str,
    client: Client,
    /// The PID of its VMM.
    vmm: Option<u32>,
}

impl Peer {
    fn new(name: &'static str, suffix: &'static str, pod: &Pod<'_>, vmm: Option<u32>) -> Result<Self> {
        Ok(Self {
            name,
            suffix,
            client: Client(address(pod)?),
            vmm,
        })
    }
}

/// One figure of a pod.
struct Row {
    name: &'static str,
    unit: &'static str,
    what: &'static str,
    pick: fn(&Round) -> f64,
}

/// The figures, and what one operation of each costs.
const ROWS: [Row; 6] = [
    Row {
        name: "tcp_to_pod",
        unit: "MiB/s",
        what: "TCP, host to pod",
        pick: |round| round.to_pod,
    },
    Row {
        name: "tcp_from_pod",
        unit: "MiB/s",
        what: "TCP, pod to host",
        pick: |round| round.from_pod,
    },
    Row {
        name: "tcp_round_trip_p50",
        unit: "us",
        what: "one byte there and back",
        pick: |round| round.round_trip[0],
    },
    Row {
        name: "tcp_round_trip_p99",
        unit: "us",
        what: "one byte there and back",
        pick: |round| round.round_trip[1],
    },
    Row {
        name: "packets_to_pod",
        unit: "/s",
        what: "datagrams of 18 bytes that arrive, host to pod",
        pick: |round| round.packets_to_pod,
    },
    Row {
        name: "packets_from_pod",
        unit: "/s",
        what: "datagrams of 18 bytes that arrive, pod to host",
        pick: |round| round.packets_from_pod,
    },
];

/// One round's figures of a peer.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// MiB/s.
    to_pod: f64,
    from_pod: f64,
    /// p50 and p99 in microseconds.
    round_trip: [f64; 2],
    /// Datagrams per second.
    packets_to_pod: f64,
    packets_from_pod: f64,
}

/// Measures `count` rounds with a pod of each runtime and a guest of QEMU with each kind of tap, in turns, and adds
/// the rows.
///
/// # Errors
/// If containerd has no CRI, a pod fails, or bytes are lost.
pub fn measure(runtimes: &MeasuredRuntimes, count: usize, results: &mut Results) -> Result<()> {
    prepare_cgroup()?;
    let nacre = Node::new(Runtime::Nacre, "nacre")?;
    let runc = Node::new(Runtime::Runc, "runc")?;
    let pods = [nacre.pod(Value::Null)?, runc.pod(Value::Null)?];
    let mut servers = Vec::new();
    for pod in &pods {
        let server = pod.start("", this_program(&["--serve"])?)?;
        server.prints(traffic::UP)?;
        servers.push(server);
    }
    let vmm = info(&pods[0])?["pid"].as_u64().context("a pod without a pid")?;
    let mut peers = vec![
        Peer::new("nacre", "", &pods[0], Some(u32::try_from(vmm)?))?,
        Peer::new("runc", "", &pods[1], None)?,
    ];
    let guests = qemu_guests(&runc, runtimes)?;
    for guest in &guests {
        peers.push(Peer::new(
            guest.name,
            guest.suffix,
            &guest.pod,
            Some(guest.qemu.pid()),
        )?);
    }
    let rounds = rounds(&peers, count)?;
    drop(servers);
    for guest in guests {
        drop(guest.qemu);
        guest.pod.remove()?;
    }
    for pod in pods {
        pod.remove()?;
    }
    report(&peers, &rounds, results);
    Ok(())
}

/// A guest of QEMU's, and the pod whose network it has.
struct QemuGuest<'n> {
    name: &'static str,
    suffix: &'static str,
    pod: Pod<'n>,
    qemu: qemu::Guest,
}

/// A guest with vhost, whose packets the host's kernel carries, and one without; none without QEMU.
fn qemu_guests<'n>(runc: &'n Node, runtimes: &MeasuredRuntimes) -> Result<Vec<QemuGuest<'n>>> {
    if !qemu::is_there()? {
        eprintln!("network: no QEMU with vhost on this host; it is not measured");
        return Ok(Vec::new());
    }
    let kernel = runtimes.nacre.prefix.join("share/nacre/vmlinux");
    let kinds = [
        ("QEMU", "_qemu", true),
        ("QEMU, no vhost", "_qemu_no_vhost", false),
    ];
    let boot = |(name, suffix, has_vhost)| {
        let pod = runc.pod(Value::Null)?;
        let qemu = qemu::Guest::boot(&kernel, &place(&pod)?, has_vhost)?;
        Ok(QemuGuest {
            name,
            suffix,
            pod,
            qemu,
        })
    };
    kinds.into_iter().map(boot).collect()
}

/// What containerd tells of a pod beyond its status.
fn info(pod: &Pod<'_>) -> Result<Value> {
    let request = json!({"pod_sandbox_id": pod.id, "verbose": true});
    let answer = pod.node().call("PodSandboxStatus", request)?;
    let info = answer["info"]["info"].as_str().context("no info")?;
    Ok(serde_json::from_str(info)?)
}

/// Where a guest of QEMU's takes the place of a pod's container.
fn place(pod: &Pod<'_>) -> Result<qemu::Place> {
    let spec = &info(pod)?["runtimeSpec"]["linux"];
    let namespaces = spec["namespaces"].as_array();
    let found = namespaces
        .into_iter()
        .flatten()
        .find(|one| one["type"] == "network");
    let namespace = found.and_then(|one| one["path"].as_str());
    let cgroup = spec["cgroupsPath"].as_str().context("the pod has no cgroup")?;
    Ok(qemu::Place {
        namespace: namespace.context("the pod has no network namespace")?.into(),
        cgroup: format!("/sys/fs/cgroup{cgroup}").into(),
        address: address(pod)?,
    })
}

fn address(pod: &Pod<'_>) -> Result<Ipv4Addr> {
    let [address, _] = pod.addresses()?;
    address.parse().with_context(|| address.clone())
}

/// The rounds, each with a figure per peer. The first round warms up.
fn rounds(peers: &[Peer], count: usize) -> Result<Vec<Vec<Round>>> {
    let mut rounds = Vec::with_capacity(count);
    for number in 0..=count {
        let mut figures = vec![Round::default(); peers.len()];
        for turn in 0..peers.len() {
            let index = (number + turn) % peers.len();
            let peer = &peers[index];
            figures[index] = round(peer).with_context(|| format!("traffic with {}", peer.name))?;
            eprintln!(
                "network {number:2} of {count}: {:14} {:.0?}",
                peer.name, figures[index]
            );
        }
        if number > 0 {
            rounds.push(figures);
        }
    }
    Ok(rounds)
}

fn round(peer: &Peer) -> Result<Round> {
    let client = peer.client;
    Ok(Round {
        to_pod: cost::of(peer, "host to pod, MiB", TRANSFER >> 20, || client.upload())?,
        from_pod: cost::of(peer, "pod to host, MiB", TRANSFER >> 20, || client.download())?,
        round_trip: cost::of(peer, "round trip", ROUND_TRIPS, || client.round_trips())?,
        packets_to_pod: cost::of(peer, "datagram to pod", DATAGRAMS, || client.send_datagrams())?,
        packets_from_pod: cost::of(peer, "datagram from pod", DATAGRAMS, || {
            client.receive_datagrams()
        })?,
    })
}

/// A row per figure and peer. Ratios of times are Nacre's divided by the peer's, as in other rows; of rates, too.
fn report(peers: &[Peer], rounds: &[Vec<Round>], results: &mut Results) {
    for row in &ROWS {
        let of =
            |index: usize| -> Vec<f64> { rounds.iter().map(|round| (row.pick)(&round[index])).collect() };
        let nacre = of(0);
        for (index, peer) in peers.iter().enumerate().skip(1) {
            let theirs = of(index);
            let ratios: Vec<f64> = nacre
                .iter()
                .zip(&theirs)
                .map(|(own, other)| own / other)
                .collect();
            results.add(Measure {
                name: format!("{}{}", row.name, peer.suffix),
                unit: row.unit.into(),
                nacre: median(&nacre),
                peer: Some(median(&theirs)),
                peer_name: Some(peer.name.into()),
                ratio: Some(median(&ratios)),
                note: format!("{}; medians of {} rounds", row.what, rounds.len()),
                ..Measure::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_a_row_beside_each_peer() {
        let peer = |name, suffix| Peer {
            name,
            suffix,
            client: Client(Ipv4Addr::LOCALHOST),
            vmm: None,
        };
        let peers = [peer("nacre", ""), peer("runc", ""), peer("QEMU", "_qemu")];
        let round = |to_pod| Round {
            to_pod,
            ..Round::default()
        };
        let mut results = Results::default();
        report(&peers, &[[1.0, 4.0, 2.0].map(round).to_vec()], &mut results);
        assert_eq!(results.0.len(), 2 * ROWS.len());
        for (row, (name, peer, ratio)) in results
            .0
            .iter()
            .zip([("tcp_to_pod", "runc", 0.25), ("tcp_to_pod_qemu", "QEMU", 0.5)])
        {
            assert_eq!((row.name.as_str(), row.peer_name.as_deref()), (name, Some(peer)));
            assert!((row.ratio.unwrap() - ratio).abs() < 1e-9);
        }
    }
}
