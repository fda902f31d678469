//! Checks that a file can be the guest's /init: a statically linked x86-64 ELF executable. The guest has no
//! other file, so an executable that needs a dynamic loader would end in a kernel panic without a clear
//! reason. Called by `main`.

/// The reason why a file can't be the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Not an ELF file, or truncated.
    NotElf,
    /// An ELF file, but not an executable for x86-64.
    WrongMachine,
    /// It has a PT_INTERP segment, which names a dynamic loader.
    Dynamic,
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotElf => "not an ELF file",
            Self::WrongMachine => "not an executable for x86-64",
            Self::Dynamic => {
                "dynamically linked, but the guest has no dynamic loader; \
                build it with -C target-feature=+crt-static"
            }
        })
    }
}

impl std::error::Error for Unfit {}

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
const X86_64: u16 = 62;
const PT_INTERP: u32 = 3;

/// Checks the ELF header and the program headers (System V ABI, chapters 4 and 5).
///
/// # Errors
/// The first reason found.
pub fn check(file: &[u8]) -> Result<(), Unfit> {
    let ident: [u8; 6] = array(file, 0)?;
    if ident[..4] != *b"\x7fELF" {
        return Err(Unfit::NotElf);
    }
    let kind = u16::from_le_bytes(array(file, 16)?);
    let machine = u16::from_le_bytes(array(file, 18)?);
    let program = matches!(kind, EXECUTABLE | SHARED);
    if ident[4] != CLASS_64 || ident[5] != LITTLE_ENDIAN || machine != X86_64 || !program {
        return Err(Unfit::WrongMachine);
    }
    let offset = usize::try_from(u64::from_le_bytes(array(file, 32)?)).map_err(|_| Unfit::NotElf)?;
    let size = usize::from(u16::from_le_bytes(array(file, 54)?));
    let count = usize::from(u16::from_le_bytes(array(file, 56)?));
    for index in 0..count {
        let at = index
            .checked_mul(size)
            .and_then(|at| at.checked_add(offset))
            .ok_or(Unfit::NotElf)?;
        if u32::from_le_bytes(array(file, at)?) == PT_INTERP {
            return Err(Unfit::Dynamic);
        }
    }
    Ok(())
}

/// The `N` bytes at offset `at`.
fn array<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], Unfit> {
    file.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(Unfit::NotElf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header for `machine`, and one program header of type `segment`.
    fn elf(machine: u16, segment: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..18].copy_from_slice(&SHARED.to_le_bytes());
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&segment.to_le_bytes());
        file
    }

    #[test]
    fn a_static_executable_is_accepted() {
        assert_eq!(check(&elf(X86_64, 1)), Ok(()));
    }

    #[test]
    fn other_files_are_refused_with_their_reason() {
        assert_eq!(check(b"#!/bin/sh\n"), Err(Unfit::NotElf));
        assert_eq!(check(b""), Err(Unfit::NotElf));
        assert_eq!(check(&elf(183, 1)), Err(Unfit::WrongMachine));
        assert_eq!(check(&elf(X86_64, PT_INTERP)), Err(Unfit::Dynamic));
        let mut cut = elf(X86_64, 1);
        cut.truncate(66);
        assert_eq!(check(&cut), Err(Unfit::NotElf));
    }

    #[test]
    fn this_test_program_is_refused_if_it_is_dynamic() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let expected = if cfg!(target_feature = "crt-static") {
            Ok(())
        } else {
            Err(Unfit::Dynamic)
        };
        assert_eq!(check(&own), expected);
    }
}
