//! The pod's network: the host, other pods, both families, host ports, MTU, fragments, many interfaces.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::plain_pod;
use crate::containerd::ctr::{DEADLINE, output};
use crate::cri::node::Node;
use crate::cri::pod::{Container, Pod, this_program};
use crate::cri::{Case, PodKind, calls, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("network");

pub const CASES: &[Case] = &[
    in_pod("network: TCP from the host, both families", &POD, from_host),
    in_pod("network: TCP to the host, both families", &POD, to_host),
    calls("network: between pods, both families", between_pods),
    in_pod("network: echo requests, whole and in fragments", &POD, pings),
    in_pod("network: UDP, whole and in fragments", &POD, udp),
    in_pod("network: containers of a pod by localhost", &POD, localhost),
    in_pod("network: a closed port refuses", &POD, closed),
    in_pod("network: a pod reaches itself by its address", &POD, itself),
    in_pod("network: an unprivileged user serves port 80", &POD, unprivileged),
    calls("network: MTU 1400", |node| mtu(node, "1400", 1372)).long(),
    calls("network: MTU 9000", |node| mtu(node, "9000", 8972)),
    calls("network: a host port, TCP and UDP", host_port),
    calls("network: rates from annotations hold", rates),
    calls("network: 4 interfaces", |node| many_links(node, "3")),
    calls("network: 16 interfaces", |node| many_links(node, "15")).long(),
    calls("network: an interface without an address", bare_link),
    in_pod("network: it stays when containers restart", &POD, stays),
];

/// Where pods reach the host.
pub(super) const HOST: [&str; 2] = ["10.88.0.1", "fd88::1"];

/// A served file's size, bytes.
const SIZE: usize = 1_000_000;

/// An address and a port, as the standard library and `wget` take them.
fn at(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// Serves files over HTTP, on all addresses.
fn web_server<'p>(pod: &'p Pod<'_>, port: u16) -> Result<Container<'p>> {
    let script = format!(
        "mkdir /www; echo hello >/www/hello; yes 0123456789 | head -c {SIZE} >/www/large
        httpd -p {port} -h /www && echo up; exec sleep 1000000"
    );
    let server = pod.start(&script, Value::Null)?;
    server.prints("up")?;
    Ok(server)
}

pub(super) fn get(address: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no end of the header")?;
    Ok(answer.split_off(head + 4))
}

/// Whether `bytes` are what `yes 0123456789 | head -c N` prints.
fn intact(bytes: &[u8]) -> bool {
    let pattern = b"0123456789\n";
    bytes
        .chunks(pattern.len())
        .all(|piece| pattern.starts_with(piece))
}

fn from_host(pod: &Pod<'_>) -> Result<Outcome> {
    let _server = web_server(pod, 80)?;
    let mut seen = String::new();
    for address in pod.addresses()? {
        let large = get(&at(&address, 80), "large")?;
        seen.push_str(&format!("{} bytes, intact: {}\n", large.len(), intact(&large)));
    }
    Ok(Outcome::text(seen))
}

fn to_host(pod: &Pod<'_>) -> Result<Outcome> {
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let mut seen = String::new();
    for (host, address) in HOST.iter().zip(pod.addresses()?) {
        let listener = TcpListener::bind((*host, 0))?;
        let port = listener.local_addr()?.port();
        let receive = std::thread::spawn(move || -> Result<(usize, bool, String)> {
            let (mut stream, from) = listener.accept()?;
            stream.set_read_timeout(Some(DEADLINE))?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            Ok((all.len(), intact(&all), from.ip().to_string()))
        });
        let script = format!("yes 0123456789 | head -c {SIZE} | nc {host} {port}; echo $?");
        let code = container.output(&script)?;
        let (length, intact, from) = receive.join().ok().context("a thread panicked")??;
        ensure!(from == address, "the host sees {from}, not {address}");
        seen.push_str(&format!("{length} bytes, intact: {intact}, nc: {code}"));
    }
    Ok(Outcome::text(seen))
}

fn between_pods(node: &Node) -> Result<Outcome> {
    let (one, two) = (node.pod(Value::Null)?, node.pod(Value::Null)?);
    let _server = web_server(&one, 80)?;
    let client = two.start("exec sleep 1000000", Value::Null)?;
    let mut seen = String::new();
    for address in one.addresses()? {
        let url = at(&address, 80);
        let script = format!(
            "wget -q -O /tmp/got http://{url}/large; yes 0123456789 | head -c {SIZE} | cmp - /tmp/got && echo same
            ping -c 1 {address} >/dev/null && echo reached"
        );
        seen.push_str(&client.output(&script)?);
    }
    two.remove()?;
    one.remove()?;
    Ok(Outcome::text(seen))
}

fn pings(pod: &Pod<'_>) -> Result<Outcome> {
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let mut seen = String::new();
    for (host, address) in HOST.iter().zip(pod.addresses()?) {
        for size in ["56", "1472", "4000", "20000"] {
            let script = format!("ping -c 1 -s {size} {host} >/dev/null; echo {size}: $?");
            seen.push_str(&container.output(&script)?);
            let mut ping = Command::new("busybox");
            ping.args(["ping", "-c", "1", "-s", size, &address]);
            let answered = output(ping)?.code;
            seen.push_str(&format!("from the host: {answered:?}\n"));
        }
    }
    Ok(Outcome::text(seen))
}

/// Answers each datagram with itself, until it is killed. Runs in a pod.
///
/// # Errors
/// If the socket fails.
pub fn echo_datagrams(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    println!("up");
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(buffer.get(..length).unwrap_or_default(), from)?;
    }
}

/// Whether a datagram of `size` bytes that is sent from `from` to `to` comes back unchanged.
fn echoed(from: &str, to: &str, size: usize) -> Result<bool> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect(to)?;
    let data: Vec<u8> = b"0123456789\n".iter().copied().cycle().take(size).collect();
    socket.send(&data)?;
    let mut back = vec![0; 65536];
    let length = socket
        .recv(&mut back)
        .with_context(|| format!("{size} bytes to {to}"))?;
    Ok(back.get(..length) == Some(&data))
}

