//! One FUSE request: from a chain of descriptors to virtiofsd's server and back. Called by the worker for
//! each chain. What the library assumes about a request is checked here and in [`super::tree`]; nothing here
//! knows a file. Requests that wait for the host's disk are parsed here and carried out by [`super::syncs`].

use std::io::{self, Write as _};

use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use vm_memory::ByteValued as _;

use super::counts;
use super::memory_view::MemoryView;
use super::syncs;
use super::tree::Tree;
use crate::virtio::worker::Chain;

/// Longest accepted chain: a MiB in pages of 4 KiB, and the buffers of the headers.
const MAX_DESCRIPTORS: usize = 512;

/// What became of a request.
pub enum Served {
    /// It was replied to by as many bytes as this, or returned empty.
    Replied(u32),
    /// It waits for the host's disk; [`reply`] to it.
    Sync(syncs::Request),
}

/// Serves the request in `chain`; one that waits for the host's disk is only parsed, if the sync thread
/// `has_room`. A chain without a readable request is returned empty.
pub fn serve(server: &Server<Tree>, view: &MemoryView, chain: &Chain, has_room: bool) -> Served {
    if chain.clone().count() > MAX_DESCRIPTORS {
        return Served::Replied(0);
    }
    handle_message(server, view, chain, has_room)
        .or_else(|| reply_einval(view, chain).map(Served::Replied))
        .unwrap_or(Served::Replied(0))
}

/// Lets the library serve the request; None if it can't be parsed.
fn handle_message(server: &Server<Tree>, view: &MemoryView, chain: &Chain, has_room: bool) -> Option<Served> {
    let reader = Reader::new(view.library(), chain.clone()).ok()?;
    let writer = Writer::new(view.library(), chain.clone()).ok()?;
    let mut rest = reader.clone();
    let header: InHeader = rest.read_obj().ok()?;
    counts::count(header.opcode);
    // The library assumes that the header of the reply fits.
    if writer.available_bytes() < size_of::<OutHeader>() && wants_reply(header.opcode) {
        return None;
    }
    if has_room && let Some(request) = syncs::Request::parse(header, || rest.read_obj().ok()) {
        return Some(Served::Sync(request));
    }
    let written = server.handle_message(reader, writer, None::<&mut ()>).ok()?;
    u32::try_from(written).ok().map(Served::Replied)
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
    let einval = io::Error::from_raw_os_error(libc::EINVAL);
    reply(view, chain, header.unique, &Err(einval))
}

/// Replies to request `unique`, whose reply has no payload, with its result. Returns the number of bytes written;
/// None if they do not fit.
pub fn reply(view: &MemoryView, chain: &Chain, unique: u64, result: &io::Result<()>) -> Option<u32> {
    let error = result.as_ref().err();
    let reply = OutHeader {
        len: u32::try_from(size_of::<OutHeader>()).ok()?,
        error: error.map_or(0, |error| {
            error.raw_os_error().unwrap_or(libc::EIO).wrapping_neg()
        }),
        unique,
    };
    let mut writer = Writer::new(view.library(), chain.clone()).ok()?;
    writer.write_all(reply.as_slice()).ok()?;
    Some(reply.len)
}
