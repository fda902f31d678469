//! Port-forward: clients in the pod's network namespace on the host connect to localhost, as containerd's CRI
//! plugin does for `kubectl port-forward`, and reach servers in the guest.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Foreground, Run, fresh_id, output};
use nacre_tests::leaks::wait_for_exit;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Test, core, test};
use nacre_tests::leaks::{only_process, send_sigkill};

pub const TESTS: &[Test] = &[
    core("port-forward: IPv4 and IPv6, intact both ways", intact_both_ways),
    test("port-forward: half-close, refusal, 50 at once", ends_and_numbers),
    test("port-forward: nothing is left in the namespace", nothing_is_left),
];

const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes that are sent in each direction.
const SIZE: usize = 8 << 20;
/// What the container runs: a server that sends back what it gets, one that answers after its input has
/// ended, and one that listens to IPv6 only.
const SERVERS: &str = "nc -ll -p 80 -e cat & nc -ll -p 81 -e sh -c 'cat > /dev/null; echo done' & \
    httpd -f -p [::1]:82 -h /bin & \
    for port in 80 81 82; do \
        until netstat -ltn | grep -q \":$port .*LISTEN\"; do usleep 10000; done; \
    done; echo listening; wait";

/// A network namespace, mounted at a path and removed on drop.
struct Namespace(PathBuf);

