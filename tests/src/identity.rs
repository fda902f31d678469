//! What makes a guest a machine of its own, as a program in one of its containers finds it. `nacre-identity` prints
//! it, and `nacre-e2e` compares that of pods that continue from one template.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, connect, ipproto, recv, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::tls::{Certificate, Hello, handshake};

/// AT_RANDOM of getauxval(3): the address of 16 bytes, of which libc makes the stack canary.
const AT_RANDOM: u64 = 25;
/// The mappings whose addresses are random in each process: the stack, the kernel's page of code, and the first
/// one, which is the program that was executed.
const MAPPINGS: [&str; 3] = ["[stack]", "[vdso]", ""];
/// Nobody listens there: the guest's kernel answers the first packet by a reset.
const CLOSED_PORT: u16 = 9;
/// With two connections, two pods look alike by chance once in 10^8 pairs or so.
const SOURCE_PORTS: [u16; 2] = [40_001, 40_002];
/// The kernel adds the wall clock to the hash of a connection's addresses, in units of 2^6 ns.
const CLOCK_SHIFT: u32 = 6;

/// What must differ between any two guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 16 bytes of getrandom(2).
    pub getrandom: String,
    /// The first 16 bytes of /dev/urandom.
    pub urandom: String,
    /// A random UUID of the kernel.
    pub uuid: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// /etc/machine-id, if there is one.
    pub machine_id: Option<String>,
    /// The bytes at AT_RANDOM, of which libc makes the stack canary.
    pub canary: String,
    /// The addresses of [`MAPPINGS`].
    pub layout: String,
    /// Of one TCP connection from each of [`SOURCE_PORTS`].
    pub tcp: [SequenceHash; 2],
    /// The ClientHello and the ServerHello of a TLS handshake within this guest.
    pub tls: [Hello; 2],
}

/// The hash of a connection's addresses with a secret of the kernel, from its initial sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceHash {
    /// At least so much.
    pub hash: u32,
    /// It is not more than this above [`SequenceHash::hash`]: what the clock advanced while the connection was made.
    pub uncertainty: u32,
}

impl SequenceHash {
    /// Whether both may be the same hash.
    #[must_use]
    pub fn may_equal(self, other: Self) -> bool {
        let above = |one: Self, other: Self| one.hash.wrapping_sub(other.hash) <= other.uncertainty;
        above(self, other) || above(other, self)
    }
}

impl Identity {
    /// That of this guest and process. The TLS server has `certificate`.
    ///
    /// # Errors
    /// If a part can't be read, or if the certificate is not valid by this guest's clock. A raw socket needs
    /// CAP_NET_RAW.
    pub fn read(certificate: &Certificate) -> Result<Self> {
        let mut random = [0; 16];
        let read = getrandom(&mut random, GetRandomFlags::empty())?;
        ensure!(read == random.len(), "getrandom: {read} bytes");
        let mut urandom = [0; 16];
        File::open("/dev/urandom")?.read_exact_at(&mut urandom, 0)?;
        let of_kernel = |name: &str| -> Result<String> {
            let text = fs::read_to_string(format!("/proc/sys/kernel/random/{name}"))?;
            Ok(text.trim().to_owned())
        };
        Ok(Self {
            getrandom: hex(&random),
            urandom: hex(&urandom),
            uuid: of_kernel("uuid")?,
            boot_id: of_kernel("boot_id")?,
            machine_id: fs::read_to_string("/etc/machine-id").ok(),
            canary: canary()?,
            layout: layout()?,
            tcp: [sequence_hash(SOURCE_PORTS[0])?, sequence_hash(SOURCE_PORTS[1])?],
            tls: handshake(certificate)?,
        })
    }

    /// The parts that are equal in `self` and `other`, by name.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Vec<&'static str> {
        let tcp = self
            .tcp
            .iter()
            .zip(&other.tcp)
            .all(|(one, other)| one.may_equal(*other));
        let tls = |part: fn(&Hello) -> &String| {
            let mut ends = self.tls.iter().zip(&other.tls);
            ends.any(|(one, other)| part(one) == part(other))
        };
        let parts = [
            ("getrandom", self.getrandom == other.getrandom),
            ("urandom", self.urandom == other.urandom),
            ("uuid", self.uuid == other.uuid),
            ("boot_id", self.boot_id == other.boot_id),
            (
                "machine_id",
                self.machine_id.is_some() && self.machine_id == other.machine_id,
            ),
            ("canary", self.canary == other.canary),
            ("layout", self.layout == other.layout),
            ("TCP sequence numbers", tcp),
            ("TLS random", tls(|hello| &hello.random)),
            ("TLS key share", tls(|hello| &hello.key_share)),
        ];
        parts
            .into_iter()
            .filter(|(_, same)| *same)
            .map(|(name, _)| name)
            .collect()
    }
}

