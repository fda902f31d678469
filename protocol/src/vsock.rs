//! vsock addresses of a pod. Every connection is opened by the guest: the VMM hands the host end of each to the
//! shim with the port that the guest dialled ([`crate::control::FromVmm::Connection`]).

/// The host, as a guest addresses it (virtio 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;
/// The guest's own CID. Private to each VMM, so all guests have the same.
pub const GUEST_CID: u32 = 3;
/// The agent dials this port once when it is ready and serves ttrpc on that stream.
pub const AGENT_PORT: u32 = 1024;

/// The address of one standard stream: the host port that the agent dials and the guest port that it dials from. The shim
/// draws both at random for each stream (64 bits together), accepts a connection with exactly these ports, once, and only
/// between Exec or Create and the connection. So a container's process that may open AF_VSOCK can neither guess a stream
/// of another process nor, while the agent dials it, take its guest port: that is bound by the agent's own socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamAddress {
    /// The host port.
    pub host_port: u32,
    /// The guest port.
    pub guest_port: u32,
}

impl StreamAddress {
    /// Ports from here up to, and without, VMADDR_PORT_ANY (0xffff_ffff) are used for streams.
    pub const FIRST_PORT: u32 = 0x1_0000;

    /// The address made of 64 random bits; None if a half is not a port for streams: draw again.
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

    /// As messages carry it: the host port in the upper half. Never 0, which stands for a stream that is not wanted.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_bits() {
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
