//! Commands of the operator to a standalone VMM, one per line of standard input (`--commands`): parses them.
//! Called by [`crate::main_loop`], which carries them out. Pure.

use std::mem::take;
use std::str::FromStr;

/// Longest line that is kept, in bytes. The rest of a longer line is dropped, so it is no valid command.
const MAX_LINE: usize = 256;

/// What the operator can ask for while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `renew-generation-id`: gives the VM a new generation id, as if it had been restored from a snapshot.
    RenewGenerationId,
    /// `plug-memory N`: asks the guest to have N MiB plugged in.
    PlugMemory {
        /// The wanted size in MiB, not a difference.
        mib: u32,
    },
    /// `attach-common`: adds the devices that every VM has and no boot needs.
    AttachCommon,
    /// `attach-device`: adds the next device that was prepared for it (`--late-tap`, `--late-disk`).
    AttachDevice,
    /// `detach-device`: removes the device that was added last.
    DetachDevice,
    /// `memory`: prints how much is to be plugged in, and how much is.
    Memory,
    /// `requests`: prints how many requests virtio-fs has served, by their kind.
    Requests,
}

/// A line that is not a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown command {0:?}, expected renew-generation-id, memory, plug-memory and a number of MiB, attach-common, \
     attach-device, detach-device, or requests"
)]
pub struct Unknown(pub String);

impl FromStr for Command {
    type Err = Unknown;

    fn from_str(line: &str) -> Result<Self, Unknown> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let command = match *words {
            ["renew-generation-id"] => Some(Self::RenewGenerationId),
            ["attach-common"] => Some(Self::AttachCommon),
            ["attach-device"] => Some(Self::AttachDevice),
            ["detach-device"] => Some(Self::DetachDevice),
            ["memory"] => Some(Self::Memory),
            ["requests"] => Some(Self::Requests),
            ["plug-memory", mib] => mib.parse().ok().map(|mib| Self::PlugMemory { mib }),
            _ => None,
        };
        command.ok_or_else(|| Unknown(line.trim().to_owned()))
    }
}

/// Joins what is read in parts to lines.
#[derive(Debug, Default)]
pub struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    /// The commands that `bytes` completes. The last line counts only with its newline.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Command, Unknown>> {
        let mut commands = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                commands.push(String::from_utf8_lossy(&take(&mut self.unfinished)).parse());
            } else if self.unfinished.len() < MAX_LINE {
                self.unfinished.push(*byte);
            }
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_line_however_it_arrives() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"renew-gene"), []);
        assert_eq!(lines.push(b"ration-id"), []);
        assert_eq!(
            lines.push(b"\nx\nrenew-generation-id\r\n"),
            [
                Ok(Command::RenewGenerationId),
                Err(Unknown("x".to_owned())),
                Ok(Command::RenewGenerationId)
            ]
        );
    }

    #[test]
    fn memory_is_plugged_by_a_number() {
        assert_eq!(" memory ".parse(), Ok(Command::Memory));
        assert_eq!("plug-memory 512".parse(), Ok(Command::PlugMemory { mib: 512 }));
        for unknown in [
            "plug-memory",
            "plug-memory -1",
            "plug-memory 1 2",
            "plug-memory 4294967296",
        ] {
            assert_eq!(unknown.parse::<Command>(), Err(Unknown(unknown.to_owned())));
        }
    }

    #[test]
    fn an_endless_line_takes_bounded_memory() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&[b'x'; 100_000]), []);
        assert_eq!(lines.unfinished.len(), MAX_LINE);
        assert!(lines.push(b"\n")[0].is_err());
        assert_eq!(
            lines.push(b"renew-generation-id\n"),
            [Ok(Command::RenewGenerationId)]
        );
    }
}
