//! A guest with a network device, whose tap is a link of the host: TCP both ways, intact, counted and timed;
//! and a device that is added to the running guest, and removed again.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_netlink::{Socket, address, link};
use nacre_protocol::agent::Address;
use serde_json::{Value, json};

use super::exits::Exits;
use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{self, Parameters};
use super::{Build, Guest, Options, Test, Workload, test, threads};

/// The tests.
pub const TESTS: &[Test] = &[
    test(
        "64 MiB each way over virtio-net, and 1,000 round trips",
        |build| traffic(build, &["--tap", TAP]),
    ),
    test("the same with 2 queue pairs and 2 vCPUs", |build| {
        traffic(build, &["--vcpus", "2", "--tap", &format!("{TAP},queues=2")])
    }),
    test("a network device is added to a running guest and removed", attach),
];

/// Carries out orders until the test closes the connection, and serves TCP meanwhile.
pub const WORKLOAD: Workload = Workload {
    name: "network",
    run: serve,
};

/// The tap on the host, which exists as long as the VMM.
const TAP: &str = "nacreguest0";
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 2);
/// Where the guest listens, and where the host does.
const GUEST_PORT: u16 = 7000;
const HOST_PORT: u16 = 7001;
/// How much is sent each way.
const BYTES: usize = 64 << 20;
/// Data are blocks of this size, each of which begins with its number.
const BLOCK: usize = 64 << 10;
const ROUND_TRIPS: u32 = 1000;
/// Most links that either side lists.
const MAX_LINKS: usize = 64;

/// Orders of the test, over vsock: each is returned when it is done. The guest...
/// ...gives its Ethernet link an address and listens,
const SET_UP: u8 = b'u';
/// ...scans its PCI bus again,
const RESCAN: u8 = b'r';
/// ...removes the function of its Ethernet link,
const REMOVE: u8 = b'm';
/// ...connects to the host and sends all blocks.
const CONNECT: u8 = b'c';
/// First byte of a TCP connection to the guest: it reads all blocks, or returns each byte.
const SINK: u8 = b's';
const ECHO: u8 = b'e';

fn traffic(build: &Build, arguments: &[&str]) -> Result<()> {
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments,
        ..Options::default()
    })?;
    let mut orders = guest.connect()?;
    set_address(TAP, HOST)?;
    order(&mut orders, SET_UP)?;
    exchange(&guest, &mut orders)?;
    drop(orders);
    guest.finish(DEADLINE)?;
    Ok(())
}

/// Both directions and round trips, with what each cost.
fn exchange(guest: &Guest, orders: &mut UnixStream) -> Result<()> {
    let mut stream = connect(SINK)?;
    measure(guest, "host to guest", BYTES >> 20, "MiB", || {
        send_blocks(&mut stream)?;
        // The guest returns a byte when it has read everything.
        stream.read_exact(&mut [0]).context("waiting for the guest")
    })?;
    let listener = TcpListener::bind((HOST, HOST_PORT)).context("listening on the tap's address")?;
    measure(guest, "guest to host", BYTES >> 20, "MiB", || {
        orders.write_all(&[CONNECT])?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(DEADLINE))?;
        receive_blocks(&mut stream)?;
        stream.write_all(&[1])?;
        expect(orders, CONNECT)
    })?;
    let mut stream = connect(ECHO)?;
    measure(guest, "round trips", ROUND_TRIPS as usize, "round trip", || {
        for number in 0..ROUND_TRIPS {
            let mut byte = [0];
            stream.write_all(&[7])?;
            stream
                .read_exact(&mut byte)
                .with_context(|| format!("round trip {number}"))?;
            ensure!(byte == [7], "round trip {number} returned {byte:?}");
        }
        Ok(())
    })
}

