//! The loaded segments of an ELF file. Called by the benchmark, for sizes, and by [`crate::guests`], which
//! packs programs without their debug information. Pure.

use anyhow::{Context as _, Result, ensure};

/// Type of a loaded segment (ELF specification, program header).
const PT_LOAD: u64 = 1;

/// A loaded segment. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where its content begins in the file.
    pub offset: u64,
    /// How much of it the file has.
    pub in_file: u64,
    /// Its size in memory; what the file lacks starts as zeros.
    pub in_memory: u64,
}

/// The loaded segments of a 64-bit little-endian ELF file, in the order of its program headers.
///
/// # Errors
/// If it is another file, or truncated.
pub fn segments(elf: &[u8]) -> Result<Vec<Segment>> {
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let number = |at: usize, bytes: usize| -> Result<u64> {
        let field = elf.get(at..at + bytes).context("a header is truncated")?;
        Ok(field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let table = usize::try_from(number(32, 8)?)?;
    let (size, count) = (usize::try_from(number(54, 2)?)?, usize::try_from(number(56, 2)?)?);
    let mut segments = Vec::new();
    for header in (0..count).map(|index| table + index * size) {
        if number(header, 4)? == PT_LOAD {
            segments.push(Segment {
                offset: number(header + 8, 8)?,
                in_file: number(header + 32, 8)?,
                in_memory: number(header + 40, 8)?,
            });
        }
    }
    Ok(segments)
}

/// The part of an ELF file up to the end of its last loaded segment: all that execve(2) and the dynamic
/// loader read. Debug information and symbols follow it.
///
/// # Errors
/// Those of [`segments`], or if a segment is beyond the end of the file.
pub fn loaded_part(elf: &[u8]) -> Result<&[u8]> {
    let ends = segments(elf)?
        .into_iter()
        .map(|segment| segment.offset + segment.in_file);
    let end = usize::try_from(ends.max().context("no loaded segment")?)?;
    elf.get(..end).context("a segment is truncated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segments_of_this_program() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let segments = segments(&program).unwrap();
        assert!(segments.len() >= 2, "{segments:?}");
        for segment in &segments {
            assert!(segment.in_memory >= segment.in_file, "{segment:?}");
        }
        let part = loaded_part(&program).unwrap();
        assert!(part.len() > 100_000 && part.len() < program.len());
        assert_eq!(super::segments(part).unwrap(), segments);
        assert!(loaded_part(&program[..part.len() - 1]).is_err());
        assert!(super::segments(b"MZ").is_err());
    }
}
