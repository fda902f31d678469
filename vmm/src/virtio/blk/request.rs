//! The requests of the driver (virtio 1.2, 5.2.6): a chain of descriptors is parsed once into a [`Request`],
//! before it has an effect. Never reads or writes the disk.

use vm_memory::{Address as _, Bytes as _, GuestAddress};

use crate::memory::Memory;
use crate::virtio::vectors::Vectors;
use crate::virtio::worker::Chain;

/// Bytes of the unit in which requests count, whatever the disk's block size is (virtio 1.2, 5.2.6).
pub const SECTOR: u64 = 512;
/// Most descriptors of a chain that are read: a header, the data and the status. A longer chain ends there, and
/// then has no status.
pub const MAX_DESCRIPTORS: usize = 256;
/// Most bytes that one request discards or fills with zeros: 1 GiB, so that none lasts long.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// VIRTIO_BLK_ID_BYTES.
pub const ID_BYTES: usize = 20;

/// The header of a request.
const HEADER_BYTES: usize = 16;
/// The one range of a request that discards or fills with zeros.
const RANGE_BYTES: usize = 16;
/// Flag of a range: the disk may deallocate it.
const UNMAP: u32 = 1;

/// The status of a request (virtio 1.2, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok,
    /// VIRTIO_BLK_S_IOERR: the request is invalid, or the host failed.
    IoError,
    /// VIRTIO_BLK_S_UNSUPP: there is no such type of request.
    Unsupported,
}

impl Status {
    /// The byte that the driver reads.
    pub fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// What is done with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH: what was written is on stable storage.
    Flush,
    /// VIRTIO_BLK_T_DISCARD: the bytes are deallocated, and read as zeros.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES: the bytes become zeros, and stay allocated.
    WriteZeroes,
}

/// A request for the disk, within its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// The first byte of the disk.
    pub offset: u64,
    /// How many bytes of the disk; 0 for a flush.
    pub length: u64,
    /// Where the status goes.
    pub status: GuestAddress,
}

/// What a chain turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A request that is to be carried out. The data of a read or a write are in the vectors.
    Request(Request),
    /// VIRTIO_BLK_T_GET_ID: the id goes to the chain's writable bytes before the status.
    GetId(GuestAddress),
    /// A request that fails.
    Refused(Status, GuestAddress),
    /// A chain without a byte for the status, so that nothing can be said.
    NoStatus,
}

/// What a request must not exceed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The disk's size.
    pub sectors: u64,
    /// Whether the disk can't be written.
    pub is_read_only: bool,
}

/// Parses `chain`; `data` gets the buffers of a read or a write.
pub fn parse(memory: &Memory, chain: Chain, limits: Limits, data: &mut Vectors) -> Parsed {
    let layout = Layout::of(memory, chain, data);
    let Some(status) = layout.status else {
        return Parsed::NoStatus;
    };
    match layout.request(limits, status) {
        Ok(parsed) => parsed,
        Err(refused) => Parsed::Refused(refused, status),
    }
}

/// Where the parts of a request are in a chain, wherever the driver divided it into buffers (virtio 1.2,
/// 2.7.4.2).
struct Layout {
    /// The first readable bytes: the header, and the range of a request that has one.
    start: [u8; HEADER_BYTES + RANGE_BYTES],
    /// The readable bytes, the header included.
    readable: u64,
    /// The writable bytes, the status not included.
    writable: u64,
    /// The address of the last writable byte.
    status: Option<GuestAddress>,
    /// Whether the buffers lie in guest memory, and the readable ones before the writable ones.
    is_valid: bool,
}

