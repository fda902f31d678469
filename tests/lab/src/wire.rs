//! What the two halves of the lab say to each other: JSON lines on the control port in both directions, and standard
//! input in length-prefixed pieces, because a virtio-serial port has no end of file.

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Names of the VM's ports.
pub const PORT_CONTROL: &str = "nacre.control";
/// Standard input, in pieces.
pub const PORT_STDIN: &str = "nacre.stdin";
/// Standard output, raw.
pub const PORT_STDOUT: &str = "nacre.stdout";
/// Standard error, raw.
pub const PORT_STDERR: &str = "nacre.stderr";
/// virtio-fs tag of the host's root, read-only.
pub const TAG_ROOT: &str = "root";
/// virtio-fs tag of the checkout's target directory.
pub const TAG_TARGET: &str = "target";

/// What is to be done inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The caller's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The working directory.
    pub checkout: PathBuf,
    /// Cargo's target directory, the only one shared for writing.
    pub target: PathBuf,
    /// Directory with the containerd to use.
    pub containerd: PathBuf,
    /// The busybox image, an OCI archive.
    pub image: PathBuf,
    /// Modules of the VM's kernel: `lib/modules` of its package.
    pub modules: Option<PathBuf>,
    /// Rows and columns, where the command is to have a terminal.
    pub terminal: Option<(u16, u16)>,
}

/// Host to inside.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInside {
    /// First and once.
    Job(Box<Job>),
    /// The terminal's new rows and columns.
    Window(u16, u16),
}

/// Inside to host.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHost {
    /// Still alive.
    Beat,
    /// The command starts now.
    Started,
    /// The command has ended; so many bytes are, or will be, on its two output ports.
    Exit {
        /// As a shell says it: 128 + signal for one that a signal ended.
        code: u8,
        /// Bytes of standard output in all.
        stdout: u64,
        /// Bytes of standard error in all.
        stderr: u64,
    },
    /// The lab's half could not do its part.
    Failed(String),
}

/// Writes one line.
pub fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line; None at the end.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Writes a piece of standard input; an empty one is its end.
pub fn send_piece(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

/// Reads a piece of standard input; an empty one is its end.
pub fn receive_piece(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_and_end() {
        let mut bytes = Vec::new();
        send_piece(&mut bytes, b"a\0b\n").unwrap();
        send_piece(&mut bytes, b"").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(receive_piece(&mut from).unwrap(), b"a\0b\n");
        assert_eq!(receive_piece(&mut from).unwrap(), b"");
        assert!(receive_piece(&mut from).is_err());
    }

    #[test]
    fn messages_are_lines() {
        let mut bytes = Vec::new();
        send(&mut bytes, &ToHost::Beat).unwrap();
        send(
            &mut bytes,
            &ToHost::Exit {
                code: 7,
                stdout: 1 << 40,
                stderr: 0,
            },
        )
        .unwrap();
        let mut from = bytes.as_slice();
        assert!(matches!(receive(&mut from).unwrap(), Some(ToHost::Beat)));
        let Some(ToHost::Exit {
            code: 7,
            stdout,
            stderr: 0,
        }) = receive(&mut from).unwrap()
        else {
            panic!("not the exit")
        };
        assert_eq!(stdout, 1 << 40);
        assert!(receive::<ToHost>(&mut from).unwrap().is_none());
    }
}
