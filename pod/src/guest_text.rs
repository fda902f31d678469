//! Limits of texts that a guest or its VMM chose, for state files, error messages and logs. Where such a text
//! arrives, [`nacre_protocol::text::printable`] is called with one of them.

/// Longest name: of a step, a kernel release, a build.
pub const MAX_NAME: usize = 128;
/// Longest message: of an error, with its causes.
pub const MAX_MESSAGE: usize = 4096;
