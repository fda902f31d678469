//! memory.high of the containers' cgroup. The kernel reclaims what is above it before the write(2) returns, so
//! it is written only when it changes: containers whose page cache is at the limit must not make the agent do
//! their work, which every other container of the pod would wait for.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// The file, and what was written to it last.
pub struct High {
    file: PathBuf,
    written: Mutex<Option<String>>,
}

impl High {
    /// The limit in `file`, which is written by the first [`High::set`] in any case.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            written: Mutex::default(),
        }
    }

    /// Sets the limit, KiB; None for no limit.
    pub fn set(&self, kib: Option<u64>) -> Result<(), Error> {
        let text = kib.map_or_else(|| "max".to_owned(), |kib| kib.saturating_mul(1024).to_string());
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.as_ref() != Some(&text) {
            fs::write(&self.file, &text).map_err(Error::file("writing", &self.file))?;
            *written = Some(text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_written_only_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.high");
        let high = High::new(file.clone());
        high.set(None).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "max");
        high.set(Some(2)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "2048");
        fs::remove_file(&file).unwrap();
        high.set(Some(2)).unwrap();
        assert!(!file.exists(), "the same limit was written again");
        high.set(None).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "max");
    }

    #[test]
    fn a_limit_that_could_not_be_written_is_written_the_next_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("missing/memory.high");
        let high = High::new(file.clone());
        assert!(high.set(Some(1)).is_err());
        fs::create_dir(directory.path().join("missing")).unwrap();
        high.set(Some(1)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1024");
    }
}
