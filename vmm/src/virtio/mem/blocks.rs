//! Which blocks of the device's region are plugged, and what the driver's requests do to them (virtio 1.2,
//! 5.15.6). Pure: [`super`] frees the memory of unplugged blocks and answers the driver.

use std::ops::Range;

use nacre_protocol::control::MEMORY_BLOCK_MIB;

/// Size and alignment of a block in bytes: the smallest that Linux plugs on x86-64, and a huge page.
pub const BLOCK: u64 = (MEMORY_BLOCK_MIB as u64) << 20;

/// Blocks that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The guest-physical address of the first one. Any number: the driver has chosen it.
    pub address: u64,
    /// How many there are.
    pub blocks: u16,
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// VIRTIO_MEM_RESP_ACK: it was carried out.
    Ack,
    /// VIRTIO_MEM_RESP_NACK: more would be plugged than was requested of the driver.
    Nack,
    /// VIRTIO_MEM_RESP_ERROR: the request is not valid.
    Error,
    /// The answer to a question.
    State(State),
}

/// Whether blocks are plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All of them.
    Plugged,
    /// None of them.
    Unplugged,
    /// Some of them.
    Mixed,
}

/// The blocks from the region's start to the end of its usable part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// The address of the first block.
    start: u64,
    /// How much the driver is asked to plug, in bytes.
    requested: u64,
    /// How much is plugged, in bytes.
    plugged: u64,
    /// Whether each block is plugged.
    is_plugged: Vec<bool>,
}

impl Blocks {
    /// No block is usable, in a region that starts at `start`.
    pub fn new(start: u64) -> Self {
        Self {
            start,
            requested: 0,
            plugged: 0,
            is_plugged: Vec::new(),
        }
    }

    /// Asks the driver to plug `requested` bytes, in the first `usable` bytes of the region. The usable part
    /// never shrinks (virtio 1.2, 5.15.4).
    pub fn request(&mut self, usable: u64, requested: u64) {
        let blocks = usize::try_from(usable / BLOCK).unwrap_or(usize::MAX);
        if blocks > self.is_plugged.len() {
            self.is_plugged.resize(blocks, false);
        }
        self.requested = requested;
    }

    /// How much the driver is asked to plug, in bytes.
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// How much is plugged, in bytes.
    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// The size of the usable part in bytes.
    pub fn usable(&self) -> u64 {
        bytes(self.is_plugged.len())
    }

    /// Plugs blocks none of which is plugged.
    pub fn plug(&mut self, span: Span) -> Response {
        let Some(range) = self.range(span, false) else {
            return Response::Error;
        };
        let plugged = self.plugged.saturating_add(bytes(range.len()));
        if plugged > self.requested {
            return Response::Nack;
        }
        self.set(range, true);
        self.plugged = plugged;
        Response::Ack
    }

    /// Unplugs blocks all of which are plugged.
    pub fn unplug(&mut self, span: Span) -> Response {
        let Some(range) = self.range(span, true) else {
            return Response::Error;
        };
        self.plugged = self.plugged.saturating_sub(bytes(range.len()));
        self.set(range, false);
        Response::Ack
    }

    /// Unplugs all blocks.
    pub fn unplug_all(&mut self) -> Response {
        self.is_plugged.fill(false);
        self.plugged = 0;
        Response::Ack
    }

    /// Whether blocks are plugged.
    pub fn state(&self, span: Span) -> Response {
        let blocks = self.indices(span).and_then(|range| self.is_plugged.get(range));
        let Some(blocks) = blocks else {
            return Response::Error;
        };
        Response::State(match (blocks.contains(&true), blocks.contains(&false)) {
            (true, true) => State::Mixed,
            (true, false) => State::Plugged,
            (false, _) => State::Unplugged,
        })
    }

    /// The indices of `span` if each of its blocks has this state.
    fn range(&self, span: Span, is_plugged: bool) -> Option<Range<usize>> {
        let range = self.indices(span)?;
        let blocks = self.is_plugged.get(range.clone())?;
        blocks
            .iter()
            .all(|plugged| *plugged == is_plugged)
            .then_some(range)
    }

    /// The indices of `span` if it is at least one whole block; they may exceed the usable part.
    fn indices(&self, span: Span) -> Option<Range<usize>> {
        let offset = span.address.checked_sub(self.start)?;
        if span.blocks == 0 || !offset.is_multiple_of(BLOCK) {
            return None;
        }
        let first = usize::try_from(offset / BLOCK).ok()?;
        Some(first..first.checked_add(span.blocks.into())?)
    }

