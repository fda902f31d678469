//! The bytes of a snapshot's file `state`. Pure. docs/decisions/0011-snapshots.md has the reasons.
//!
//! ```text
//! 0   magic, 8 bytes      8  format version, u32      12  length of the header, u32
//! 16  length of the body, u64                         24  sum of everything else, u64
//! 32  header: Header      then the body: MachineState, both as postcard encodes them (all little-endian)
//! ```
//!
//! The header says what the snapshot is of and is read first: the body of another build is never decoded.

use std::hash::{DefaultHasher, Hasher as _};

#[cfg(doc)]
use nacre_protocol::guest::TEMPLATE;
use serde::{Deserialize, Serialize};

use super::content::FileId;
use super::state::MachineState;

const MAGIC: [u8; 8] = *b"nacresnp";
/// Changes with the layout above; the build id covers the rest.
const VERSION: u32 = 3;
const FIXED: usize = 32;
/// Where the sum is.
const SUM: std::ops::Range<usize> = 24..32;
/// Largest file: 32 vCPUs have less than 1 MiB.
pub const MAX_BYTES: u64 = 8 << 20;

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The build of nacre-vmm that has made it.
    pub build: String,
    /// The guest kernel.
    pub kernel: FileId,
    /// The initramfs.
    pub initramfs: FileId,
    /// The file `memory`.
    pub memory: FileId,
    /// The parameters that the guest's kernel got besides the VMM's own, without [`TEMPLATE`].
    pub extra_cmdline: String,
}

/// Why a file is not the state of a snapshot that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("not a snapshot")]
    Magic,
    /// It has another format.
    #[error("format version {0}, expected {VERSION}")]
    Version(u32),
    /// It has more bytes or fewer than it says.
    #[error("truncated, or longer than it says")]
    Length,
    /// Its content does not have its sum.
    #[error("damaged: the sum of the content is another")]
    Sum,
    /// The header or the body can't be decoded.
    #[error("damaged: {0}")]
    Encoding(postcard::Error),
    /// Another build of nacre-vmm has made it.
    #[error("made by the build {found} of nacre-vmm, this is {expected}")]
    Build {
        /// That build.
        found: String,
        /// This one.
        expected: String,
    },
}

/// The file's content.
///
/// # Errors
/// [`Error::Encoding`] if a part has no encoding, as none has.
pub fn encode(header: &Header, machine: &MachineState) -> Result<Vec<u8>, Error> {
    let header = postcard::to_stdvec(header).map_err(Error::Encoding)?;
    let body = postcard::to_stdvec(machine).map_err(Error::Encoding)?;
    let header_bytes = u32::try_from(header.len()).unwrap_or(u32::MAX);
    let mut bytes = [
        MAGIC.as_slice(),
        &VERSION.to_le_bytes(),
        &header_bytes.to_le_bytes(),
        &(body.len() as u64).to_le_bytes(),
        &[0; 8],
        &header,
        &body,
    ]
    .concat();
    let sum = sum(&bytes).to_le_bytes();
    if let Some(field) = bytes.get_mut(SUM) {
        field.copy_from_slice(&sum);
    }
    Ok(bytes)
}

/// What the file's content `bytes` says, if `build` has made it.
///
/// # Errors
/// [`Error`] with the first thing that is wrong.
pub fn decode(bytes: &[u8], build: &str) -> Result<(Header, MachineState), Error> {
    if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
        return Err(Error::Magic);
    }
    let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    let long = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
    match word(8).ok_or(Error::Length)? {
        VERSION => {}
        other => return Err(Error::Version(other)),
    }
    let header_bytes = word(12).ok_or(Error::Length)? as usize;
    let body_bytes = long(16).ok_or(Error::Length)?;
    let rest = bytes.get(FIXED..).ok_or(Error::Length)?;
    let (header, body) = rest.split_at_checked(header_bytes).ok_or(Error::Length)?;
    if body.len() as u64 != body_bytes {
        return Err(Error::Length);
    }
    if long(SUM.start) != Some(sum(bytes)) {
        return Err(Error::Sum);
    }
    let header: Header = postcard::from_bytes(header).map_err(Error::Encoding)?;
    if header.build != build {
        return Err(Error::Build {
            found: header.build,
            expected: build.to_owned(),
        });
    }
    Ok((header, postcard::from_bytes(body).map_err(Error::Encoding)?))
}

/// The sum of `bytes` without the field that has it.
fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes.get(..SUM.start).unwrap_or_default());
    hasher.write(bytes.get(SUM.end..).unwrap_or_default());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::state::tests::state;

    fn header() -> Header {
        let file = tempfile::tempfile().unwrap();
        let id = |sum| FileId::of_written(&file, sum).unwrap();
        Header {
            build: "1+a".to_owned(),
            kernel: id(1),
            initramfs: id(2),
            memory: id(3),
            extra_cmdline: "a=1".to_owned(),
        }
    }

    fn encoded() -> Vec<u8> {
        encode(&header(), &state()).unwrap()
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes = encoded();
        let (header, machine) = decode(&bytes, "1+a").unwrap();
        assert_eq!(encode(&header, &machine).unwrap(), bytes);
    }

    #[test]
    fn each_bit_and_each_byte_counts() {
        let bytes = encoded();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, "1+a").is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], "1+a").is_err(), "{length} bytes");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(decode(&longer, "1+a").unwrap_err(), Error::Length);
    }

    #[test]
    fn what_is_refused_is_named() {
        let bytes = encoded();
        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut changed = bytes.clone();
            change(&mut changed);
            decode(&changed, "1+a").unwrap_err()
        };
        assert_eq!(error(&|bytes| bytes.clear()), Error::Magic);
        assert_eq!(error(&|bytes| bytes[0] = b'N'), Error::Magic);
        assert_eq!(error(&|bytes| bytes[8] = 1), Error::Version(1));
        assert_eq!(error(&|bytes| bytes.truncate(10)), Error::Length);
        assert_eq!(error(&|bytes| bytes.truncate(40)), Error::Length);
        assert_eq!(error(&|bytes| bytes[12..16].fill(0xff)), Error::Length);
        assert_eq!(error(&|bytes| bytes[16..24].fill(0xff)), Error::Length);
        assert_eq!(error(&|bytes| bytes[24] ^= 1), Error::Sum);
        assert_eq!(
            decode(&bytes, "1+b").unwrap_err().to_string(),
            "made by the build 1+a of nacre-vmm, this is 1+b"
        );
    }
}
