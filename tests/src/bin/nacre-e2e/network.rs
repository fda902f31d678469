//! The pod's network: containers in a network namespace of the host that has veth links to another one, the
//! peer. Both are made by ip(8), which shows afterwards that the pod's is as it was found.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, output};
use nacre_tests::leaks::wait_for_exit;

use crate::{Test, core, test};
use nacre_tests::leaks::{only_process, send_sigkill};

pub const TESTS: &[Test] = &[
    core(
        "network: TCP, fragments, routes and neighbours, both ways",
        both_ways,
    ),
    test("network: an MTU of 9000 and 16 links; 17 are refused", many_links),
    test("network: what can't be tied is refused by name", refused),
    test(
        "network: as found after the shim was killed",
        as_found_after_a_kill,
    ),
    test("network: links made by CNI after Create", late_links),
];

const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes that are sent in each direction.
const SIZE: usize = 16 << 20;

/// The pod's network namespace and its peer's, removed on drop. Link `n` has the address 10.n.0.2 and
/// fd00:n::2, its peer .1 and ::1.
struct Network {
    name: String,
}

impl Network {
    fn new(links: u8, mtu: u16) -> Result<Self> {
        let network = Self {
            name: fresh_id("net"),
        };
        let (pod, peer) = (&network.name, network.peer());
        sh(&format!(
            "ip netns add {pod}; ip netns add {peer}; ip -n {pod} link set lo up"
        ))?;
        for n in 0..links {
            sh(&format!(
                "ip -n {pod} link add eth{n} mtu {mtu} type veth peer name p{n} netns {peer}
                 ip -n {peer} addr add 10.{n}.0.1/24 dev p{n}
                 ip -n {peer} addr add fd00:{n}::1/64 dev p{n} nodad
                 ip -n {peer} link set p{n} mtu {mtu} up
                 ip -n {pod} addr add 10.{n}.0.2/24 dev eth{n}
                 ip -n {pod} addr add fd00:{n}::2/64 dev eth{n} nodad
                 ip -n {pod} link set eth{n} up"
            ))?;
        }
        Ok(network)
    }

    fn peer(&self) -> String {
        format!("{}-peer", self.name)
    }

    fn flag(&self) -> String {
        format!("network:/run/netns/{}", self.name)
    }

    /// The links, qdiscs and filters of the pod's namespace. Addresses are not compared: the kernel completes
    /// IPv6's by itself.
    fn shown(&self) -> Result<String> {
        // The operational state follows late.
        let all = r#"ip -d link | sed "s/ state [A-Z]*//; s/NO-CARRIER,//; s/,LOWER_UP//"; tc qdisc
            for l in $(ls /sys/class/net); do tc filter show dev $l ingress; done"#;
        sh(&format!("ip netns exec {} sh -c '{all}'", self.name))
    }

    /// Fails if the links, qdiscs and filters are not those that `before` shows.
    fn is_as_before(&self, before: &str) -> Result<()> {
        let after = self.shown()?;
        ensure!(after == before, "the namespace was\n{before}and is\n{after}");
        Ok(())
    }

