//! What an event in a worker's epoll set is about, as the 64 bits of user data that epoll returns with it.
//! Pure.

/// The source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The worker's own eventfd: the device sent a command.
    Command,
    /// The kick eventfd of this queue.
    Queue(u16),
    /// A descriptor that the data path registered with this number, below 2^62.
    Device(u64),
}

/// The upper two bits tell the variants apart.
const VARIANT_SHIFT: u32 = 62;
const COMMAND: u64 = 1;
const QUEUE: u64 = 2;

impl Token {
    /// As epoll's user data. The upper two bits of a device's number are lost.
    pub fn encode(self) -> u64 {
        match self {
            Self::Command => COMMAND << VARIANT_SHIFT,
            Self::Queue(index) => QUEUE << VARIANT_SHIFT | u64::from(index),
            Self::Device(number) => number & !(0b11 << VARIANT_SHIFT),
        }
    }

    /// The inverse of [`Token::encode`].
    pub fn decode(data: u64) -> Self {
        match data >> VARIANT_SHIFT {
            COMMAND => Self::Command,
            QUEUE => {
                let [low, high, ..] = data.to_le_bytes();
                Self::Queue(u16::from_le_bytes([low, high]))
            }
            _ => Self::Device(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_is_the_inverse_of_encode() {
        for token in [
            Token::Command,
            Token::Queue(0),
            Token::Queue(u16::MAX),
            Token::Device(0),
            Token::Device((1 << 62) - 1),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
