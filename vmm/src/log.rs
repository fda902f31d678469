//! Messages that a guest can cause: a few of them, then one that says so, then none. They go to standard error,
//! which the shim keeps.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many messages of one kind are said.
const MOST: u32 = 8;

/// A bounded source of messages.
#[derive(Debug, Default)]
pub struct Limited(AtomicU32);

impl Limited {
    /// A source that has said nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Says what `message` gives, unless too much was said.
    pub fn say(&self, message: impl FnOnce() -> String) {
        if self.0.load(Ordering::Relaxed) > MOST {
            return;
        }
        match self.0.fetch_add(1, Ordering::Relaxed) {
            n if n < MOST => eprintln!("nacre-vmm: {}", message()),
            MOST => eprintln!("nacre-vmm: {} (no more of these)", message()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_log() {
        let log = Limited::new();
        let mut said = 0;
        for _ in 0..1000 {
            log.say(|| {
                said += 1;
                String::new()
            });
        }
        assert_eq!(said, MOST + 1);
    }
}
