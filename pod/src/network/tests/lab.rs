//! Links of real network namespaces are tied and released. All tests need root, ip(8) and tc(8), and are
//! skipped without.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::{Error, Tied};
use super::super::{Namespace, Owner, has_links, release, release_blocking, tie_links};

const KEY: &str = "0123456789abcdef";

/// A named network namespace, with a veth pair between it and a second one for each of its links.
struct Lab {
    name: String,
}

impl Lab {
    /// None if this machine can't have one.
    fn new(name: &str, links: u8) -> Option<Self> {
        if !rustix::process::getuid().is_root() || !std::path::Path::new("/sbin/tc").exists() {
            println!("skipped: needs root, ip and tc");
            return None;
        }
        let lab = Self {
            name: format!("nacre-{name}-{}", std::process::id()),
        };
        let (pod, peer) = (&lab.name, format!("{}-peer", lab.name));
        run(&format!(
            "ip netns add {pod}; ip netns add {peer}; ip -n {pod} link set lo up"
        ));
        for n in 0..links {
            run(&format!(
                "ip -n {pod} link add eth{n} address 02:00:00:00:00:{n:02x} mtu 1400 type veth peer name p{n} netns {peer}
                 ip -n {pod} addr add 10.{n}.0.2/24 dev eth{n}
                 ip -n {pod} -6 addr add fd00:{n}::2/64 dev eth{n} nodad
                 ip -n {pod} link set eth{n} up
                 ip -n {peer} addr add 10.{n}.0.1/24 dev p{n}; ip -n {peer} link set p{n} up mtu 1400"
            ));
        }
        Some(lab)
    }

    fn namespace(&self) -> Namespace {
        Namespace::open(format!("/run/netns/{}", self.name).as_ref()).unwrap()
    }

    /// What ip and tc show of the namespace, whether duplicate address detection is over or not.
    fn shown(&self) -> String {
        let name = &self.name;
        let all = "ip -d link; ip addr; tc qdisc; for l in $(ls /sys/class/net); do tc filter show dev $l ingress; done; true";
        run(&format!("ip netns exec {name} sh -c '{all}'")).replace(" tentative", "")
    }

    /// Fails unless the namespace is as in `wanted` within 15 s. A tap disappears when its last descriptor is closed,
    /// and a child that another test has forked may hold a copy of it until it exits.
    async fn expect(&self, wanted: &str) {
        let until = Instant::now() + Duration::from_secs(15);
        while self.shown() != wanted && Instant::now() < until {
            // Nothing announces the end of another test's child. Other tests' threads run meanwhile.
            let moment = Duration::from_millis(100);
            let _elapsed = tokio::time::timeout(moment, std::future::pending::<()>()).await;
        }
        assert_eq!(self.shown(), wanted);
    }

    async fn tie(&self, queue_pairs: u8) -> Result<Tied, Error> {
        self.tie_for(KEY, queue_pairs).await
    }

    async fn tie_for(&self, key: &str, queue_pairs: u8) -> Result<Tied, Error> {
        let key = key.to_owned();
        let owner = Owner { key, queue_pairs };
        tie_links(self.namespace(), owner).await
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for suffix in ["", "-peer"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}{suffix}", self.name)])
                .status();
        }
    }
}

fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_namespace_is_as_before_when_it_is_released() {
    let Some(lab) = Lab::new("tie", 2) else { return };
    run(&format!(
        "ip -n {} route add default via 10.0.0.1 metric 7",
        lab.name
    ));
    let before = lab.shown();
    let tied = lab.tie(1).await.unwrap();
    let during = lab.shown();
    assert_eq!(during.matches("Egress Redirect").count(), 4, "{during}");
    assert_eq!(during.matches("mtu 1400 qdisc").count(), 8, "{during}");
    let nics: Vec<_> = tied.nics.iter().map(|nic| (nic.mac, nic.mtu)).collect();
    assert_eq!(nics, [([2, 0, 0, 0, 0, 0], 1400), ([2, 0, 0, 0, 0, 1], 1400)]);
    assert!(tied.nics.iter().all(|nic| nic.taps.len() == 1));
    assert_eq!(tied.network.links.len(), 2);
    assert_eq!(tied.network.routes.len(), 1, "{:?}", tied.network.routes);
    assert_eq!(tied.network.routes[0].priority, 7);

    let again = lab.tie_for("another pod's", 1).await.unwrap_err().to_string();
    assert!(
        again.contains("link eth0: adding an ingress qdisc: it has one already"),
        "{again}"
    );
    let record = lab.namespace().record;
    assert!(
        again.starts_with(&format!("network namespace {}: ", record.path.display())),
        "{again}"
    );
    release(&record, "another pod's").await.unwrap();
    assert_eq!(lab.shown(), during, "another pod's links were released");

    drop(tied);
    release(&record, KEY).await.unwrap();
    lab.expect(&before).await;
    release_blocking(&record, KEY).unwrap();
}