fn udp(pod: &Pod<'_>) -> Result<Outcome> {
    let server = pod.start("", this_program(&["--echo-datagrams", "7000"])?)?;
    server.prints("up")?;
    let mut seen = String::new();
    for (host, address) in HOST.iter().zip(pod.addresses()?) {
        for size in [0, 1, 1472, 8000, 60000] {
            let same = echoed(host, &at(&address, 7000), size)?;
            seen.push_str(&format!("{size}: {same}\n"));
        }
    }
    Ok(Outcome::text(seen))
}

fn localhost(pod: &Pod<'_>) -> Result<Outcome> {
    let _server = web_server(pod, 8080)?;
    let script = "for a in 127.0.0.1 '[::1]' localhost; do wget -q -O - http://$a:8080/hello; done";
    pod.run(script, Value::Null)
}

fn closed(pod: &Pod<'_>) -> Result<Outcome> {
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let mut seen = String::new();
    for (host, address) in HOST.iter().zip(pod.addresses()?) {
        let error = TcpStream::connect(at(&address, 81))
            .err()
            .map(|error| error.kind());
        seen.push_str(&format!("{error:?}\n"));
        let outcome = container.exec(&format!("nc {host} 81 </dev/null"))?;
        seen.push_str(&outcome.stderr);
    }
    Ok(Outcome::text(seen))
}

fn itself(pod: &Pod<'_>) -> Result<Outcome> {
    let server = web_server(pod, 80)?;
    let mut seen = String::new();
    for address in pod.addresses()? {
        seen.push_str(&server.output(&format!("wget -q -O - http://{}/hello", at(&address, 80)))?);
    }
    Ok(Outcome::text(seen))
}

fn unprivileged(pod: &Pod<'_>) -> Result<Outcome> {
    let user = json!({"linux": {"security_context": {
        "run_as_user": {"value": 1000}, "capabilities": {"drop_capabilities": ["ALL"]},
    }}});
    let script = "echo hello >/tmp/hello; httpd -p 80 -h /tmp && echo up; exec sleep 1000000";
    let server = pod.start(script, user)?;
    server.prints("up")?;
    let [first, _] = pod.addresses()?;
    let seen = get(&at(&first, 80), "hello")?;
    Ok(Outcome::text(String::from_utf8_lossy(&seen)))
}

fn mtu(node: &Node, mtu: &str, payload: usize) -> Result<Outcome> {
    let pod = node.pod(json!({"annotations": {"lab/mtu": mtu}}))?;
    let server = web_server(&pod, 80)?;
    let mut seen = server.output("cat /sys/class/net/eth0/mtu")?;
    for (host, address) in HOST.iter().zip(pod.addresses()?) {
        let large = get(&at(&address, 80), "large")?;
        seen.push_str(&format!("{} bytes, intact: {}\n", large.len(), intact(&large)));
        let script = format!("ping -c 1 -s {payload} {host} >/dev/null; echo $?");
        seen.push_str(&server.output(&script)?);
    }
    pod.remove()?;
    Ok(Outcome::text(seen))
}

fn host_port(node: &Node) -> Result<Outcome> {
    let mapping = json!({"port_mappings": [
        {"protocol": "TCP", "container_port": 80, "host_port": 18080},
        {"protocol": "UDP", "container_port": 7000, "host_port": 18080},
    ]});
    let pod = node.pod(mapping)?;
    let _server = web_server(&pod, 80)?;
    let echo = pod.start("", this_program(&["--echo-datagrams", "7000"])?)?;
    echo.prints("up")?;
    let mut seen = String::new();
    for host in HOST {
        seen.push_str(&String::from_utf8_lossy(&get(&at(host, 18080), "hello")?));
        for size in [1, 1400, 8000] {
            seen.push_str(&format!("{size}: {}\n", echoed(host, &at(host, 18080), size)?));
        }
    }
    pod.remove()?;
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = output(Command::new(program))?.success()?;
        let left: Vec<&str> = rules.lines().filter(|rule| rule.contains("18080")).collect();
        ensure!(left.is_empty(), "{program}: {left:?}");
    }
    Ok(Outcome::text(seen))
}

