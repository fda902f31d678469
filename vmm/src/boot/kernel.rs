//! Loads the guest kernel, an uncompressed ELF vmlinux. [`inspect`] reads its headers, [`load`] copies its
//! segments to their physical addresses. Called by the machine's steps.
//!
//! A kernel is recognized by its PVH note, which other ELF files don't have and which shows that it runs at
//! its link address. It is nevertheless entered at its 64-bit entry point ([`super::zero_page`] has the
//! reason). The operator chooses the file, so it may be any file: all sizes are checked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use linux_loader::elf;
use vm_memory::{ByteValued, GuestAddress};

use crate::memory::Memory;

/// Name and type of the ELF note with the 32-bit PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: (&[u8], u32) = (b"Xen\0", 18);
/// Most program headers of an accepted file.
const MAX_SEGMENTS: u16 = 64;
/// How much of each note segment is read, in bytes.
const MAX_NOTES: u64 = 64 * 1024;

/// Why a kernel file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading a part of the file failed.
    #[error("reading {what}: {source}")]
    Read {
        /// The part, such as "the ELF header".
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The file is not an x86-64 ELF file, for this reason.
    #[error("not a PVH kernel: not an x86-64 ELF file ({0})")]
    NotElf(&'static str),
    /// An ELF file without the PVH note.
    #[error("no PVH entry point: an ELF file, but not a Linux kernel built with CONFIG_PVH")]
    NoPvhEntry,
    /// The entry point is not in a loaded segment.
    #[error("not a PVH kernel: no segment contains the entry point {0:#x}")]
    EntryNotLoaded(u64),
    /// A segment is outside of guest memory.
    #[error("the segment at {address:#x} with {bytes:#x} bytes does not fit in guest memory")]
    Segment {
        /// Physical address.
        address: u64,
        /// Size in guest memory.
        bytes: u64,
    },
}

/// What the headers of a kernel contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
    /// Physical address after the last segment.
    pub end: u64,
    /// The segments to load (PT_LOAD).
    pub segments: Vec<Segment>,
}

/// A segment to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Size in the file.
    pub file_bytes: u64,
    /// Physical address.
    pub address: u64,
    /// Size in memory, at least the size in the file; the rest is zero.
    pub memory_bytes: u64,
}

impl Image {
    /// Sum of the segments' sizes in memory.
    #[must_use]
    pub fn loaded_bytes(&self) -> u64 {
        self.segments
            .iter()
            .fold(0, |sum, segment| segment.memory_bytes.saturating_add(sum))
    }
}

/// Reads the headers of `file`.
///
/// # Errors
/// [`Error`]; its text contains "PVH" if the file is not a usable kernel.
pub fn inspect(file: &File) -> Result<Image, Error> {
    let header: elf::Elf64_Ehdr = read(file, 0, "the ELF header")?;
    check_header(&header)?;
    let mut image = Image {
        entry: header.e_entry,
        end: 0,
        segments: Vec::new(),
    };
    let mut is_pvh = false;
    for index in 0..header.e_phnum {
        let size = size_of::<elf::Elf64_Phdr>() as u64;
        let offset = header.e_phoff.saturating_add(u64::from(index) * size);
        let segment: elf::Elf64_Phdr = read(file, offset, "a program header")?;
        match segment.p_type {
            elf::PT_LOAD => {
                let end = segment
                    .p_paddr
                    .checked_add(segment.p_memsz)
                    .filter(|_| segment.p_filesz <= segment.p_memsz)
                    .ok_or(Error::Segment {
                        address: segment.p_paddr,
                        bytes: segment.p_memsz,
                    })?;
                image.end = image.end.max(end);
                image.segments.push(Segment {
                    offset: segment.p_offset,
                    file_bytes: segment.p_filesz,
                    address: segment.p_paddr,
                    memory_bytes: segment.p_memsz,
                });
            }
            elf::PT_NOTE if !is_pvh => {
                let mut notes = vec![0; usize::try_from(segment.p_filesz.min(MAX_NOTES)).unwrap_or(0)];
                file.read_exact_at(&mut notes, segment.p_offset)
                    .map_err(|source| Error::Read {
                        what: "the ELF notes",
                        source,
                    })?;
                is_pvh = has_pvh_entry(&notes);
            }
            _ => {}
        }
    }
    if !is_pvh {
        return Err(Error::NoPvhEntry);
    }
    let contains_entry = |segment: &Segment| {
        (segment.address..segment.address.saturating_add(segment.file_bytes)).contains(&image.entry)
    };
    if image.segments.iter().any(contains_entry) {
        Ok(image)
    } else {
        Err(Error::EntryNotLoaded(image.entry))
    }
}