/// A frame that arrives on the link is read from the tap, and the reverse; the namespace answers nothing.
#[tokio::test]
async fn frames_pass_and_the_namespace_itself_is_silent() {
    let Some(lab) = Lab::new("frames", 1) else { return };
    // As CNI plugins make it.
    run(&format!("ip -n {} link set eth0 txqueuelen 0", lab.name));
    let tied = lab.tie(2).await.unwrap();
    assert_eq!(tied.nics[0].taps.len(), 2);
    let peer = format!("{}-peer", lab.name);
    let ping = |address: &str| {
        let ping = format!("busybox timeout 2 busybox ping -c 1 -W 1 {address} || true");
        run(&format!("ip netns exec {peer} {ping}"))
    };
    for address in ["10.0.0.2", "fd00:0::2"] {
        let answer = ping(address);
        assert!(!answer.contains("bytes from"), "the namespace answers: {answer}");
    }
    let mut taps: Vec<std::fs::File> = tied
        .nics
        .into_iter()
        .flat_map(|nic| nic.taps)
        .map(Into::into)
        .collect();
    let mut kinds = Vec::new();
    for tap in &mut taps {
        let mut frame = [0; 2048];
        // Non-blocking: reads until the queue is empty.
        while let Ok(length) = tap.read(&mut frame) {
            assert!(length > 26, "{length}");
            kinds.push(u16::from_be_bytes([frame[24], frame[25]]));
        }
    }
    assert!(kinds.contains(&0x0806), "no ARP request arrived: {kinds:x?}");

    // An ARP request from the guest is answered by the peer.
    let mut request = vec![0; 12];
    request.extend([0xff; 6]);
    request.extend([
        2, 0, 0, 0, 0, 0, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0,
    ]);
    request.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    assert_eq!(taps[0].write(&request).unwrap(), request.len());
    let has_reply = |tap: &mut std::fs::File| {
        let mut frame = [0; 2048];
        std::iter::from_fn(|| tap.read(&mut frame).ok().map(|_| frame[33])).any(|operation| operation == 2)
    };
    assert!(taps.iter_mut().any(has_reply), "no ARP reply arrived");
}

#[tokio::test]
async fn a_namespace_that_can_t_be_tied_is_left_as_it_was() {
    let Some(lab) = Lab::new("full", 2) else { return };
    // The second link fails when the first is tied already.
    run(&format!(
        "ip netns exec {} tc qdisc add dev eth1 clsact",
        lab.name
    ));
    let before = lab.shown();
    let error = lab.tie(1).await.unwrap_err().to_string();
    assert!(
        error.contains("link eth1: adding an ingress qdisc: it has one already"),
        "{error}"
    );
    lab.expect(&before).await;
}

#[tokio::test]
async fn a_namespace_that_is_gone_or_replaced_needs_no_release() {
    let Some(lab) = Lab::new("gone", 1) else { return };
    let tied = lab.tie(1).await.unwrap();
    let record = lab.namespace().record;
    let name = &lab.name;
    run(&format!("ip netns del {name}"));
    release(&record, KEY).await.unwrap();
    // Another namespace may have the inode of the first only when that is gone, and the taps hold it.
    run(&format!("ip netns add {name}"));
    assert!(Namespace::recorded(&record).unwrap().is_none());
    release(&record, KEY).await.unwrap();
    drop(tied);
}

