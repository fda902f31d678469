//! The targets of devices other than the file server.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::session::{Attack, Session};
use crate::virtio::testing::HOTPLUG;
use crate::virtio::vsock::{Host, Ports, Refused};
use crate::virtio::{balloon as balloon_device, blk as blk_device, mem as mem_device};
use crate::virtio::{net as net_device, vsock as vsock_device};
use nacre_fuzzing::Input;

/// Bytes of the disk.
const DISK_BYTES: u64 = 1 << 20;

thread_local! {
    static BALLOON: RefCell<Session> = RefCell::new(Session::new(&[16, 16, 32], |env| {
        balloon_device::spawn(env).unwrap()
    }));
    static BLK: [RefCell<Session>; 2] = [true, false].map(|io_uring| RefCell::new(blk_session(io_uring)));
    static MEM: RefCell<Session> = RefCell::new(mem_session());
    static NET: RefCell<(Session, NetAttack)> = RefCell::new(net_session());
    static VSOCK: RefCell<(Session, VsockAttack)> = RefCell::new(vsock_session());
}

/// Runs `data`, whose first bytes are the features that the driver accepts, without a host's side.
fn run(session: &RefCell<Session>, data: &[u8], attack: &mut impl Attack) {
    let (mut input, mut session) = (Input(data), session.borrow_mut());
    let features = input.u64();
    session.restart(features);
    session.run(&mut input, attack);
}

/// Requests that are bytes of the input.
struct Raw<const QUEUE: usize>;

impl<const QUEUE: usize> Attack for Raw<QUEUE> {
    const QUEUE: usize = QUEUE;

    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        input.sized()
    }
}

pub fn balloon(data: &[u8]) {
    BALLOON.with(|session| run(session, data, &mut Raw::<2>));
}

fn mem_session() -> Session {
    let config = mem_device::Config {
        max_bytes: HOTPLUG.bytes,
        on_reached: Box::new(|_| {}),
    };
    let session = Session::new(&[64], |env| mem_device::spawn(config, env).unwrap());
    let plugger = session.device.plugger().unwrap();
    plugger.request(HOTPLUG.bytes, HOTPLUG.bytes / 2);
    session
}

struct MemAttack;

impl Attack for MemAttack {
    const QUEUE: usize = 0;

    /// A request (virtio 1.2, 5.15.6) for blocks in or near the region.
    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let (kind, block, blocks) = (input.u8(), input.u8(), input.u16());
        let address = match block {
            255 => input.u64(),
            block => HOTPLUG.start + u64::from(block) * (1 << 20),
        };
        let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(address.to_le_bytes());
        bytes.extend(blocks.to_le_bytes());
        bytes.extend([0; 6]);
        bytes
    }
}

pub fn mem(data: &[u8]) {
    MEM.with(|session| {
        run(session, data, &mut MemAttack);
        let sizes = session.borrow().device.plugger().unwrap().sizes();
        assert!(sizes.plugged <= HOTPLUG.bytes / 2, "{sizes:?}");
    });
}

fn blk_session(io_uring: bool) -> Session {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let mut config = blk_device::Config::new(file.into(), false, "disk", 2).unwrap();
    config.io_uring = io_uring;
    Session::new(&[256, 256], |env| blk_device::spawn(config, env).unwrap())
}

struct BlkAttack;

impl Attack for BlkAttack {
    const QUEUE: usize = 0;

    /// A header (virtio 1.2, 5.2.6) and data, such as a range.
    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let mut bytes = vec![input.u8(), 0, 0, 0, 0, 0, 0, 0];
        let sector = match input.u16() {
            0xffff => input.u64(),
            sector => sector.into(),
        };
        bytes.extend(sector.to_le_bytes());
        bytes.extend(input.sized());
        bytes
    }
}

pub fn blk(data: &[u8]) {
    let engine = usize::from(data.first().is_some_and(|first| first & 1 != 0));
    BLK.with(|sessions| run(&sessions[engine], data, &mut BlkAttack));
}

/// The host's ends of two taps.
struct NetAttack([OwnedFd; 2]);

impl Attack for NetAttack {
    const QUEUE: usize = 1;