/// Copies the segments of `image` from `file` into `memory`, which must be all zero.
///
/// # Errors
/// [`Error::Segment`] if one does not fit, [`Error::Read`] if the file is too short.
pub fn load(image: &Image, file: &File, memory: &Memory) -> Result<(), Error> {
    for segment in &image.segments {
        let does_not_fit = || Error::Segment {
            address: segment.address,
            bytes: segment.memory_bytes,
        };
        let bytes = usize::try_from(segment.file_bytes).map_err(|_| does_not_fit())?;
        super::initrd::read_into_memory(
            file,
            segment.offset,
            memory,
            (GuestAddress(segment.address), bytes),
        )
        .map_err(|source| Error::Read {
            what: "a segment",
            source,
        })?
        .ok_or_else(does_not_fit)?;
    }
    Ok(())
}

fn check_header(header: &elf::Elf64_Ehdr) -> Result<(), Error> {
    const EM_X86_64: u16 = 62;
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    let [m0, m1, m2, m3, class, data, ..] = header.e_ident;
    if [m0, m1, m2, m3] != *b"\x7fELF" {
        return Err(Error::NotElf(
            "no ELF magic; extract vmlinux from a bzImage first",
        ));
    }
    if class != CLASS_64 || data != LITTLE_ENDIAN || header.e_machine != EM_X86_64 {
        return Err(Error::NotElf("built for another machine"));
    }
    if usize::from(header.e_phentsize) != size_of::<elf::Elf64_Phdr>() || header.e_phnum > MAX_SEGMENTS {
        return Err(Error::NotElf("invalid program headers"));
    }
    Ok(())
}

fn read<T: ByteValued + Default>(file: &File, offset: u64, what: &'static str) -> Result<T, Error> {
    let mut value = T::default();
    file.read_exact_at(value.as_mut_slice(), offset)
        .map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                Error::NotElf("the file is too short")
            } else {
                Error::Read { what, source }
            }
        })?;
    Ok(value)
}

/// True if a note segment contains a PVH entry point. A note is three words, the name and the descriptor,
/// both padded to 4 bytes (ELF specification, 2-5).
fn has_pvh_entry(mut notes: &[u8]) -> bool {
    while let Some((name, kind, descriptor)) = take_note(&mut notes) {
        if (name, kind) == PVH_NOTE {
            return descriptor.len() >= size_of::<u32>();
        }
    }
    false
}

fn take_note<'a>(notes: &mut &'a [u8]) -> Option<(&'a [u8], u32, &'a [u8])> {
    let name_bytes = take_u32(notes)?;
    let descriptor_bytes = take_u32(notes)?;
    let kind = take_u32(notes)?;
    Some((take(notes, name_bytes)?, kind, take(notes, descriptor_bytes)?))
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*first))
}

