//! bpf(2): the four commands that forwarding needs, each behind a safe function. Decides nothing; `forward`
//! calls it in a child that has entered the pod's network namespace.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nacre_protocol::bpf;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
/// Bytes of a key of a socket map.
const KEY_SIZE: u32 = 4;
/// Bytes of a value of a socket map: a descriptor, in a 64-bit word.
const VALUE_SIZE: u32 = 8;

// Each structure is `union bpf_attr` for one command, up to the last field used. The kernel takes the missing
// fields as 0.

#[repr(C)]
struct CreateMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct UpdateElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct CreateLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// A descriptor's number, as bpf(2) takes it.
pub fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Creates a map of `entries` sockets.
///
/// # Errors
/// As bpf(2).
pub fn create_socket_map(entries: u32) -> io::Result<OwnedFd> {
    let attributes = CreateMap {
        kind: BPF_MAP_TYPE_SOCKMAP,
        key_size: KEY_SIZE,
        value_size: VALUE_SIZE,
        max_entries: entries,
    };
    // SAFETY: the structure is the one that this command reads.
    let result = unsafe { call(BPF_MAP_CREATE, &attributes) };
    owned(result?)
}

/// Puts `socket` into `map` at `index`. The map does not keep the socket open.
///
/// # Errors
/// As bpf(2).
pub fn set_socket(map: BorrowedFd<'_>, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = u64::from(number(socket));
    let attributes = UpdateElement {
        map: number(map),
        padding: 0,
        key: (&raw const index).addr() as u64,
        value: (&raw const value).addr() as u64,
        flags: 0,
    };
    // SAFETY: the structure is the one that this command reads; it, the key and the value, which have the
    // sizes of the map's, outlive the call.
    let result = unsafe { call(BPF_MAP_UPDATE_ELEM, &attributes) };
    result.map(drop)
}

/// Loads a program of type BPF_PROG_TYPE_SK_LOOKUP.
///
/// # Errors
/// As bpf(2).
pub fn load_socket_lookup(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadProgram {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"nacre_forward\0\0\0",
        interface: 0,
        expected_attach_type: BPF_SK_LOOKUP,
    };
    let result = bpf::load(|| {
        // SAFETY: the structure is the one that this command reads; it and the memory that it points to outlive
        // the call.
        unsafe { call(BPF_PROG_LOAD, &attributes) }
    });
    owned(result?)
}

/// Attaches a program of [`load_socket_lookup`] to the network namespace `namespace`, until the descriptor
/// that is returned is closed.
///
/// # Errors
/// As bpf(2).
pub fn link_to_namespace(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = CreateLink {
        program: number(program),
        target: number(namespace),
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: the structure is the one that this command reads.
    let result = unsafe { call(BPF_LINK_CREATE, &attributes) };
    owned(result?)
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` has the layout that `command` reads, and the memory that it points to is live.
unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise; the size is the structure's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: bpf(2) has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
