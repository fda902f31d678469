//! How far a process's outputs are written: each copy counts what it moves and its own end, and whoever waits
//! for the end learns whether it still comes. No I/O, no threads.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Outputs that are still copied, and how often one of them got further.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    left: usize,
    moves: u64,
}

/// The counts of a process's outputs, for those who copy.
#[derive(Debug)]
pub struct Copies(watch::Sender<Counts>);

/// The copy of one output. Dropping it counts the output as written, however the copy ended.
#[derive(Debug)]
pub struct OutputCopy(watch::Sender<Counts>);

/// How far a process's outputs are written.
#[derive(Debug, Clone)]
pub struct Outputs(watch::Receiver<Counts>);

/// The counts of a process that has no output yet.
pub fn outputs() -> (Copies, Outputs) {
    let (sender, receiver) = watch::channel(Counts::default());
    (Copies(sender), Outputs(receiver))
}

impl Copies {
    /// Counts one output more.
    pub fn begin(&self) -> OutputCopy {
        self.0
            .send_modify(|counts| counts.left = counts.left.saturating_add(1));
        OutputCopy(self.0.clone())
    }
}

impl OutputCopy {
    /// Counts bytes that were moved.
    pub fn moved(&self) {
        self.0
            .send_modify(|counts| counts.moves = counts.moves.wrapping_add(1));
    }
}

impl Drop for OutputCopy {
    fn drop(&mut self) {
        self.0
            .send_modify(|counts| counts.left = counts.left.saturating_sub(1));
    }
}

impl Outputs {
    /// Waits until all output is written, or the streams are dropped.
    pub async fn written(&mut self) {
        // An error: every copy has ended.
        let _ = self.0.wait_for(|counts| counts.left == 0).await;
    }

    /// As [`Outputs::written`], but gives up if no byte is moved for `stall`, or at `limit`. Returns whether
    /// all output is written.
    pub async fn written_unless_stalled(&mut self, stall: Duration, limit: Duration) -> bool {
        let written = async {
            loop {
                if self.0.borrow_and_update().left == 0 {
                    return true;
                }
                match timeout(stall, self.0.changed()).await {
                    Ok(Ok(())) => {}
                    // Every copy has ended.
                    Ok(Err(_)) => return true,
                    Err(_) => return false,
                }
            }
        };
        timeout(limit, written).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn without_an_output_or_after_its_end_all_is_written() {
        let (copies, mut outputs) = outputs();
        outputs.written().await;
        assert!(outputs.written_unless_stalled(LONG, LONG).await);
        drop((copies.begin(), copies.begin()));
        outputs.written().await;
        assert!(outputs.written_unless_stalled(LONG, LONG).await);
    }

    #[tokio::test]
    async fn an_output_that_does_not_move_is_given_up() {
        let (copies, mut outputs) = outputs();
        let (_stalled, ended) = (copies.begin(), copies.begin());
        drop(ended);
        assert!(!outputs.written_unless_stalled(SHORT, LONG).await);
        assert!(!outputs.written_unless_stalled(LONG, SHORT).await);
    }

    #[tokio::test]
    async fn an_output_that_moves_is_awaited_for_longer_than_a_stall() {
        const STALL: Duration = Duration::from_secs(1);
        let (copies, mut outputs) = outputs();
        let copy = copies.begin();
        let moving = tokio::spawn(async move {
            let mut clock = tokio::time::interval(STALL / 10);
            for _ in 0..15 {
                clock.tick().await;
                copy.moved();
            }
        });
        assert!(outputs.written_unless_stalled(STALL, LONG).await);
        moving.await.unwrap();
    }
}