fn attach(build: &Build) -> Result<()> {
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments: &["--late-tap", TAP, "--commands"],
        ..Options::default()
    })?;
    let mut orders = guest.connect()?;
    ensure!(
        failure(order(&mut orders, SET_UP)).contains("no Ethernet link"),
        "the guest has a link already"
    );
    let before = Exits::of(guest.vmm_pid())?;
    guest.command("attach-device")?;
    guest.wait_for("added a device in PCI slot", DEADLINE)?;
    order(&mut orders, RESCAN)?;
    if let (Some(before), Some(after)) = (before, Exits::of(guest.vmm_pid())?) {
        println!("        scan: {}", after.since(&before, 1));
    }
    set_address(TAP, HOST)?;
    order(&mut orders, SET_UP)?;
    exchange(&guest, &mut orders)?;
    order(&mut orders, REMOVE)?;
    guest.command("detach-device")?;
    guest.wait_for("removed the device in PCI slot", DEADLINE)?;
    ensure!(index_of(TAP)?.is_none(), "the tap is still open");
    order(&mut orders, RESCAN)?;
    ensure!(failure(order(&mut orders, SET_UP)).contains("no Ethernet link"));
    drop(orders);
    guest.finish(DEADLINE)?;
    Ok(())
}

/// The text of the error that `result` must be.
fn failure(result: Result<()>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

/// Gives the guest an order and waits until it is carried out.
fn order(orders: &mut UnixStream, order: u8) -> Result<()> {
    orders.write_all(&[order])?;
    expect(orders, order)
}

/// Reads the guest's answer: the order, or 0, the length of a reason and the reason.
fn expect(orders: &mut UnixStream, order: u8) -> Result<()> {
    let mut answer = [0];
    orders.read_exact(&mut answer)?;
    if answer == [order] {
        return Ok(());
    }
    orders.read_exact(&mut answer)?;
    let mut reason = vec![0; usize::from(answer[0])];
    orders.read_exact(&mut reason)?;
    bail!("the guest: {}", String::from_utf8_lossy(&reason))
}

/// Connects to the guest for what `purpose` says.
fn connect(purpose: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((GUEST, GUEST_PORT)), DEADLINE)
        .context("connecting to the guest")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(&[purpose])?;
    Ok(stream)
}

fn send_blocks(stream: &mut TcpStream) -> Result<()> {
    let mut block = vec![0x5a; BLOCK];
    for number in 0..BYTES / BLOCK {
        block[..8].copy_from_slice(&(number as u64).to_le_bytes());
        stream.write_all(&block)?;
    }
    Ok(())
}

fn receive_blocks(stream: &mut TcpStream) -> Result<()> {
    let (mut block, expected) = (vec![0; BLOCK], vec![0x5a; BLOCK]);
    for number in 0..BYTES / BLOCK {
        stream
            .read_exact(&mut block)
            .with_context(|| format!("reading block {number}"))?;
        let (start, rest) = block.split_at(8);
        ensure!(
            start == (number as u64).to_le_bytes() && rest == &expected[8..],
            "block {number} has changed"
        );
    }
    Ok(())
}

/// What is counted on the host for a transfer.
struct Counts {
    exits: Option<Exits>,
    packets: u64,
    /// System calls of the device's worker that read and that write, and how often it has slept.
    calls: threads::Counts,
}

impl Counts {
    fn read(guest: &Guest) -> Result<Self> {
        let calls = threads::counts(guest.vmm_pid())?;
        let calls = calls.get("net").copied().unwrap_or_default();
        let packets = |direction: &str| -> Result<u64> {
            let file = format!("/sys/class/net/{TAP}/statistics/{direction}_packets");
            Ok(fs::read_to_string(file)?.trim().parse()?)
        };
        Ok(Self {
            exits: Exits::of(guest.vmm_pid())?,
            packets: packets("rx")? + packets("tx")?,
            calls,
        })
    }
}