    /// A virtio-net header and a frame.
    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        input.sized()
    }

    fn host(&mut self, input: &mut Input<'_>) {
        let tap = &self.0[input.below(2)];
        if input.u8() & 1 == 0 {
            // A kernel gives whole headers. Fails if the queue is full.
            let mut packet = vec![0; 12];
            packet.extend(input.sized());
            let _ = rustix::io::write(tap, &packet);
        } else {
            // Fails if there is no packet.
            let _ = rustix::io::read(tap, &mut [0; 65_600]);
        }
    }
}

fn net_session() -> (Session, NetAttack) {
    let pair = || {
        let kind = (AddressFamily::Unix, SockType::SeqPacket);
        let (ours, theirs) = socketpair(kind.0, kind.1, None, SockFlag::SOCK_CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        (ours, theirs)
    };
    let ((first, its), (second, others)) = (pair(), pair());
    let config = net_device::Config::of_sockets(vec![its, others]);
    let session = Session::new(&[256, 256, 256, 256, 16], |env| {
        net_device::spawn(config, env).unwrap()
    });
    (session, NetAttack([first, second]))
}

pub fn net(data: &[u8]) {
    NET.with_borrow_mut(|(session, attack)| {
        let mut input = Input(data);
        session.restart(input.u64());
        session.run(&mut input, attack);
        for tap in &attack.0 {
            while rustix::io::read(tap, &mut [0; 65_600]).is_ok() {}
        }
    });
}

/// Accepts ports below 100.
struct AnyHost(Sender<UnixStream>);

impl Host for AnyHost {
    fn expects(&mut self, ports: Ports) -> bool {
        ports.host < 100
    }

    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true).map_err(|_| Refused)?;
        if ports.host == 99 {
            return Err(Refused);
        }
        self.0.send(stream).map_err(|_| Refused)
    }
}

struct VsockAttack {
    connected: Receiver<UnixStream>,
    streams: Vec<UnixStream>,
}

impl Attack for VsockAttack {
    const QUEUE: usize = 1;

    /// A header (virtio 1.2, 5.10.6) of which any byte may be wrong, and data.
    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let (op, flags, ports) = (input.u8(), input.u8(), input.u8());
        let (buf_alloc, fwd_cnt) = (u32::from(input.u16()) << 4, u32::from(input.u8()));
        let patch = input.u16();
        let data = input.sized();
        let mut bytes = Vec::new();
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(u32::from(ports >> 4).to_le_bytes());
        bytes.extend((93 + u32::from(ports & 7)).to_le_bytes());
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend([1, 0, op & 0xf, 0]);
        bytes.extend(u32::from(flags).to_le_bytes());
        bytes.extend(buf_alloc.to_le_bytes());
        bytes.extend(fwd_cnt.to_le_bytes());
        let [at, value] = patch.to_le_bytes();
        if let Some(byte) = bytes.get_mut(usize::from(at).wrapping_sub(1)) {
            *byte = value;
        }
        bytes.extend(data);
        bytes
    }

    fn host(&mut self, input: &mut Input<'_>) {
        self.streams.extend(self.connected.try_iter());
        if self.streams.is_empty() {
            return;
        }
        let index = input.below(self.streams.len());
        let stream = &mut self.streams[index];
        // All of these fail if the device has closed its end.
        match input.u8() % 4 {
            0 => drop(stream.write(&input.sized())),
            1 => drop(stream.read(&mut [0; 4096])),
            2 => drop(stream.shutdown(std::net::Shutdown::Write)),
            _ => drop(self.streams.remove(index)),
        }
    }
}

fn vsock_session() -> (Session, VsockAttack) {
    let (sender, connected) = channel();
    let config = vsock_device::Config {
        host: Box::new(AnyHost(sender)),
        listener: None,
    };
    let session = Session::new(&[256, 256, 16], |env| vsock_device::spawn(config, env).unwrap());
    let streams = Vec::new();
    (session, VsockAttack { connected, streams })
}

pub fn vsock(data: &[u8]) {
    VSOCK.with_borrow_mut(|(session, attack)| {
        let mut input = Input(data);
        session.restart(input.u64());
        for buffer in 0..16 {
            let at = crate::virtio::testing::MEMORY_SIZE / 2 + buffer * 4096;
            session
                .driver
                .offer(0, &[crate::virtio::testing::writable(at, 4096)]);
        }
        session.driver.kick(0);
        session.run(&mut input, attack);
        attack.streams.extend(attack.connected.try_iter());
        attack.streams.clear();
    });
}