/// A limit of the pod's network and what is sent against it.
struct Rate {
    /// The annotation's value, bits per second.
    bits: u64,
    /// Bytes that are sent: some seconds' worth.
    size: usize,
}

/// containerd asks for a burst of 512 MiB, and the bandwidth plugin keeps the burst's duration in 32 bits. Just below
/// 1 Mbit/s and half of it, a second's worth or less is left of it; with a round rate, the first 20 MB or more would
/// pass unlimited.
const RATES: [Rate; 2] = [
    Rate {
        bits: 999_900,
        size: 500_000,
    },
    Rate {
        bits: 499_950,
        size: 300_000,
    },
];

/// What passes unlimited at first with one of [`RATES`], bytes.
const BURST: f64 = 80_000.0;

impl Rate {
    /// Fails if all was sent in less time than the limit allows.
    fn holds(&self, node: &Node, direction: &str, took: Duration) -> Result<()> {
        let bytes_per_second = self.bits as f64 / 8.0;
        let seconds = took.as_secs_f64();
        let allowed = BURST + seconds * bytes_per_second;
        node.figure(&format!(
            "{direction}: {} bytes in {seconds:.2} s, limit {bytes_per_second:.0} bytes/s",
            self.size
        ));
        ensure!(
            self.size as f64 <= allowed,
            "{direction}: {} bytes in {seconds:.2} s, allowed were {allowed:.0}",
            self.size
        );
        Ok(())
    }
}

fn rates(node: &Node) -> Result<Outcome> {
    let [ingress, egress] = RATES;
    let annotations = json!({
        "kubernetes.io/ingress-bandwidth": ingress.bits.to_string(),
        "kubernetes.io/egress-bandwidth": egress.bits.to_string(),
    });
    let pod = node.pod(json!({"annotations": annotations}))?;
    ingress.holds(node, "to the pod", time_to_pod(&pod, ingress.size)?)?;
    egress.holds(node, "from the pod", time_from_pod(&pod, egress.size)?)?;
    pod.remove()?;
    Ok(Outcome::text("both limits hold"))
}

/// How long a pod takes to receive `size` bytes from the host. Its end of the connection is closed when it has all.
pub(super) fn time_to_pod(pod: &Pod<'_>, size: usize) -> Result<Duration> {
    let listener = TcpListener::bind((HOST[0], 0))?;
    let port = listener.local_addr()?.port();
    let script = format!("sleep 1000000 | nc {} {port} | wc -c", HOST[0]);
    let receiver = pod.start(&script, Value::Null)?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let started = Instant::now();
    stream.write_all(&vec![0; size])?;
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut [0])? == 0, "the pod sends something");
    let took = started.elapsed();
    receiver.prints(&size.to_string())?;
    receiver.remove()?;
    Ok(took)
}

/// How long the host takes to receive `size` bytes from a pod.
pub(super) fn time_from_pod(pod: &Pod<'_>, size: usize) -> Result<Duration> {
    let listener = TcpListener::bind((HOST[0], 0))?;
    let port = listener.local_addr()?.port();
    let script = format!("head -c {size} /dev/zero | nc {} {port}", HOST[0]);
    let sender = pod.start(&script, Value::Null)?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let started = Instant::now();
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let took = started.elapsed();
    ensure!(all.len() == size, "{} of {size} bytes came", all.len());
    sender.remove()?;
    Ok(took)
}

/// `more` interfaces beside eth0.
fn many_links(node: &Node, more: &str) -> Result<Outcome> {
    let pod = node.pod(json!({"annotations": {"lab/links": more}}))?;
    let script = "ls /sys/class/net | grep -E '^(net|eth)' | sort -V | tr '\\n' ' '
        ip -o -4 addr | awk '$2 ~ /^net/ {print $2, $4}' | sort -V; ip route | grep -c 10.99";
    let outcome = pod.run(script, Value::Null)?;
    let _server = web_server(&pod, 80)?;
    let [first, _] = pod.addresses()?;
    ensure!(get(&at(&first, 80), "hello")? == b"hello\n");
    pod.remove()?;
    Ok(outcome)
}

fn bare_link(node: &Node) -> Result<Outcome> {
    let pod = node.pod(json!({"annotations": {"lab/bare-links": "1"}}))?;
    let script = "cat /sys/class/net/bare0/operstate /sys/class/net/eth0/operstate; ip -o -4 addr show dev bare0 | wc -l; ping -c 1 10.88.0.1 >/dev/null; echo $?";
    let outcome = pod.run(script, Value::Null)?;
    pod.remove()?;
    Ok(outcome)
}

fn stays(pod: &Pod<'_>) -> Result<Outcome> {
    let addresses = pod.addresses()?;
    let mut seen = String::new();
    for _ in 0..3 {
        let server = web_server(pod, 80)?;
        for address in &addresses {
            seen.push_str(&String::from_utf8_lossy(&get(&at(address, 80), "hello")?));
        }
        server.remove()?;
    }
    Ok(Outcome::text(seen))
}