    fn set(&mut self, range: Range<usize>, is_plugged: bool) {
        if let Some(blocks) = self.is_plugged.get_mut(range) {
            blocks.fill(is_plugged);
        }
    }
}

fn bytes(blocks: usize) -> u64 {
    (blocks as u64).saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 4 << 30;

    fn span(block: u64, blocks: u16) -> Span {
        Span {
            address: START + block * BLOCK,
            blocks,
        }
    }

    /// 64 usable blocks, of which the driver is asked to plug 8.
    fn requested() -> Blocks {
        let mut blocks = Blocks::new(START);
        blocks.request(64 * BLOCK, 8 * BLOCK);
        blocks
    }

    #[test]
    fn blocks_are_plugged_up_to_the_requested_size() {
        let mut blocks = requested();
        assert_eq!(blocks.plug(span(2, 3)), Response::Ack);
        assert_eq!(blocks.plug(span(10, 6)), Response::Nack);
        assert_eq!(blocks.plug(span(63, 1)), Response::Ack);
        assert_eq!(blocks.plug(span(0, 2)), Response::Ack);
        assert_eq!(blocks.plugged(), 6 * BLOCK);
        assert_eq!(blocks.plug(span(5, 2)), Response::Ack);
        assert_eq!(blocks.plug(span(7, 1)), Response::Nack);
        blocks.request(0, 9 * BLOCK);
        assert_eq!(blocks.usable(), 64 * BLOCK);
        assert_eq!(blocks.plug(span(7, 1)), Response::Ack);
    }

    #[test]
    fn only_plugged_blocks_are_unplugged_and_only_unplugged_ones_plugged() {
        let mut blocks = requested();
        assert_eq!(blocks.plug(span(4, 4)), Response::Ack);
        for (block, count) in [(3, 2), (7, 2), (4, 1), (0, 64)] {
            assert_eq!(
                blocks.plug(span(block, count)),
                Response::Error,
                "{block} {count}"
            );
        }
        let before = blocks.clone();
        for (block, count) in [(3, 2), (7, 2), (0, 4), (8, 1), (0, 64)] {
            assert_eq!(
                blocks.unplug(span(block, count)),
                Response::Error,
                "{block} {count}"
            );
        }
        assert_eq!(blocks, before);
        assert_eq!(blocks.unplug(span(5, 2)), Response::Ack);
        assert_eq!(blocks.plugged(), 2 * BLOCK);
        assert_eq!(blocks.unplug(span(5, 1)), Response::Error);
        assert_eq!(blocks.unplug_all(), Response::Ack);
        assert_eq!((blocks.plugged(), blocks.requested()), (0, 8 * BLOCK));
    }

    #[test]
    fn a_lower_request_lets_the_driver_unplug_and_keep() {
        let mut blocks = requested();
        blocks.plug(span(0, 8));
        blocks.request(64 * BLOCK, BLOCK);
        assert_eq!(blocks.plugged(), 8 * BLOCK);
        assert_eq!(blocks.plug(span(8, 1)), Response::Nack);
        assert_eq!(blocks.unplug(span(0, 1)), Response::Ack);
        assert_eq!(blocks.plug(span(0, 1)), Response::Nack);
    }

    #[test]
    fn the_state_of_blocks_is_reported() {
        let mut blocks = requested();
        blocks.plug(span(4, 4));
        for (block, count, state) in [
            (4, 4, State::Plugged),
            (5, 1, State::Plugged),
            (3, 2, State::Mixed),
            (0, 64, State::Mixed),
            (8, 56, State::Unplugged),
        ] {
            assert_eq!(blocks.state(span(block, count)), Response::State(state));
        }
    }

    #[test]
    fn spans_that_are_not_usable_whole_blocks_are_errors() {
        let mut blocks = requested();
        let before = blocks.clone();
        for (address, count) in [
            (START, 0),
            (START + 4096, 1),
            (START - BLOCK, 1),
            (0, 1),
            (START + 63 * BLOCK, 2),
            (START + 64 * BLOCK, 1),
            (START, 65),
            (START, u16::MAX),
            (u64::MAX, 1),
            (u64::MAX - BLOCK + 1, u16::MAX),
        ] {
            let span = Span {
                address,
                blocks: count,
            };
            for response in [blocks.plug(span), blocks.unplug(span), blocks.state(span)] {
                assert_eq!(response, Response::Error, "{span:?}");
            }
        }
        assert_eq!(blocks, before);
        assert_eq!(Blocks::new(START).plug(span(0, 1)), Response::Error);
    }
}
