//! One FUSE request: from a chain of descriptors to virtiofsd's server and back. Called by the worker for
//! each chain. What the library assumes about a request is checked here and in [`super::tree`]; nothing here
//! knows a file.

use std::io::Write as _;

use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use vm_memory::ByteValued as _;

use super::counts;
use super::memory_view::MemoryView;
use super::tree::Tree;
use crate::virtio::worker::Chain;

/// Longest accepted chain: a MiB in pages of 4 KiB, and the buffers of the headers.
const MAX_DESCRIPTORS: usize = 512;

/// Serves the request in `chain` and returns the number of bytes written. A chain without a readable request
/// is returned empty.
pub fn serve(server: &Server<Tree>, view: &MemoryView, chain: &Chain) -> u32 {
    if chain.clone().count() > MAX_DESCRIPTORS {
        return 0;
    }
    handle_message(server, view, chain)
        .or_else(|| reply_einval(view, chain))
        .unwrap_or(0)
}

/// Lets the library serve the request; None if it can't be parsed.
fn handle_message(server: &Server<Tree>, view: &MemoryView, chain: &Chain) -> Option<u32> {
    let reader = Reader::new(view.library(), chain.clone()).ok()?;
    let writer = Writer::new(view.library(), chain.clone()).ok()?;
    let opcode = opcode(reader.clone())?;
    counts::count(opcode);
    // The library assumes that the header of the reply fits.
    if writer.available_bytes() < size_of::<OutHeader>() && wants_reply(opcode) {
        return None;
    }
    let written = server.handle_message(reader, writer, None::<&mut ()>).ok()?;
    u32::try_from(written).ok()
}

/// The opcode of the request, whether or not there is such a one.
fn opcode(mut reader: Reader<'_>) -> Option<u32> {
    let header: InHeader = reader.read_obj().ok()?;
    Some(header.opcode)
}

fn wants_reply(opcode: u32) -> bool {
    !matches!(
        Opcode::try_from(opcode),
        Ok(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::Destroy)
    )
}

/// Replies EINVAL to a request whose header can be read and whose reply buffer holds a header; else returns
/// None.
fn reply_einval(view: &MemoryView, chain: &Chain) -> Option<u32> {
    let header: InHeader = Reader::new(view.library(), chain.clone()).ok()?.read_obj().ok()?;
    let reply = OutHeader {
        len: u32::try_from(size_of::<OutHeader>()).ok()?,
        error: -libc::EINVAL,
        unique: header.unique,
    };
    let mut writer = Writer::new(view.library(), chain.clone()).ok()?;
    writer.write_all(reply.as_slice()).ok()?;
    Some(reply.len)
}
