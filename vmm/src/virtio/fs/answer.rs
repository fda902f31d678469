//! One request of the guest: from a chain of descriptors to the library's server and back. Called by the worker for
//! each chain. What the library would take for granted of a request is checked here or in [`super::tree`].

use std::io::Write as _;

use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::{InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use vm_memory::ByteValued as _;

use super::tree::Tree;
use super::view::View;
use crate::virtio::worker::Chain;

/// Longest chain: a MiB in pages, and the headers around it.
const MAX_DESCRIPTORS: usize = 512;

/// Serves the request in `chain`; gives the bytes written. A chain that holds no request is returned empty.
pub fn answer(server: &Server<Tree>, view: &View, chain: Chain) -> u32 {
    if chain.clone().count() > MAX_DESCRIPTORS {
        return 0;
    }
    let length = serve(server, view, &chain).unwrap_or_else(|| refuse(view, &chain).unwrap_or(0));
    view.mark(chain, length);
    length
}

/// None where the request can't be understood.
fn serve(server: &Server<Tree>, view: &View, chain: &Chain) -> Option<u32> {
    let reader = Reader::new(view.library(), chain.clone()).ok()?;
    let writer = Writer::new(view.library(), chain.clone()).ok()?;
    // The library takes room for the reply's header for granted.
    if writer.available_bytes() < size_of::<OutHeader>() && wants_reply(reader.clone()) {
        return None;
    }
    let written = server.handle_message(reader, writer, None::<&mut ()>).ok()?;
    u32::try_from(written).ok()
}

fn wants_reply(mut reader: Reader<'_>) -> bool {
    let opcode = reader
        .read_obj::<InHeader>()
        .ok()
        .and_then(|header| Opcode::try_from(header.opcode).ok());
    !matches!(
        opcode,
        Some(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::Destroy)
    )
}

/// Answers EINVAL to a request of which at least the header can be read.
fn refuse(view: &View, chain: &Chain) -> Option<u32> {
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
