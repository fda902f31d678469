//! Reads what containerd writes to `start`'s standard input, without waiting for a person or for a writer that
//! never comes: containerd writes at once and closes, or gives /dev/null.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nacre_pod::sys;
use rustix::fs::FileType;
use rustix::io::Errno;

/// Most bytes that are read; containerd's message has some hundred.
pub const MAX: usize = 1 << 20;
/// How long a writer may take to close the pipe. Whoever runs `start` by hand may leave it open.
const DEADLINE: Duration = Duration::from_secs(2);

/// Reads `input` to its end, or for as long as [`DEADLINE`]. Empty if it is neither a pipe, a socket nor a file.
///
/// # Errors
/// If reading fails, or there are more than [`MAX`] bytes.
pub fn read(input: impl AsFd) -> io::Result<Vec<u8>> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&input)?.st_mode);
    let has_end = matches!(kind, FileType::Fifo | FileType::Socket | FileType::RegularFile);
    let mut bytes = Vec::new();
    if !has_end {
        return Ok(bytes);
    }
    let deadline = Instant::now() + DEADLINE;
    let mut part = [0; 4096];
    while sys::wait_readable(&input, deadline)? {
        match rustix::io::read(&input, &mut part) {
            Ok(0) => return Ok(bytes),
            Ok(length) if bytes.len() + length > MAX => {
                return Err(io::Error::other(format!("expected at most {MAX} bytes")));
            }
            Ok(length) => bytes.extend_from_slice(part.get(..length).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        let written = vec![7; 50_000];
        let thread = std::thread::spawn(move || {
            writer.write_all(&written).unwrap();
        });
        assert_eq!(read(&reader).unwrap(), vec![7; 50_000]);
        thread.join().unwrap();
        assert_eq!(read(&reader).unwrap(), b"");
    }

    #[test]
    fn a_device_is_not_read() {
        for name in ["/dev/null", "/dev/zero"] {
            assert_eq!(read(std::fs::File::open(name).unwrap()).unwrap(), b"");
        }
    }

    #[test]
    fn a_writer_that_does_not_close_ends_by_the_deadline_and_an_endless_one_is_refused() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"abc").unwrap();
        assert_eq!(read(&reader).unwrap(), b"abc");
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX as u64 + 1).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("at most"));
    }
}
