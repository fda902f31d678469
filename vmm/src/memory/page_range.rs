//! Ranges of pages of a file of guest memory. A snapshot has them, and the mapping of guest memory follows them.

use serde::{Deserialize, Serialize};

/// Most pages that are copied before a guest continues: 4 MiB, which each restored VM has as memory of its own.
pub const MAX_EARLY_WRITES: u32 = 1024;

/// Pages of the file of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    /// The number of the first page.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl PageRange {
    /// The number of the page after the last one.
    #[must_use]
    pub fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }
}
