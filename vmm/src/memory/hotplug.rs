//! The memory that is plugged in while the VM runs: one range of guest-physical addresses, of which a growing
//! part at the start has memory. Called by `machine/plug.rs`; knows neither KVM nor a device.
//!
//! Nothing is mapped before the first growth, so a VM whose memory never grows does not pay for this.

use std::ptr::NonNull;

use vm_memory::{GuestAddress, GuestRegionMmap};

use super::ranges::{HOTPLUG_ALIGNMENT, Range};
use super::{Backing, Error, Memory, PagePolicy, mapping};

/// The range, and how much of it has memory.
#[derive(Debug)]
pub struct Hotplug {
    range: Range,
    /// How many bytes at the start have memory: a multiple of [`HOTPLUG_ALIGNMENT`].
    mapped: u64,
    /// The host's addresses of the whole range, once they are reserved.
    reserved: Option<NonNull<libc::c_void>>,
}

/// Memory that was added.
#[derive(Debug)]
pub struct Growth {
    /// All of guest memory.
    pub memory: Memory,
    /// The guest-physical addresses that are new.
    pub added: Range,
    /// The host's address of the first one.
    pub host: u64,
}

impl Hotplug {
    /// `range`, without memory.
    #[must_use]
    pub fn new(range: Range) -> Self {
        Self {
            range,
            mapped: 0,
            reserved: None,
        }
    }

    /// The size of the range.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.range.bytes
    }

    /// How many bytes at the start have memory.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Guest memory with at least `bytes` of the range, which `memory` has up to [`Hotplug::mapped`]; None if
    /// `memory` has them already. It has them for good once it is passed to [`Hotplug::commit`]; until then,
    /// this may be called again.
    ///
    /// # Errors
    /// [`Error`] if the host has no memory or no addresses left, or if the range is too short.
    pub fn grow(&mut self, memory: &Memory, bytes: u64) -> Result<Option<Growth>, Error> {
        let Range { start, bytes: max } = self.range;
        let bytes = bytes.checked_next_multiple_of(HOTPLUG_ALIGNMENT);
        let bytes = bytes.filter(|bytes| *bytes <= max);
        let bytes = bytes.ok_or_else(|| Error::Layout(format!("more than {max} bytes to be plugged in")))?;
        if bytes <= self.mapped {
            return Ok(None);
        }
        let region = mapping::provide(self.reserve()?.as_ptr(), bytes)?;
        let host = (region.as_ptr().addr() as u64).saturating_add(self.mapped);
        let region = GuestRegionMmap::new(region, GuestAddress(start))
            .ok_or_else(|| Error::Layout(format!("{bytes} bytes at {start:#x} exceed the address space")))?;
        let layout = |error: vm_memory::GuestRegionCollectionError| Error::Layout(error.to_string());
        let others = if self.mapped == 0 {
            memory.clone()
        } else {
            memory
                .remove_region(GuestAddress(start), self.mapped)
                .map_err(layout)?
                .0
        };
        Ok(Some(Growth {
            memory: others.insert_region(region.into()).map_err(layout)?,
            added: Range {
                start: start.saturating_add(self.mapped),
                bytes: bytes.saturating_sub(self.mapped),
            },
            host,
        }))
    }

    /// `growth` is guest memory from now on.
    pub fn commit(&mut self, growth: &Growth) {
        self.mapped = growth.added.end().saturating_sub(self.range.start);
    }

    fn reserve(&mut self) -> Result<NonNull<libc::c_void>, Error> {
        if let Some(reserved) = self.reserved {
            return Ok(reserved);
        }
        let policy = PagePolicy::of(&Backing::Anonymous);
        let reserved = NonNull::new(mapping::reserve(self.range.bytes, policy)?);
        self.reserved = reserved;
        reserved.ok_or_else(|| Error::Layout("mapped at address 0".to_owned()))
    }
}