    /// Sends [`SIZE`] bytes from the peer to a server in the pod that sends back what it gets.
    fn echo(&self, address: SocketAddr) -> Result<()> {
        let file = File::open(format!("/run/netns/{}", self.peer()))?;
        let client = std::thread::spawn(move || -> Result<()> {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            exchange(TcpStream::connect_timeout(&address, DEADLINE)?)
        });
        let done = client
            .join()
            .map_err(|_| anyhow!("the client's thread panicked"))?;
        done.with_context(|| format!("sending to {address} and back"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [self.name.clone(), self.peer()] {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        // The first `ip netns add` mounts it.
        if fs::read_dir("/run/netns").is_ok_and(|mut left| left.next().is_none()) {
            let _ = Command::new("umount").arg("/run/netns").status();
        }
    }
}

fn sh(script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    output(command)?.success()
}

fn exchange(stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let pattern: Vec<u8> = (0..SIZE)
        .map(|n| (n ^ n >> 8 ^ n >> 16).to_le_bytes()[0])
        .collect();
    let mut reader = stream.try_clone()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> std::io::Result<()> {
            (&stream).write_all(&pattern)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut received = vec![0; SIZE];
        reader.read_exact(&mut received)?;
        sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        ensure!(received == pattern, "the bytes came back changed");
        Ok(())
    })
}

fn both_ways() -> Result<()> {
    let network = Network::new(1, 1400)?;
    let (pod, peer) = (&network.name, network.peer());
    sh(&format!(
        "ip -n {pod} route add default via 10.0.0.1 metric 7
         ip -n {pod} route add 192.0.2.7 dev eth0
         ip -n {pod} route add 198.51.100.0/24 via 192.0.2.7 mtu 1300
         ip -n {pod} -6 route add default via fd00:0::1
         ip -n {pod} neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
         ip -n {pod} neigh add fd00:0::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent"
    ))?;
    let before = network.shown()?;
    let routes = |family: &str| sh(&format!("ip netns exec {pod} /bin/busybox ip {family} route"));
    let on_host = [routes("-4")?, routes("-6")?];
    let script = "nc -ll -p 80 -e cat & until netstat -ltn | grep -q ':80 .*LISTEN'; do usleep 10000; done
        ping -c 1 -W 20 -s 4000 10.0.0.1 >/dev/null && ping -6 -c 1 -W 20 -s 4000 fd00:0::1 >/dev/null && echo reached
        cat; ip -4 route; echo; ip -6 route; ip neigh";
    let (id, flag) = (fresh_id("net"), network.flag());
    let run = Run {
        flags: &["--with-ns", &flag],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let mut container = run.spawn(&id)?;
    ensure!(
        container.line()? == "reached",
        "the peer is not reached from the container"
    );
    for address in ["10.0.0.2:80", "[fd00::2]:80"] {
        network.echo(address.parse()?)?;
    }
    for address in ["10.0.0.2", "fd00:0::2"] {
        sh(&format!(
            "ip netns exec {peer} /bin/busybox ping -c 1 -W 20 -s 4000 {address}"
        ))?;
    }
    let shown = container.wait_with_output()?.success()?;
    for line in on_host.iter().flat_map(|routes| routes.lines()) {
        ensure!(
            shown.contains(line.trim()),
            "the route {line:?} is missing in:\n{shown}"
        );
    }
    for neighbour in [
        "10.0.0.77 dev eth0 lladdr 02:00:00:00:00:77",
        "fd00::77 dev eth0 lladdr 02:00:00:00:00:78",
    ] {
        let is_permanent = |line: &str| line.contains(neighbour) && line.contains("PERMANENT");
        ensure!(
            shown.lines().any(is_permanent),
            "the neighbour {neighbour:?} is missing in:\n{shown}"
        );
    }
    network.is_as_before(&before)?;
    Ok(())
}

fn many_links() -> Result<()> {
    let network = Network::new(16, 9000)?;
    let before = network.shown()?;
    let flag = network.flag();
    let run = Run {
        flags: &["--with-ns", &flag],
        command: &[
            "sh",
            "-c",
            "cat /sys/class/net/eth*/mtu /sys/class/net/eth*/operstate | sort | uniq -c; ping -c 1 -W 20 -s 8900 10.0.0.1 && ping -c 1 -W 20 10.15.0.1",
        ],
        ..Run::default()
    };
    let shown = run.output(&fresh_id("net"))?.success()?;
    let mut lines = shown.lines().map(str::trim);
    ensure!(
        lines.next() == Some("16 9000") && lines.next() == Some("16 up"),
        "{shown}"
    );
    sh(&format!(
        "ip -n {} link add eth16 up type veth peer name p16 netns {}",
        network.name,
        network.peer()
    ))?;
    let id = fresh_id("net");
    let refused = run.output(&id)?.stderr;
    ctr(["containers", "delete", &id])?;
    ensure!(
        refused.contains("it has 17 links, but a pod has at most 16"),
        "{refused}"
    );
    sh(&format!("ip -n {} link del eth16", network.name))?;
    network.is_as_before(&before)?;
    Ok(())
}

fn refused() -> Result<()> {
    let network = Network::new(1, 1500)?;
    sh(&format!(
        "ip netns exec {} tc qdisc add dev eth0 clsact",
        network.name
    ))?;
    let before = network.shown()?;
    for (path, reason) in [
        ("/run/netns/none-of-this-name".to_owned(), "No such file"),
        ("/proc/1/ns/net".to_owned(), "is the host's own"),
        ("/proc/1/ns/uts".to_owned(), "is not a network namespace"),
        (
            format!("/run/netns/{}", network.name),
            "link eth0: adding an ingress qdisc: it has one already",
        ),
    ] {
        let (id, flag) = (fresh_id("net"), format!("network:{path}"));
        let run = Run {
            flags: &["--with-ns", &flag],
            command: &["true"],
            ..Run::default()
        };
        let error = run.output(&id)?.stderr;
        ctr(["containers", "delete", &id])?;
        let begin = format!("set up network: network namespace {path}: ");
        ensure!(
            error.contains(&begin) && error.contains(reason),
            "{path}: {error}"
        );
    }
    network.is_as_before(&before)?;
    Ok(())
}

fn as_found_after_a_kill() -> Result<()> {
    let network = Network::new(2, 1500)?;
    let before = network.shown()?;
    let (id, flag) = (fresh_id("net"), network.flag());
    let run = Run {
        flags: &["--with-ns", &flag],
        command: &["sleep", "1000"],
        ..Run::default()
    };
    run.detach(&id)?;
    ensure!(
        network.shown()?.contains("Egress Redirect"),
        "the links are not tied"
    );
    let shim = only_process("containerd-shim-nacre")?;
    send_sigkill(shim)?;
    wait_for_exit(shim, Instant::now() + DEADLINE)?;
    // containerd notices that the shim is dead and runs `delete`; `task delete` waits for that.
    ctr(["task", "delete", "--force", &id])?;
    ctr(["containers", "delete", &id])?.success()?;
    network.is_as_before(&before)?;
    Ok(())
}

const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "nacre-test", "plugins": [{"type": "bridge",
    "bridge": "cni-test0", "isGateway": true, "mtu": 1400, "ipam": {"type": "host-local",
    "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

/// `ctr run --cni` reads /etc/cni/net.d and runs the plugins in /opt/cni/bin.
fn late_links() -> Result<()> {
    let (list, plugins) = ("/etc/cni/net.d/00-nacre-test.conflist", "/opt/cni/bin");
    let has_plugins = fs::exists(plugins)?;
    fs::create_dir_all("/etc/cni/net.d")?;
    fs::create_dir_all("/opt/cni")?;
    if !has_plugins {
        std::os::unix::fs::symlink("/usr/lib/cni", plugins)?;
    }
    fs::write(list, CONFLIST)?;
    let run = Run {
        flags: &["--cni"],
        command: &[
            "sh",
            "-c",
            "cat /sys/class/net/eth0/operstate; ip addr show eth0; ip route; ping -c 1 -W 20 10.77.0.1 && ping -6 -c 1 -W 20 fd77::1",
        ],
        ..Run::default()
    };
    let shown = run.output(&fresh_id("cni"));
    fs::remove_file(list)?;
    if !has_plugins {
        fs::remove_file(plugins)?;
    }
    let _ = fs::remove_dir_all("/var/lib/cni/networks/nacre-test");
    let shown = shown?.success()?;
    sh("ip link del cni-test0")?;
    ensure!(
        shown.starts_with("up\n") && shown.contains("mtu 1400") && shown.contains("default via 10.77.0.1"),
        "{shown}"
    );
    Ok(())
}
