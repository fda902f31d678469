//! A guest whose agent lies: [`agent`] is its /init, [`wire`] the frames that it speaks. `nacre-e2e` boots it under
//! the real shim and measures what a lie costs the host.

pub mod agent;
mod lies;
mod wire;

/// The parameter of the kernel's command line with the lie.
pub const PARAMETER: &str = "hostile.lie=";

/// What the agent does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Opens connections to ports that nobody expects, as fast as it can.
    Connections,
    /// Sends answers that nobody waits for, as fast as it can.
    Frames,
    /// Claims that a frame is 4 GiB long.
    LongFrame,
    /// Answers calls before they are made, and each call three times.
    OutOfOrder,
    /// Answers nothing once the container runs.
    Silent,
    /// Answers each question with 4 MiB.
    Large,
    /// Answers with messages of another kind, and for calls of other numbers.
    WrongAnswers,
    /// Reports exits twice, at impossible times, with impossible statuses.
    Exits,
    /// Dials each standard stream from other ports, twice, and the wrong one.
    Streams,
    /// Lists impossible processes and counters.
    Numbers,
    /// Answers at once what it should answer when something happens.
    Hasty,
    /// Claims to have changed more files than there are.
    Mirror,
}

impl Lie {
    /// All of them, each with its name in [`PARAMETER`].
    pub const ALL: [(&'static str, Self); 12] = [
        ("connections", Self::Connections),
        ("frames", Self::Frames),
        ("long-frame", Self::LongFrame),
        ("out-of-order", Self::OutOfOrder),
        ("silent", Self::Silent),
        ("large", Self::Large),
        ("wrong-answers", Self::WrongAnswers),
        ("exits", Self::Exits),
        ("streams", Self::Streams),
        ("numbers", Self::Numbers),
        ("hasty", Self::Hasty),
        ("mirror", Self::Mirror),
    ];
}
