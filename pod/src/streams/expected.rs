//! The streams that the agent is expected to open, by their secret addresses: who waits for each, and the
//! table from which the VMM knows which connections to pass on. Owned by the sandbox.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use nacre_protocol::stream_table::StreamTable;
use nacre_protocol::vsock::StreamAddress;
use tokio::sync::oneshot;

use super::Expected;

/// The expected streams of a pod. There is no table before the VM's start and after its end.
#[derive(Debug, Default)]
pub struct ExpectedStreams {
    waiting: HashMap<StreamAddress, oneshot::Sender<OwnedFd>>,
    table: Option<StreamTable>,
}

impl ExpectedStreams {
    /// Uses `table`, which the VMM reads.
    pub fn set_table(&mut self, table: StreamTable) {
        self.table = Some(table);
    }

    /// The table, unless the VM has ended.
    pub fn table(&self) -> Option<&StreamTable> {
        self.table.as_ref()
    }

    /// Expects `streams` from now on: all of them, or none if this fails.
    ///
    /// # Errors
    /// If the table is full, or cannot be read or written.
    pub fn add(&mut self, streams: Vec<Expected>) -> io::Result<()> {
        let added = streams.iter().try_for_each(|(address, _)| self.insert(*address));
        if added.is_err() {
            streams.iter().for_each(|(address, _)| self.remove(address));
        } else {
            self.waiting.extend(streams);
        }
        added
    }

    fn insert(&self, address: StreamAddress) -> io::Result<()> {
        let Some(table) = &self.table else {
            return Ok(());
        };
        if table.insert(address)? {
            Ok(())
        } else {
            let full = "too many processes wait for their standard streams to be opened";
            Err(io::Error::other(full))
        }
    }

    /// Who waits for the stream at `address`, if it is expected; a second one is not.
    pub fn take(&mut self, address: &StreamAddress) -> Option<oneshot::Sender<OwnedFd>> {
        let waiting = self.waiting.remove(address)?;
        self.remove(address);
        Some(waiting)
    }

    /// No longer expects the stream at `address`.
    pub fn remove(&mut self, address: &StreamAddress) {
        self.waiting.remove(address);
        if let Some(table) = &self.table
            && let Err(error) = table.remove(*address)
        {
            // The VMM still passes the connection on, and it is refused here.
            crate::log::warn(format_args!(
                "removing a stream's address from the table: {error}"
            ));
        }
    }

    /// The VM has ended: expects no streams.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.table = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::stream_table::TABLE_BYTES;

    fn table() -> (StreamTable, StreamTable) {
        let file = crate::sys::memory_file("test", TABLE_BYTES).unwrap();
        let vmm = StreamTable::new(file.try_clone().unwrap());
        (StreamTable::new(file), vmm)
    }

    fn stream(host_port: u32) -> (Expected, oneshot::Receiver<OwnedFd>) {
        let (sender, receiver) = oneshot::channel();
        let address = StreamAddress {
            host_port,
            guest_port: 0x1_0000,
        };
        ((address, sender), receiver)
    }

    #[test]
    fn the_vmm_knows_a_stream_until_it_is_opened_or_removed() {
        let (table, vmm) = table();
        let mut expected = ExpectedStreams::default();
        expected.set_table(table);
        let ((opened, _a), (removed, _b)) = (stream(0x1_0000), stream(0x1_0001));
        let (opened_at, removed_at) = (opened.0, removed.0);
        expected.add(vec![opened, removed]).unwrap();
        assert!(vmm.contains(opened_at).unwrap() && vmm.contains(removed_at).unwrap());
        assert!(expected.take(&opened_at).is_some() && expected.take(&opened_at).is_none());
        expected.remove(&removed_at);
        assert!(expected.take(&removed_at).is_none());
        assert!(!vmm.contains(opened_at).unwrap() && !vmm.contains(removed_at).unwrap());
    }

    #[test]
    fn all_streams_of_a_process_are_expected_or_none() {
        let (table, vmm) = table();
        let mut expected = ExpectedStreams::default();
        expected.set_table(table);
        // All of these are in the same set.
        for port in 0..31 {
            expected.add(vec![stream(0x1_0000 + port).0]).unwrap();
        }
        let (last, one_too_many) = (stream(0x2_0000).0, stream(0x2_0001).0);
        let last_at = last.0;
        let refused = expected.add(vec![last, one_too_many]).unwrap_err();
        assert!(refused.to_string().contains("too many"), "{refused}");
        assert!(!vmm.contains(last_at).unwrap() && expected.take(&last_at).is_none());
        expected.add(vec![stream(0x2_0000).0]).unwrap();
        expected.clear();
        assert!(expected.take(&last_at).is_none());
    }
}