/// Takes `count` bytes, and skips their padding.
fn take<'a>(bytes: &mut &'a [u8], count: u32) -> Option<&'a [u8]> {
    let count = usize::try_from(count).ok()?;
    let taken = bytes.get(..count)?;
    *bytes = bytes
        .get(count.checked_next_multiple_of(4)?..)
        .unwrap_or_default();
    Some(taken)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write as _;
    use vm_memory::Bytes as _;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [name.len() as u64, descriptor.len() as u64, u64::from(kind)] {
            bytes.extend_from_slice(&word.to_le_bytes()[..4]);
        }
        for part in [name, descriptor] {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    const ENTRY: u64 = 0x10_0002;

    /// The note that makes an ELF file a PVH kernel.
    pub(crate) fn pvh_note() -> Vec<u8> {
        note(b"Xen\0", 18, &[0; 4])
    }

    /// A vmlinux with one segment that has `code` at 1 MiB; the entry point is its third byte.
    pub(crate) fn vmlinux(code: &[u8], notes: &[u8]) -> File {
        let mut header = elf::Elf64_Ehdr {
            e_machine: 62,
            e_phentsize: 56,
            e_phnum: 2,
            e_phoff: 64,
            e_entry: ENTRY,
            ..Default::default()
        };
        header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let load = elf::Elf64_Phdr {
            p_type: elf::PT_LOAD,
            p_offset: 4096,
            p_filesz: code.len() as u64,
            p_memsz: code.len() as u64 + 100,
            p_paddr: 0x10_0000,
            ..Default::default()
        };
        let note = elf::Elf64_Phdr {
            p_type: elf::PT_NOTE,
            p_offset: 1024,
            p_filesz: notes.len() as u64,
            ..Default::default()
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(header.as_slice()).unwrap();
        file.write_all(load.as_slice()).unwrap();
        file.write_all(note.as_slice()).unwrap();
        file.write_all_at(notes, 1024).unwrap();
        file.write_all_at(code, 4096).unwrap();
        file
    }

    #[test]
    fn a_kernel_is_inspected_and_loaded() {
        let notes = [
            note(b"GNU\0", 3, &[1; 20]),
            note(b"Xen\0", 18, &0x10_0040u32.to_le_bytes()),
        ]
        .concat();
        let file = vmlinux(b"code", &notes);
        let image = inspect(&file).unwrap();
        assert_eq!((image.entry, image.end), (ENTRY, 0x10_0000 + 104));
        let memory = crate::memory::allocate(2 << 20).unwrap();
        load(&image, &file, &memory).unwrap();
        assert_eq!(
            memory.read_obj::<[u8; 5]>(GuestAddress(0x10_0000)).unwrap(),
            *b"code\0"
        );
    }

    #[test]
    fn an_elf_file_without_the_pvh_note_is_refused() {
        for notes in [vec![], note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 18, &[1, 2])] {
            let text = inspect(&vmlinux(b"code", &notes)).unwrap_err().to_string();
            assert!(text.contains("PVH"), "{text}");
        }
    }

    #[test]
    fn the_error_for_other_files_contains_pvh() {
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'x'; 200]).unwrap();
        for file in [
            File::open("/bin/sh").unwrap(),
            text,
            tempfile::tempfile().unwrap(),
        ] {
            let error = inspect(&file).unwrap_err().to_string();
            assert!(error.contains("PVH"), "{error}");
        }
    }

    #[test]
    fn an_entry_point_outside_of_all_segments_is_refused() {
        let file = vmlinux(b"c", &pvh_note());
        assert!(matches!(inspect(&file), Err(Error::EntryNotLoaded(ENTRY))));
    }

    #[test]
    fn damaged_notes_are_ignored() {
        for bytes in [[0xff; 12].as_slice(), &[0; 3], &[0xff; 64], &[]] {
            assert!(!has_pvh_entry(bytes));
        }
    }

    #[test]
    fn a_segment_outside_of_guest_memory_is_refused() {
        let file = vmlinux(b"code", &pvh_note());
        let image = inspect(&file).unwrap();
        let memory = crate::memory::allocate(1 << 20).unwrap();
        assert!(matches!(
            load(&image, &file, &memory),
            Err(Error::Segment {
                address: 0x10_0000,
                ..
            })
        ));
    }
}
