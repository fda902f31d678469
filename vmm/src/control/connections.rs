//! The host side of the vsock device under the shim: which connections of the guest are expected, and how
//! they reach the shim. Runs on the device's worker.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nacre_protocol::control::{Channel, FromVmm};
use nacre_protocol::stream_table::StreamTable;
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};

use crate::log::LimitedLog;
use crate::virtio::vsock::{Host, Ports, Refused};

/// Sends each expected connection that the guest opens to the shim. A process of a container can open any
/// number of others; they cost the shim nothing.
#[derive(Debug)]
pub struct ConnectionSender {
    channel: Arc<Channel>,
    expected: StreamTable,
    /// Only the first connection to [`AGENT_PORT`] is the agent's: it connects before any container runs.
    has_agent: bool,
    log: LimitedLog,
}

impl ConnectionSender {
    pub(super) fn new(channel: Arc<Channel>, expected: StreamTable) -> Self {
        Self {
            channel,
            expected,
            has_agent: false,
            log: LimitedLog::new(),
        }
    }
}

impl Host for ConnectionSender {
    fn expects(&mut self, ports: Ports) -> bool {
        if ports.host == AGENT_PORT {
            return !self.has_agent;
        }
        let address = StreamAddress {
            host_port: ports.host,
            guest_port: ports.guest,
        };
        self.expected.contains(address).unwrap_or_else(|error| {
            self.log.write(|| format!("reading the stream table: {error}"));
            false
        })
    }

    /// Refuses the connection if the shim has exited. Blocks while the socket is full; the shim's main task
    /// reads it.
    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused> {
        let message = FromVmm::Connection {
            host_port: ports.host,
            guest_port: ports.guest,
        };
        self.has_agent |= ports.host == AGENT_PORT;
        let sent = self.channel.send(&message, &[stream.as_raw_fd()]);
        sent.map_err(|error| {
            self.log.write(|| {
                format!(
                    "sending the guest's connection to port {} to the shim: {error}",
                    ports.host
                )
            });
            Refused
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::control::socket_pair;
    use nacre_protocol::stream_table::TABLE_BYTES;

    /// The shim's end of the socket, its table, and the device's host side.
    fn sender() -> (Channel, StreamTable, ConnectionSender) {
        let (shim, vmm) = socket_pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(TABLE_BYTES).unwrap();
        let table = StreamTable::new(file.try_clone().unwrap());
        let channel = Arc::new(Channel::new(vmm));
        let sender = ConnectionSender::new(channel, StreamTable::new(file));
        (Channel::new(shim), table, sender)
    }

    fn ports(host: u32, guest: u32) -> Ports {
        Ports { guest, host }
    }

    fn stream() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn a_connection_is_sent_to_the_shim_or_refused() {
        let (shim, _table, mut host) = sender();
        host.connect(ports(7, 8), stream()).unwrap();
        let (message, fds) = shim.receive::<FromVmm>().unwrap();
        let expected = FromVmm::Connection {
            host_port: 7,
            guest_port: 8,
        };
        assert_eq!((message, fds.len()), (expected, 1));
        drop(shim);
        assert_eq!(host.connect(ports(7, 8), stream()), Err(Refused));
    }

    #[test]
    fn only_addresses_in_the_table_are_expected() {
        let (_shim, table, mut host) = sender();
        let address = StreamAddress {
            host_port: 0x1_0000,
            guest_port: 0x1_0001,
        };
        assert!(!host.expects(ports(0x1_0000, 0x1_0001)));
        table.insert(address).unwrap();
        assert!(host.expects(ports(0x1_0000, 0x1_0001)));
        assert!(!host.expects(ports(0x1_0001, 0x1_0000)));
        assert!(!host.expects(ports(0, 0)));
        table.remove(address).unwrap();
        assert!(!host.expects(ports(0x1_0000, 0x1_0001)));
    }

    #[test]
    fn the_agent_is_expected_once_from_any_port() {
        let (_shim, _table, mut host) = sender();
        assert!(host.expects(ports(AGENT_PORT, 5)) && host.expects(ports(AGENT_PORT, 6)));
        host.connect(ports(AGENT_PORT, 6), stream()).unwrap();
        assert!(!host.expects(ports(AGENT_PORT, 7)));
    }

    #[test]
    fn a_table_that_can_t_be_read_expects_nothing() {
        let (_shim, table, mut host) = sender();
        table.file().set_len(0).unwrap();
        assert!(!host.expects(ports(0x1_0000, 0x1_0001)));
    }
}
