//! vsock addresses of a pod. The guest opens every connection: the VMM passes the host's end of each that is
//! expected to the shim, with its ports ([`crate::control::FromVmm::Connection`]), and refuses all others.

/// The host, as a guest addresses it (virtio 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;
/// The guest's CID. Each VMM has its own vsock device, so that all guests can have the same CID.
pub const GUEST_CID: u32 = 3;
/// The host port that the agent connects to once, when it is ready, to serve ttrpc on that stream.
pub const AGENT_PORT: u32 = 1024;

/// Most connections of a guest at a time: the agent's, the standard streams of all processes, forwarded connections.
/// The VMM refuses more, counting those that are closed but whose last bytes the host has not read, so the engine first
/// refuses what would need more. Each buffers at most 256 KiB.
pub const MAX_CONNECTIONS: usize = 4096;
/// Most of them that are forwarded connections.
pub const MAX_FORWARDED: usize = 128;
/// Most of them that are standard streams. The rest is for streams whose last bytes nobody has read, though their
/// process was deleted.
pub const MAX_STREAMS: usize = 3840;
const _: () = assert!(1 + MAX_FORWARDED + MAX_STREAMS < MAX_CONNECTIONS);

/// The address of a standard stream of a process: the host port that the agent connects to, and the guest
/// port that it connects from. The shim chooses both at random for each stream, 64 bits together. It accepts
/// a connection only if both match, once, and only between Exec or Create and that connection. A container's
/// process that may open AF_VSOCK sockets can therefore neither guess the address of another process's
/// stream, nor use the guest port, to which the agent's socket is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamAddress {
    /// The host port.
    pub host_port: u32,
    /// The guest port.
    pub guest_port: u32,
}

impl StreamAddress {
    /// The lowest port for streams; the highest is one below VMADDR_PORT_ANY (0xffff_ffff).
    pub const FIRST_PORT: u32 = 0x1_0000;

    /// The address of 64 random bits. None if one of the halves is not a port for streams: use other bits.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let host_port = u32::try_from(bits >> 32).ok()?;
        let guest_port = u32::try_from(bits & u64::from(u32::MAX)).ok()?;
        let is_valid = |port: u32| (Self::FIRST_PORT..u32::MAX).contains(&port);
        (is_valid(host_port) && is_valid(guest_port)).then_some(Self {
            host_port,
            guest_port,
        })
    }

    /// The form in messages: the host port in the upper half, the guest port in the lower half. Never 0,
    /// which means that a stream is not wanted.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_form_in_bits() {
        let address = StreamAddress {
            host_port: 0x1_0000,
            guest_port: u32::MAX - 1,
        };
        assert_eq!(address.to_bits(), 0x0001_0000_ffff_fffe);
        assert_eq!(StreamAddress::from_bits(address.to_bits()), Some(address));
        for bits in [
            0,
            0xffff_0001_0000,
            0x0001_0000_0000_ffff,
            0x0001_0000_ffff_ffff,
            u64::MAX,
        ] {
            assert_eq!(StreamAddress::from_bits(bits), None, "{bits:x}");
        }
    }
}
