//! The protocol between this machine and the VM: JSON lines in both directions on the control port, standard
//! input in length-prefixed pieces (a virtio-serial port has no end of file), standard output and error as
//! raw bytes.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port for control messages.
pub const PORT_CONTROL: &str = "nacre.control";
/// Port of standard input, in pieces.
pub const PORT_STDIN: &str = "nacre.stdin";
/// Port of standard output, raw.
pub const PORT_STDOUT: &str = "nacre.stdout";
/// Port of standard error, raw.
pub const PORT_STDERR: &str = "nacre.stderr";
/// virtio-fs tag of the host's root, read-only.
pub const TAG_ROOT: &str = "root";
/// virtio-fs tag of the checkout's target directory.
pub const TAG_TARGET: &str = "target";

/// A snapshotter of containerd that needs more than its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Snapshotter {
    /// Each snapshot is an ext4 image.
    Blockfile,
    /// Each layer is an erofs image.
    Erofs,
}

impl Snapshotter {
    /// The name for `ctr` and in containerd's configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blockfile => "blockfile",
            Self::Erofs => "erofs",
        }
    }
}

/// A command to run, and what it needs.
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
    /// Directory of the programs containerd and ctr.
    pub containerd: PathBuf,
    /// Version of containerd, as on the command line.
    pub containerd_version: String,
    /// The snapshotter that `ctr` uses; None for containerd's default.
    pub snapshotter: Option<Snapshotter>,
    /// Directory of the program mkfs.erofs, which containerd runs for its snapshotter erofs.
    pub erofs: Option<PathBuf>,
    /// Whether containerd's files are in an ext4 file system instead of a tmpfs.
    pub ext4: bool,
    /// Name of this lab among several side by side.
    pub name: Option<String>,
    /// The busybox image, an OCI archive.
    pub image: PathBuf,
    /// The images of pods, OCI archives; none if containerd's CRI plugin is not wanted.
    pub pod_images: Vec<PathBuf>,
    /// `lib/modules` of the VM's kernel package; None on this machine.
    pub modules: Option<PathBuf>,
    /// Rows and columns of the command's terminal; None if it gets pipes.
    pub terminal: Option<(u16, u16)>,
}

impl Job {
    /// The installation of Nacre that is used: target/nacre, or what NACRE_PREFIX names below target/.
    pub fn prefix(&self) -> PathBuf {
        let mut variables = self.environment.iter();
        let named = variables.find(|(key, _)| key == "NACRE_PREFIX");
        self.target
            .join(named.map_or(OsStr::new("nacre"), |(_, value)| value))
    }
}

/// A message to the VM.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInside {
    /// The first message, sent once.
    Job(Box<Job>),
    /// The terminal's size has changed to these rows and columns.
    Window(u16, u16),
}

/// A message from the VM.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHost {
    /// Heartbeat.
    Heartbeat,
    /// The command is about to start.
    Started,
    /// The command has ended.
    Exit {
        /// Exit code, or 128 + the number of the signal that killed it.
        code: u8,
        /// Total bytes of standard output; the last of them may still be in the port.
        stdout: u64,
        /// Total bytes of standard error.
        stderr: u64,
    },
    /// The VM could not be set up, for this reason.
    Failed(String),
}

/// Writes a message as one line.
pub fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads a message; None at the end of the stream.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Writes a piece of standard input: its length (u32, little-endian), then its bytes. An empty piece is the
/// end.
pub fn send_piece(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

/// Reads a piece of standard input; an empty piece is the end.
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
    fn pieces_are_read_as_written_up_to_the_end() {
        let mut bytes = Vec::new();
        send_piece(&mut bytes, b"a\0b\n").unwrap();
        send_piece(&mut bytes, b"").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(receive_piece(&mut from).unwrap(), b"a\0b\n");
        assert_eq!(receive_piece(&mut from).unwrap(), b"");
        assert!(receive_piece(&mut from).is_err());
    }

    #[test]
    fn messages_are_read_as_written() {
        let mut bytes = Vec::new();
        send(&mut bytes, &ToHost::Heartbeat).unwrap();
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
        assert!(matches!(receive(&mut from).unwrap(), Some(ToHost::Heartbeat)));
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
