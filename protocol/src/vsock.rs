//! vsock addresses of a pod. Every connection is opened by the guest: the VMM hands the host end of each to the
//! shim with the port that the guest dialled ([`crate::control::FromVmm::Connection`]).

/// The host, as a guest addresses it (virtio 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;
/// The guest's own CID. Private to each VMM, so all guests have the same.
pub const GUEST_CID: u32 = 3;
/// The agent dials this port once when it is ready and serves ttrpc on that stream.
pub const AGENT_PORT: u32 = 1024;
/// Standard streams of processes get ports from here upwards, one each, never used twice in a pod's life.
pub const FIRST_STREAM_PORT: u32 = 0x1_0000;
