//! Writes to a file of a cgroup whose write(2) reclaims memory before it returns (memory.high, memory.max). Called
//! by `memory` and for updates of a container's limits.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::slow_call::SlowCall;

/// Starts to write `text` to `file`, by one write(2).
///
/// # Errors
/// If the file can't be opened, or there can be no child.
pub fn start(file: &Path, text: &str) -> io::Result<SlowCall> {
    let file = File::options().write(true).open(file)?;
    SlowCall::start([file.as_raw_fd()], || (&file).write_all(text.as_bytes()))
}

/// As [`start`], and waits until write(2) has returned.
///
/// # Errors
/// Those of [`start`] and of write(2).
pub async fn write(file: &Path, text: &str) -> io::Result<()> {
    start(file, text)?.finish().await
}

/// A full pipe, to which a write blocks as one that reclaims does.
#[cfg(test)]
pub mod full_pipe {
    use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;

    use rustix::fs::{OFlags, fcntl_setfl};

    pub struct FullPipe {
        reader: PipeReader,
        writer: PipeWriter,
        length: usize,
    }

    impl FullPipe {
        pub fn new() -> Self {
            let (reader, mut writer) = pipe().unwrap();
            fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
            let mut length = 0;
            while let Ok(count) = writer.write(&[b'.'; 4096]) {
                length += count;
            }
            Self {
                reader,
                writer,
                length,
            }
        }

        /// The file. A writer opens it again, without O_NONBLOCK.
        pub fn path(&self) -> PathBuf {
            format!("/proc/self/fd/{}", self.writer.as_raw_fd()).into()
        }

        /// Empties the pipe.
        pub fn empty(&mut self) {
            self.reader.read_exact(&mut vec![0; self.length]).unwrap();
        }

        /// What was written to the emptied pipe.
        pub fn written(mut self) -> String {
            drop(self.writer);
            let mut text = String::new();
            self.reader.read_to_string(&mut text).unwrap();
            text
        }
    }
}