/// Carries out `transfer` and prints what it cost.
fn measure(
    guest: &Guest,
    what: &str,
    units: usize,
    unit: &str,
    transfer: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = Counts::read(guest)?;
    let started = Instant::now();
    transfer().with_context(|| what.to_owned())?;
    let took = started.elapsed();
    let after = Counts::read(guest)?;
    let packets = after.packets.saturating_sub(before.packets).max(1);
    let each = |index: usize| {
        let calls = after.calls[index].saturating_sub(before.calls[index]);
        calls as f64 / packets as f64
    };
    println!(
        "        {what}: {} µs per {unit}; {packets} packets, each {:.2} reads, {:.2} writes, {:.2} sleeps",
        (took / u32::try_from(units)?).as_micros(),
        each(0),
        each(1),
        each(2),
    );
    if let (Some(before), Some(after)) = (&before.exits, &after.exits) {
        let exits = after.since(before, u32::try_from(packets)?);
        println!("        {what}: per packet {exits}");
    }
    Ok(())
}

/// The index of the link `name` of this network namespace.
fn index_of(name: &str) -> Result<Option<u32>> {
    let links = Socket::open()?.dump(link::list(), MAX_LINKS, link::parse)?;
    Ok(links
        .into_iter()
        .find(|link| link.name == name)
        .map(|link| link.index))
}

/// Sets the link `name` up, with `own` as its address.
fn set_address(name: &str, own: Ipv4Addr) -> Result<()> {
    let index = index_of(name)?.with_context(|| format!("no link {name}"))?;
    let address = Address {
        address: own.octets().to_vec(),
        prefix_length: 24,
        preferred_s: u32::MAX,
        valid_s: u32::MAX,
        ..Address::default()
    };
    let mut socket = Socket::open()?;
    socket.request(address::add(index, &address))?;
    Ok(socket.request(link::set_up(index))?)
}

fn serve(_: &Parameters) -> Result<Value> {
    let mut conversation = Conversation::accept()?;
    let orders = &mut conversation.stream;
    let mut order = [0];
    while orders.read(&mut order)? == 1 {
        match carry_out(order[0]) {
            Ok(()) => orders.write_all(&order)?,
            Err(error) => {
                let mut reason = format!("{error:#}").into_bytes();
                reason.truncate(255);
                orders.write_all(&[0, u8::try_from(reason.len())?])?;
                orders.write_all(&reason)?;
            }
        }
    }
    Ok(json!({}))
}

fn carry_out(order: u8) -> Result<()> {
    match order {
        SET_UP => {
            set_address(&ethernet_link()?, GUEST)?;
            let listener = TcpListener::bind((GUEST, GUEST_PORT)).context("listening")?;
            // Ends with the guest.
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    std::thread::spawn(|| serve_stream(stream));
                }
            });
            Ok(())
        }
        RESCAN => workload::scan_pci_bus(),
        REMOVE => {
            let link = ethernet_link()?;
            // The link's device is that of virtio, which is on the PCI function.
            let function = fs::canonicalize(format!("/sys/class/net/{link}/device/.."))?;
            fs::write(function.join("remove"), "1").context("removing the function")
        }
        CONNECT => {
            let host = SocketAddr::from((HOST, HOST_PORT));
            let mut stream = TcpStream::connect_timeout(&host, Duration::from_secs(20))?;
            send_blocks(&mut stream)?;
            stream.read_exact(&mut [0]).context("waiting for the host")
        }
        other => bail!("there is no order {other}"),
    }
}

/// The name of the guest's only Ethernet link.
fn ethernet_link() -> Result<String> {
    let links = Socket::open()?.dump(link::list(), MAX_LINKS, link::parse)?;
    let link = links
        .into_iter()
        .find(|link| link.is_ethernet() && link.kind.is_empty());
    Ok(link.context("no Ethernet link")?.name)
}

/// Serves a connection of the test; it ends when the test closes it.
fn serve_stream(mut stream: TcpStream) -> Result<()> {
    let mut purpose = [0];
    stream.set_nodelay(true)?;
    stream.read_exact(&mut purpose)?;
    if purpose == [SINK] {
        receive_blocks(&mut stream)?;
        stream.write_all(&[1])?;
        return Ok(());
    }
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) => stream.write_all(&byte)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}