impl Namespace {
    fn new() -> Result<Self> {
        let path = PathBuf::from("/run").join(fresh_id("netns"));
        fs::write(&path, "")?;
        let mount_point = path.clone();
        let making = std::thread::spawn(move || -> Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            let mut command = Command::new("ip");
            command.args(["link", "set", "lo", "up"]);
            output(command)?.success()?;
            let (own, flags) = ("/proc/thread-self/ns/net", MsFlags::MS_BIND);
            Ok(mount(Some(own), &mount_point, None::<&str>, flags, None::<&str>)?)
        });
        let made = making.join();
        made.map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))??;
        Ok(Self(path))
    }

    /// Connects to `address` from a thread that enters the namespace.
    fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        let file = fs::File::open(&self.0)?;
        let connecting = std::thread::spawn(move || -> Result<TcpStream> {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream)
        });
        let connected = connecting
            .join()
            .map_err(|_| anyhow::anyhow!("the client's thread panicked"))?;
        connected.with_context(|| format!("connecting to {address}"))
    }

    /// Waits until the shim forwards connections: until a connection to a port of the server is accepted.
    /// It is refused before, and nothing announces the change.
    fn wait_until_forwarded(&self) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        while self.connect(ipv4(80)).is_err() {
            ensure!(Instant::now() < until, "no connection was accepted");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The sockets in the namespace, without connections that wait for late packets.
    fn sockets(&self) -> Result<String> {
        let sockets = "cat /proc/net/tcp /proc/net/tcp6 | grep -v ' 06 '";
        let path = format!("--net={}", self.0.display());
        let mut command = Command::new("nsenter");
        command.args([path.as_str(), "sh", "-c", sockets]);
        output(command)?.success()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let unmounted = umount2(&self.0, MntFlags::MNT_DETACH).map_err(std::io::Error::from);
        if let Err(error) = unmounted.and_then(|()| fs::remove_file(&self.0)) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

fn ipv4(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn ipv6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

/// A container whose servers listen, in a network namespace of its own.
struct Pod {
    namespace: Namespace,
    container: Foreground,
}

impl Pod {
    fn start() -> Result<Self> {
        let namespace = Namespace::new()?;
        let id = fresh_id("forward");
        let with_namespace = format!("network:{}", namespace.0.display());
        let run = Run {
            flags: &["--with-ns", &with_namespace],
            command: &["sh", "-c", SERVERS],
            ..Run::default()
        };
        let mut container = run.spawn(&id)?;
        ensure!(container.line()? == "listening", "the servers do not listen");
        namespace.wait_until_forwarded()?;
        Ok(Self { namespace, container })
    }

    fn end(self) -> Result<Namespace> {
        self.container.kill("SIGKILL")?;
        self.container.wait_with_output()?;
        Ok(self.namespace)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0_u32..)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .take(length)
        .collect()
}

/// Sends `bytes` and reads until the end meanwhile.
fn exchange(mut stream: TcpStream, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut sending = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        sending.write_all(&bytes)?;
        sending.shutdown(Shutdown::Write)
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got)?;
    sender
        .join()
        .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(got)
}

/// Sends `text` and reads it back.
fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut got = vec![0; text.len()];
    stream
        .read_exact(&mut got)
        .with_context(|| format!("reading {text:?} back"))?;
    ensure!(got == text.as_bytes(), "{got:?} came back, not {text:?}");
    Ok(())
}

fn intact_both_ways() -> Result<()> {
    let pod = Pod::start()?;
    let sent = pattern(SIZE);
    for address in [ipv4(80), ipv6(80)] {
        let got = exchange(pod.namespace.connect(address)?, sent.clone())?;
        ensure!(
            got == sent,
            "{} bytes came back from {address}, not those sent",
            got.len()
        );
    }
    // A server that listens to the other family only.
    let request = b"GET /busybox HTTP/1.0\r\n\r\n".to_vec();
    let got = exchange(pod.namespace.connect(ipv4(82))?, request)?;
    ensure!(
        got.starts_with(b"HTTP/1.1 200 OK"),
        "{} bytes without an answer's beginning from a server that listens to IPv6 only",
        got.len()
    );
    pod.end().map(drop)
}

fn ends_and_numbers() -> Result<()> {
    let pod = Pod::start()?;
    let got = exchange(pod.namespace.connect(ipv4(81))?, pattern(1 << 20))?;
    ensure!(got == b"done\n", "{got:?} after a half-close");
    for address in [ipv4(83), ipv6(83)] {
        // The reset comes after the connection, or before the client has seen that it is connected.
        let connected = pod.namespace.connect(address);
        let error = connected
            .and_then(|mut refused| Ok(refused.read(&mut [0])?))
            .err()
            .context("the end of data from a port that refuses")?;
        let kind = error.root_cause().downcast_ref().map(std::io::Error::kind);
        ensure!(
            kind == Some(std::io::ErrorKind::ConnectionReset),
            "{address}: {error:#}"
        );
    }
    // One after the other: busybox's nc has a backlog of 2 and a full one costs its clients seconds.
    let mut streams = Vec::new();
    for index in 0..50 {
        let mut stream = pod.namespace.connect(ipv4(80))?;
        echo(&mut stream, &format!("first {index:04}"))?;
        streams.push(stream);
    }
    for (index, mut stream) in streams.into_iter().enumerate() {
        echo(&mut stream, &format!("again {index:04}"))?;
    }
    pod.end().map(drop)
}

fn nothing_is_left() -> Result<()> {
    let fresh = Namespace::new()?.sockets()?;
    let namespace = {
        let pod = Pod::start()?;
        ensure!(
            pod.namespace.sockets()? != fresh,
            "no socket listens in the namespace"
        );
        pod.end()?
    };
    ensure!(
        namespace.sockets()? == fresh,
        "sockets are left: {}",
        namespace.sockets()?
    );
    ensure!(
        namespace.connect(ipv4(80)).is_err(),
        "connections are accepted after the pod's end"
    );
    let pod = Pod::start()?;
    let open = pod.namespace.connect(ipv4(80))?;
    let shim = only_process("containerd-shim-nacre")?;
    send_sigkill(shim)?;
    wait_for_exit(shim, Instant::now() + DEADLINE)?;
    ensure!((&open).read(&mut [0]).is_err(), "a connection outlives the shim");
    drop(open);
    ensure!(
        pod.namespace.sockets()? == fresh,
        "sockets are left by a killed shim"
    );
    ensure!(
        pod.namespace.connect(ipv4(80)).is_err(),
        "a killed shim accepts connections"
    );
    // ctr removes the container once containerd has noticed that the shim is dead.
    pod.container.wait_with_output()?;
    Ok(())
}