impl Layout {
    fn of(memory: &Memory, chain: Chain, data: &mut Vectors) -> Self {
        data.truncate(0);
        let mut layout = Self {
            start: [0; HEADER_BYTES + RANGE_BYTES],
            readable: 0,
            writable: 0,
            status: None,
            is_valid: true,
        };
        // The last writable buffer so far, which may end with the status.
        let mut last = None;
        for descriptor in chain.take(MAX_DESCRIPTORS).filter(|each| each.len() > 0) {
            let buffer = (descriptor.addr(), descriptor.len());
            if !descriptor.is_write_only() {
                layout.is_valid &= last.is_none();
                layout.add_readable(memory, buffer, data);
            } else if let Some(earlier) = last.replace(buffer) {
                layout.add_writable(earlier, data);
            }
        }
        if let Some((address, length)) = last {
            let before = length.saturating_sub(1);
            layout.add_writable((address, before), data);
            layout.status = address.checked_add(before.into());
        }
        layout
    }

    fn add_writable(&mut self, (address, length): (GuestAddress, u32), data: &mut Vectors) {
        self.writable = self.writable.saturating_add(length.into());
        self.is_valid &= length == 0 || data.push(address, length);
    }

    fn add_readable(&mut self, memory: &Memory, (address, length): (GuestAddress, u32), data: &mut Vectors) {
        let begin = usize::try_from(self.readable).unwrap_or(usize::MAX);
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        self.readable = self.readable.saturating_add(length.into());
        let end = begin.saturating_add(wanted).min(self.start.len());
        if let Some(part) = self.start.get_mut(begin..end) {
            self.is_valid &= memory.read_slice(part, address).is_ok();
        }
        // Not more than `length`, so it fits.
        let of_header = u32::try_from(HEADER_BYTES.saturating_sub(begin).min(wanted)).unwrap_or(length);
        let rest = length.saturating_sub(of_header);
        if rest > 0 {
            let address = address.checked_add(of_header.into());
            self.is_valid &= address.is_some_and(|address| data.push(address, rest));
        }
    }

    fn request(&self, limits: Limits, status: GuestAddress) -> Result<Parsed, Status> {
        let payload = self.readable.checked_sub(HEADER_BYTES as u64);
        let payload = payload.filter(|_| self.is_valid).ok_or(Status::IoError)?;
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7, ..] = self.start;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let (operation, sector, length) = match u32::from_le_bytes([t0, t1, t2, t3]) {
            0 if payload == 0 => (Operation::Read, sector, self.writable),
            1 if self.writable == 0 => (Operation::Write, sector, payload),
            4 if payload == 0 && self.writable == 0 => {
                return Ok(Parsed::Request(Request {
                    operation: Operation::Flush,
                    offset: 0,
                    length: 0,
                    status,
                }));
            }
            8 if payload == 0 && self.writable >= ID_BYTES as u64 => return Ok(Parsed::GetId(status)),
            kind @ (11 | 13) if payload == RANGE_BYTES as u64 && self.writable == 0 => {
                self.range(kind == 13)?
            }
            0 | 1 | 4 | 8 | 11 | 13 => return Err(Status::IoError),
            _ => return Err(Status::Unsupported),
        };
        let end = sector.checked_add(length.div_ceil(SECTOR));
        let is_inside = end.is_some_and(|end| end <= limits.sectors);
        let is_whole = length > 0 && length.is_multiple_of(SECTOR);
        if !is_inside || !is_whole || (limits.is_read_only && operation != Operation::Read) {
            return Err(Status::IoError);
        }
        Ok(Parsed::Request(Request {
            operation,
            offset: sector.saturating_mul(SECTOR),
            length,
            status,
        }))
    }

    /// The operation, the first sector and the bytes of a request with a range (virtio 1.2, 5.2.6).
    fn range(&self, is_zeroes: bool) -> Result<(Operation, u64, u64), Status> {
        let [.., s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = self.start;
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let operation = match (is_zeroes, u32::from_le_bytes([f0, f1, f2, f3])) {
            (true, 0) => Operation::WriteZeroes,
            // Zeros that may be deallocated are what a discarded range reads as.
            (true, UNMAP) | (false, 0) => Operation::Discard,
            _ => return Err(Status::Unsupported),
        };
        if sectors > MAX_DISCARD_SECTORS {
            return Err(Status::IoError);
        }
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        Ok((operation, sector, u64::from(sectors).saturating_mul(SECTOR)))
    }
}
