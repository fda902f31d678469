//! memory.high of the containers' cgroup. The kernel reclaims what is above it before the write(2) returns, so
//! a child writes it ([`writer`]), and only when it changes: containers whose page cache is at the limit must
//! not have the guest do their work again and again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cgroup::writer;
use crate::error::Error;
use crate::slow_call;

/// The file, and what was written to it last.
pub struct High {
    file: PathBuf,
    /// Locked while a child writes.
    written: Arc<tokio::sync::Mutex<Option<String>>>,
    /// What is to be written, and the child that writes it.
    latest: Arc<Mutex<Latest>>,
}

#[derive(Default)]
struct Latest {
    text: String,
    child: Option<OwnedFd>,
}

impl High {
    /// The limit in `file`, which is written by the first [`High::set`] in any case.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            written: Arc::default(),
            latest: Arc::default(),
        }
    }

    /// Sets the limit, KiB, None for no limit, and waits until the kernel has reclaimed what is above it. A later
    /// call with another limit ends that wait.
    pub async fn set(&self, kib: Option<u64>) -> Result<(), Error> {
        let text = kib.map_or_else(|| "max".to_owned(), |kib| kib.saturating_mul(1024).to_string());
        let failed = Error::file("writing", &self.file);
        self.replace(text).await.map_err(failed)
    }

    async fn replace(&self, text: String) -> io::Result<()> {
        self.begin(&text)?;
        let mut written = Arc::clone(&self.written).lock_owned().await;
        let writer = {
            let mut latest = lock(&self.latest);
            if latest.text != text || written.as_ref() == Some(&text) {
                return Ok(());
            }
            let writer = writer::start(&self.file, &text)?;
            latest.child = Some(writer.child()?);
            writer
        };
        let latest = Arc::clone(&self.latest);
        // A task, so that the lock is held until the child has ended, whoever still waits for this call.
        let writing = tokio::spawn(async move {
            *written = None;
            let result = writer.finish().await;
            lock(&latest).child = None;
            match result {
                Ok(()) => *written = Some(text),
                // Only a later call kills it.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            Ok(())
        });
        writing.await?
    }

    /// Records what is to be written, and kills the child that writes something else.
    fn begin(&self, text: &str) -> io::Result<()> {
        let mut latest = lock(&self.latest);
        if latest.text != text {
            text.clone_into(&mut latest.text);
            latest.child.as_ref().map_or(Ok(()), slow_call::kill)?;
        }
        Ok(())
    }
}

fn lock(latest: &Mutex<Latest>) -> std::sync::MutexGuard<'_, Latest> {
    latest.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use futures::poll;

    use crate::cgroup::writer::full_pipe::FullPipe;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test);
    }

    #[test]
    fn the_limit_is_written_only_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.high");
        fs::write(&file, "").unwrap();
        let high = High::new(file.clone());
        run(async {
            high.set(None).await.unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "max");
            high.set(Some(2)).await.unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "2048");
            fs::remove_file(&file).unwrap();
            high.set(Some(2)).await.unwrap();
            assert!(high.set(None).await.is_err(), "the same limit was written again");
        });
    }

    #[test]
    fn a_limit_that_could_not_be_written_is_written_the_next_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.high");
        let high = High::new(file.clone());
        run(async {
            assert!(high.set(Some(1)).await.is_err());
            fs::write(&file, "").unwrap();
            high.set(Some(1)).await.unwrap();
        });
        assert_eq!(fs::read_to_string(&file).unwrap(), "1024");
    }

    #[test]
    fn the_event_loop_goes_on_while_the_kernel_reclaims() {
        let mut pipe = FullPipe::new();
        let high = High::new(pipe.path());
        run(async {
            let mut set = Box::pin(high.set(Some(1)));
            assert!(poll!(&mut set).is_pending());
            pipe.empty();
            set.await.unwrap();
        });
        assert_eq!(pipe.written(), "1024");
    }

    #[test]
    fn another_limit_does_not_wait_for_the_one_before() {
        let mut pipe = FullPipe::new();
        let high = High::new(pipe.path());
        run(async {
            let mut lower = Box::pin(high.set(Some(1)));
            assert!(poll!(&mut lower).is_pending());
            let mut raise = Box::pin(high.set(Some(2)));
            assert!(poll!(&mut raise).is_pending());
            // Nobody has read from the pipe: the child was killed.
            lower.await.unwrap();
            assert!(poll!(&mut raise).is_pending());
            pipe.empty();
            raise.await.unwrap();
        });
        assert_eq!(pipe.written(), "2048");
    }

    #[test]
    fn a_limit_is_being_written_also_if_nobody_waits() {
        let mut pipe = FullPipe::new();
        let high = High::new(pipe.path());
        run(async {
            let mut set = Box::pin(high.set(Some(1)));
            assert!(poll!(&mut set).is_pending());
            drop(set);
            let mut again = Box::pin(high.set(Some(1)));
            assert!(poll!(&mut again).is_pending());
            pipe.empty();
            again.await.unwrap();
        });
        assert_eq!(pipe.written(), "1024");
    }
}