#[tokio::test]
async fn what_is_no_network_namespace_of_a_pod_is_refused_by_name() {
    let open = |path: &str| Namespace::open(path.as_ref()).map(drop);
    let fifo = tempfile::tempdir().unwrap();
    let fifo = fifo.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, reason) in [
        ("/run/netns/none-of-this-name", "No such file"),
        ("/etc/passwd", "is not a network namespace"),
        ("/proc/self/ns", "is not a network namespace"),
        ("/proc/self/ns/net", "is the host's own"),
        (fifo.to_str().unwrap(), "is not a network namespace"),
    ] {
        let error = open(path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("network namespace {path}: ")),
            "{error}"
        );
        assert!(error.contains(reason), "{error}");
    }
    if rustix::process::getuid().is_root() {
        let owner = Owner {
            key: KEY.to_owned(),
            queue_pairs: 1,
        };
        let of_pids = Namespace::open("/proc/self/ns/pid".as_ref()).unwrap();
        let error = tie_links(of_pids, owner).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "network namespace /proc/self/ns/pid: is not a network namespace"
        );
    }
}

#[test]
fn links_besides_the_loopback_device_are_seen() {
    let Some(lab) = Lab::new("seen", 1) else { return };
    for (namespace, expected) in [(lab.name.clone(), true), (format!("{}-empty", lab.name), false)] {
        if !expected {
            run(&format!("ip netns add {namespace}"));
        }
        let mut inside = Command::new("ip")
            .args(["netns", "exec", &namespace, "sleep", "100"])
            .spawn()
            .unwrap();
        // ip becomes sleep when it is in the namespace.
        let comm = format!("/proc/{}/comm", inside.id());
        while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
            std::thread::yield_now();
        }
        assert_eq!(has_links(inside.id()).unwrap(), expected, "{namespace}");
        inside.kill().unwrap();
        inside.wait().unwrap();
        if !expected {
            run(&format!("ip netns del {namespace}"));
        }
    }
    assert!(has_links(u32::MAX).is_err());
}

/// A namespace that can't be looked at may still have the pod's redirections: its record must stay.
#[tokio::test]
async fn a_namespace_that_can_t_be_opened_is_not_taken_for_gone() {
    let at = |path: String| nacre_protocol::state::NetworkNamespace {
        path: path.into(),
        device: 1,
        inode: 1,
        is_tying: false,
    };
    let long = at(format!("/run/{}", "x".repeat(5000)));
    let reason = release(&long, KEY).await.unwrap_err();
    assert!(reason.contains("name too long"), "{reason}");
    for gone in ["/run/netns/none-of-this-name", "/etc/passwd/x", "/etc/passwd"] {
        release_blocking(&at(gone.to_owned()), KEY).unwrap();
    }
    let other = Namespace::open(std::path::Path::new("/proc/self/ns/uts")).unwrap();
    release_blocking(&other.record, KEY).unwrap();
}

/// As when the child was killed after it had added the first qdisc.
#[tokio::test]
async fn a_qdisc_without_a_filter_is_released_if_links_were_being_tied() {
    let Some(lab) = Lab::new("killed", 2) else { return };
    let in_pod = |command: &str| run(&format!("ip netns exec {} tc {command}", lab.name));
    in_pod("qdisc add dev eth1 ingress");
    in_pod("filter add dev eth1 ingress protocol ip prio 5 u32 match u32 0 0 flowid 1:1");
    let before = lab.shown();
    in_pod("qdisc add dev eth0 ingress");
    let mut record = lab.namespace().record;
    let half = lab.shown();
    release(&record, KEY).await.unwrap();
    assert_eq!(lab.shown(), half, "another program's qdisc was removed");
    record.is_tying = true;
    release(&record, KEY).await.unwrap();
    lab.expect(&before).await;
    release_blocking(&record, KEY).unwrap();
}

#[tokio::test]
async fn a_link_that_can_t_be_redirected_keeps_no_qdisc() {
    let Some(lab) = Lab::new("half", 1) else { return };
    let before = lab.shown();
    let namespace = lab.namespace();
    let reason = crate::sys::in_child(move || {
        namespace.enter().map_err(|error| error.to_string())?;
        let mut socket = nacre_netlink::Socket::open().map_err(|error| error.to_string())?;
        let plan = super::super::plan::plan(super::super::read::read(&mut socket).unwrap()).unwrap();
        let owner = Owner {
            key: KEY.to_owned(),
            queue_pairs: 1,
        };
        // No link has this index.
        let tied = super::super::tie::redirect_link(&mut socket, &plan.ties[0], 999_999, &owner);
        tied.map_err(|error| error.to_string())
    });
    let reason = reason.await.unwrap().unwrap_err();
    assert!(reason.contains("redirecting it to its tap"), "{reason}");
    lab.expect(&before).await;
}
