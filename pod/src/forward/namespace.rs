//! Makes the listening sockets in the pod's network namespace on the host, and has the kernel hand all new
//! connections to localhost over to them. A forked child does it, since a process cannot leave a namespace
//! unnoticed. The sockets and the BPF link are all that there is: when the shim closes them, or is killed,
//! the namespace is as it was found.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use super::program::{self, IPV4_INDEX, IPV6_INDEX};
use crate::network::Namespace;
use crate::sys::{self, bpf};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The listening sockets of a pod. The kernel hands connections over as long as this exists.
#[derive(Debug)]
pub struct Listening {
    /// Takes the connections to 127.0.0.0/8.
    pub ipv4: OwnedFd,
    /// Takes the connections to ::1; None if the host has no IPv6.
    pub ipv6: Option<OwnedFd>,
    /// Attaches the program to the namespace.
    pub link: OwnedFd,
}

/// Listens in `namespace`.
///
/// # Errors
/// The step that failed, and why.
pub async fn listen_in(namespace: &Namespace) -> Result<Listening, String> {
    let made = sys::in_child_with_files(|| {
        let made = Listening::in_namespace(namespace)?;
        let files = [made.link, made.ipv4].into_iter().chain(made.ipv6);
        Ok(((), files.collect()))
    });
    let ((), fds) = made
        .await
        .map_err(|error| format!("running a child process: {error}"))??;
    let mut fds = fds.into_iter();
    let (Some(link), Some(ipv4), ipv6) = (fds.next(), fds.next(), fds.next()) else {
        return Err("the child process sent no sockets".into());
    };
    Ok(Listening { ipv4, ipv6, link })
}

/// For `map_err`: names the step that failed.
fn step<E: std::fmt::Display>(name: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{name}: {error}")
}

impl Listening {
    /// The child's part.
    fn in_namespace(namespace: &Namespace) -> Result<Self, String> {
        namespace.enter().map_err(|error| error.to_string())?;
        let ipv4 = listener((Ipv4Addr::LOCALHOST, 0).into()).map_err(step("listening on 127.0.0.1"))?;
        let ipv6 = match listener((Ipv6Addr::LOCALHOST, 0).into()) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(step("listening on ::1")(error)),
        };
        let map = bpf::create_socket_map(2).map_err(step("creating a BPF socket map"))?;
        let set = |index, socket: &OwnedFd| {
            bpf::set_socket(map.as_fd(), index, socket.as_fd()).map_err(step("filling a BPF socket map"))
        };
        set(IPV4_INDEX, &ipv4)?;
        if let Some(ipv6) = &ipv6 {
            set(IPV6_INDEX, ipv6)?;
        }
        let code = program::instructions(bpf::number(map.as_fd()));
        let program = bpf::load_socket_lookup(&code).map_err(step("loading a BPF program"))?;
        let link = bpf::link_to_namespace(program.as_fd(), namespace.file().as_fd())
            .map_err(step("attaching a BPF program to the network namespace"))?;
        Ok(Self { ipv4, ipv6, link })
    }
}

/// A listening socket on `address`, which need not be up yet: CNI may bring up the loopback device later.
fn listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Connections inherit it.
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::agent::Family;
    use std::net::TcpStream;
    use std::path::{Path, PathBuf};
    use std::sync::mpsc;

    /// The client's part: connects to two ports in a new network namespace, whose path it sends, and to a third
    /// when nothing listens there any more.
    fn client(namespace: &mpsc::Sender<PathBuf>, go_on: &mpsc::Receiver<()>) -> io::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()?;
        assert!(up.success());
        let thread = std::fs::read_link("/proc/thread-self")?;
        namespace
            .send(Path::new("/proc").join(thread).join("ns/net"))
            .unwrap();
        go_on.recv().unwrap();
        let open = (
            TcpStream::connect("127.0.0.1:4321")?,
            TcpStream::connect("[::1]:65000")?,
        );
        go_on.recv().unwrap();
        let refused = TcpStream::connect("127.0.0.1:4321").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(open);
        Ok(())
    }

    #[tokio::test]
    async fn any_port_of_localhost_is_accepted_until_the_link_is_closed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let (send_namespace, namespace) = mpsc::channel();
        let (go, go_on) = mpsc::channel();
        let client = std::thread::spawn(move || client(&send_namespace, &go_on));
        let listening = match listen_in(&Namespace::open(&namespace.recv().unwrap()).unwrap()).await {
            Ok(listening) => listening,
            Err(reason) => {
                assert!(!reason.contains("listening on"), "{reason}");
                println!("skipped: this kernel has no BPF: {reason}");
                return;
            }
        };
        go.send(()).unwrap();
        let targets = std::sync::Mutex::new(Vec::new());
        let accepting = listening.accept(|connection| {
            targets.lock().unwrap().push(connection.target());
            std::future::ready(())
        });
        let enough = async {
            while targets.lock().unwrap().len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        let seen = async {
            tokio::select! {
                failed = accepting => panic!("{failed:?}"),
                () = enough => {}
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), seen)
            .await
            .unwrap();
        go.send(()).unwrap();
        client.join().unwrap().unwrap();
        let mut targets = targets.into_inner().unwrap();
        targets.sort_by_key(|target| target.port);
        let ports: Vec<_> = targets
            .iter()
            .map(|target| (target.family, target.port))
            .collect();
        assert_eq!(ports, [(Family::IPV4, 4321), (Family::IPV6, 65000)]);
    }
}