/// The wall clock, in ns since 1970.
///
/// # Errors
/// If it is before 1970.
pub fn clock_ns() -> Result<u64> {
    Ok(u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos(),
    )?)
}

/// Two digits per byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn canary() -> Result<String> {
    let auxv = fs::read("/proc/self/auxv")?;
    let (words, _) = auxv.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let (pairs, _) = words.as_chunks::<2>();
    let found = pairs.iter().find(|[kind, _]| *kind == AT_RANDOM);
    let [_, address] = found.context("no AT_RANDOM")?;
    let mut bytes = [0; 16];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, *address)?;
    Ok(hex(&bytes))
}

fn layout() -> Result<String> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let addresses = MAPPINGS.map(|name| {
        let line = maps.lines().find(|line| line.ends_with(name))?;
        line.split('-').next()
    });
    let addresses: Option<Vec<&str>> = addresses.into_iter().collect();
    Ok(addresses.context(maps.clone())?.join(" "))
}

/// Connects from `source` to a closed port of this guest, and reads the first packet by a raw socket.
fn sequence_hash(source: u16) -> Result<SequenceHash> {
    let open = |kind, protocol| socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, protocol);
    let raw = open(SocketType::RAW, Some(ipproto::TCP)).context("a raw socket")?;
    set_socket_timeout(&raw, Timeout::Recv, Some(Duration::from_secs(10)))?;
    let tcp = open(SocketType::STREAM, None)?;
    set_socket_reuseaddr(&tcp, true)?;
    bind(&tcp, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, source))?;
    let before = clock_ns()?;
    let connected = connect(&tcp, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, CLOSED_PORT));
    let after = clock_ns()?;
    ensure!(connected == Err(Errno::CONNREFUSED), "connect: {connected:?}");
    let mut packet = [0; 128];
    loop {
        let (length, _) = recv(&raw, &mut packet[..], RecvFlags::empty()).context("no packet")?;
        let header = usize::from(packet[0] & 15) * 4;
        let field = packet.get(header..length).and_then(|tcp| tcp.first_chunk::<8>());
        let [from_high, from_low, _, _, sequence @ ..] = *field.context("a short packet")?;
        if u16::from_be_bytes([from_high, from_low]) == source {
            let units = |ns: u64| u32::try_from((ns >> CLOCK_SHIFT) & u64::from(u32::MAX));
            let (before, after) = (units(before)?, units(after)?);
            return Ok(SequenceHash {
                hash: u32::from_be_bytes(sequence).wrapping_sub(after),
                uncertainty: after.wrapping_sub(before).saturating_add(1),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_within_the_uncertainty_may_be_equal() {
        let hash = |hash, uncertainty| SequenceHash { hash, uncertainty };
        assert!(hash(5, 10).may_equal(hash(15, 0)) && hash(15, 0).may_equal(hash(5, 10)));
        assert!(hash(u32::MAX, 3).may_equal(hash(2, 3)) && hash(2, 3).may_equal(hash(u32::MAX, 3)));
        assert!(!hash(5, 9).may_equal(hash(15, 9)));
    }

    #[test]
    fn processes_of_one_kernel_share_what_is_the_kernel_s() -> Result<()> {
        let certificate = Certificate::new()?;
        // A raw socket needs CAP_NET_RAW.
        let (Ok(one), Ok(other)) = (Identity::read(&certificate), Identity::read(&certificate)) else {
            println!("skipped: no raw socket");
            return Ok(());
        };
        assert_eq!(
            one.shared_with(&other)
                .into_iter()
                .filter(|part| *part != "machine_id")
                .collect::<Vec<_>>(),
            ["boot_id", "canary", "layout", "TCP sequence numbers"]
        );
        Ok(())
    }
}
