//! Log messages that a guest can cause. They go to standard error, which the shim keeps; each source logs
//! only a few, so that a guest can't fill the host's logs.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many messages one source logs before it announces that it stops.
const MAX_MESSAGES: u32 = 8;

/// A source of at most [`MAX_MESSAGES`] messages, and one more with the note that no others follow.
#[derive(Debug, Default)]
pub struct LimitedLog(AtomicU32);

impl LimitedLog {
    /// A source that has logged nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Logs the text that `message` returns, unless the limit is reached; then `message` is not called.
    pub fn write(&self, message: impl FnOnce() -> String) {
        if self.0.load(Ordering::Relaxed) > MAX_MESSAGES {
            return;
        }
        match self.0.fetch_add(1, Ordering::Relaxed) {
            n if n < MAX_MESSAGES => eprintln!("nacre-vmm: {}", message()),
            MAX_MESSAGES => eprintln!(
                "nacre-vmm: {} (further messages of this kind are dropped)",
                message()
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_log() {
        let log = LimitedLog::new();
        let mut written = 0;
        for _ in 0..1000 {
            log.write(|| {
                written += 1;
                String::new()
            });
        }
        assert_eq!(written, MAX_MESSAGES + 1);
    }
}
