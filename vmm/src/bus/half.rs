//! Half of a 64-bit register, since most registers are accessed by 32 bits at a time. Pure.

/// Half of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Bits 31:0.
    Low,
    /// Bits 63:32.
    High,
}

impl Half {
    /// `register` with this half replaced by `value`.
    #[must_use]
    pub fn replace(self, register: u64, value: u32) -> u64 {
        match self {
            Self::Low => register & !u64::from(u32::MAX) | u64::from(value),
            Self::High => register & u64::from(u32::MAX) | u64::from(value) << 32,
        }
    }

    /// This half of `register`.
    #[must_use]
    pub fn of(self, register: u64) -> u32 {
        let half = match self {
            Self::Low => register & u64::from(u32::MAX),
            Self::High => register >> 32,
        };
        u32::try_from(half).unwrap_or_default()
    }
}
