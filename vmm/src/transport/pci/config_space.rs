//! The configuration space of one function (PCI Local Bus 3.0, 6): a type 0 header, two BARs, and the
//! capabilities of MSI-X and virtio (virtio 1.2, 4.1.4). Pure: it stores what is writable; the function
//! carries out what that means.
//!
//! ```text
//! 0x00 header, 0x10 BAR 0, 0x14 BAR 1    0x40 MSI-X    0x4c common    0x5c ISR    0x6c device configuration
//! 0x7c notifications    0x90 window on the BARs (VIRTIO_PCI_CAP_PCI_CFG)    0xa4 fixed BARs (enhanced allocation)
//! ```
//!
//! The VMM assigns the BARs, as firmware would. The driver can size them and set other addresses, but the
//! function responds only at the assigned ones. There is no interrupt pin and no extended configuration
//! space.

use super::msix::Control;
use super::register::COMMON_BYTES;
use crate::layout::BAR_BYTES;

/// Bytes of the configuration space that have a meaning.
pub const BYTES: usize = 256;

/// In BAR 0: offset of the device configuration structure. The common structure is at 0.
pub const DEVICE_CONFIG: u32 = 0x100;
/// Length of the device configuration structure, in bytes; no device has more.
pub const DEVICE_CONFIG_BYTES: u32 = 0x100;
/// In BAR 0: offset of the MSI-X table, in a page of its own with the pending bits.
pub const MSIX_TABLE: u32 = 0x1000;
/// In BAR 0: offset of the MSI-X pending bit array.
pub const MSIX_PENDING: u32 = 0x1800;
/// Vectors that fit between the two.
pub const MAX_VECTORS: u16 = 128;
/// In BAR 1: offset of the ISR status. The notification addresses start at 0.
pub const ISR: u32 = 0x1000;
/// Distance of two queues' notification addresses, in bytes (notify_off_multiplier).
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// The vendor of all virtio devices, and the device ID of type 0 (virtio 1.2, 4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE_ID: u16 = 0x1040;
/// Latency timer: Linux would write another value if this were below 16.
const LATENCY: u8 = 64;

const COMMAND: usize = 0x04;
const MEMORY_ENABLED: u8 = 1 << 1;
const BUS_MASTER: u8 = 1 << 2;
const BARS: [usize; 2] = [0x10, 0x14];
/// The capabilities' offsets.
const MSIX: u8 = 0x40;
const COMMON: u8 = 0x4c;
const ISR_STATUS: u8 = 0x5c;
const DEVICE: u8 = 0x6c;
const NOTIFY: u8 = 0x7c;
const WINDOW: u8 = 0x90;
/// Enhanced Allocation (PCI Express 4.0, 7.8.5): BARs whose addresses do not change. Only devices that are added
/// to a running guest have it: Linux would assign other addresses to them.
const FIXED: u8 = 0xa4;
/// Upper byte of MSI-X message control.
const MSIX_CONTROL: usize = MSIX as usize + 3;
const MSIX_ENABLED: u8 = 1 << 7;
const FUNCTION_MASKED: u8 = 1 << 6;
/// The fields of the window: bar, offset and length of an access, and pci_cfg_data.
const WINDOW_BAR: usize = WINDOW as usize + 4;
const WINDOW_OFFSET: usize = WINDOW as usize + 8;
const WINDOW_LENGTH: usize = WINDOW as usize + 12;
const WINDOW_DATA: usize = WINDOW as usize + 16;

/// What a function's configuration space is made from.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The device type (virtio 1.2, 5).
    pub device_type: u32,
    /// Number of queues.
    pub queues: u16,
    /// Number of MSI-X vectors, from 1 to [`MAX_VECTORS`].
    pub vectors: u16,
    /// The assigned addresses of the BARs, multiples of [`BAR_BYTES`].
    pub bars: [u32; 2],
    /// Whether to say that these addresses are fixed.
    pub has_fixed_bars: bool,
}

/// An access to a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarAccess {
    /// 0 or 1.
    pub bar: usize,
    /// Offset in the BAR, a multiple of `length`.
    pub offset: u32,
    /// 1, 2 or 4 bytes.
    pub length: usize,
}

/// The bytes of the space, and which of their bits the driver can write.
#[derive(Debug, Clone)]
pub struct PciConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    bars: [u32; 2],
}

impl PciConfigSpace {
    /// The space as after a reset, but with assigned BARs.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bars: identity.bars,
        };
        space.set_header(identity);
        space.set_capabilities(identity);
        space
    }

    fn set_header(&mut self, identity: &Identity) {
        let id = u16::try_from(identity.device_type)
            .unwrap_or_default()
            .saturating_add(FIRST_DEVICE_ID);
        for offset in [0, 0x2c] {
            self.set(offset, &VENDOR.to_le_bytes());
            self.set(offset.saturating_add(2), &id.to_le_bytes());
        }
        // Bit 10 of the command register disables the interrupt pin. Linux tries whether it is writable.
        self.set_writable(COMMAND, &[MEMORY_ENABLED | BUS_MASTER, 1 << 2]);
        // Status, bit 4: there is a list of capabilities.
        self.set(0x06, &[1 << 4]);
        // Revision 1: not transitional. Class 0xff: fits no other.
        self.set(0x08, &[1, 0, 0, 0xff]);
        self.set(0x0d, &[LATENCY]);
        for (offset, address) in BARS.into_iter().zip(identity.bars) {
            self.set(offset, &address.to_le_bytes());
            self.set_writable(offset, &(!BAR_BYTES.saturating_sub(1)).to_le_bytes());
        }
        self.set(0x34, &[MSIX]);
        self.set_writable(0x3c, &[0xff]);
    }

    fn set_capabilities(&mut self, identity: &Identity) {
        let [last_low, last_high] = identity.vectors.saturating_sub(1).to_le_bytes();
        self.set(usize::from(MSIX), &[0x11, COMMON, last_low, last_high & 7]);
        self.set_writable(MSIX_CONTROL, &[MSIX_ENABLED | FUNCTION_MASKED]);
        // The lowest bits name BAR 0.
        self.set(usize::from(MSIX).saturating_add(4), &MSIX_TABLE.to_le_bytes());
        self.set(usize::from(MSIX).saturating_add(8), &MSIX_PENDING.to_le_bytes());
        let notify_bytes = u32::from(identity.queues).saturating_mul(NOTIFY_MULTIPLIER);
        // Offset and next capability, cfg_type, cap_len, BAR, offset and length of the structure.
        for (offset, next, kind, cap_len, bar, structure, length) in [
            (COMMON, ISR_STATUS, 1, 16, 0, 0, COMMON_BYTES),
            (ISR_STATUS, DEVICE, 3, 16, 1, ISR, 1),
            (DEVICE, NOTIFY, 4, 16, 0, DEVICE_CONFIG, DEVICE_CONFIG_BYTES),
            (NOTIFY, WINDOW, 2, 20, 1, 0, notify_bytes),
            (
                WINDOW,
                if identity.has_fixed_bars { FIXED } else { 0 },
                5,
                20,
                0,
                0,
                0,
            ),
        ] {
            let offset = usize::from(offset);
            self.set(offset, &[0x09, next, cap_len, kind, bar]);
            self.set(offset.saturating_add(8), &structure.to_le_bytes());
            self.set(offset.saturating_add(12), &length.to_le_bytes());
        }
        self.set(
            usize::from(NOTIFY).saturating_add(16),
            &NOTIFY_MULTIPLIER.to_le_bytes(),
        );
        if identity.has_fixed_bars {
            self.set_fixed_bars(identity);
        }
        self.set_writable(WINDOW_BAR, &[0xff]);
        self.set_writable(WINDOW_OFFSET, &[0xff; 12]);
    }

    fn set_fixed_bars(&mut self, identity: &Identity) {
        let fixed = usize::from(FIXED);
        self.set(fixed, &[0x14, 0, 2]);
        let mut offset = fixed.saturating_add(4);
        for (bar, address) in (0_u32..).zip(identity.bars) {
            // Two more words follow; BAR number; memory, with no other use; enabled.
            let entry = 2 | bar.wrapping_shl(4) | 0xff << 16 | 1 << 31;
            // The lowest bits of both: 32 bits wide.
            for word in [entry, address, BAR_BYTES.saturating_sub(1) & !3] {
                self.set(offset, &word.to_le_bytes());
                offset = offset.saturating_add(4);
            }
        }
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *byte = *value;
        }
    }

    fn set_writable(&mut self, offset: usize, bits: &[u8]) {
        for (byte, value) in self.writable.iter_mut().skip(offset).zip(bits) {
            *byte = *value;
        }
    }

    /// What the space reads as.
    pub fn bytes(&self) -> &[u8; BYTES] {
        &self.bytes
    }

    /// Sets what the driver has written, as [`PciConfigSpace::bytes`] has returned it. False if `bytes`
    /// differs in what the driver can't write: it is the space of another function.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        let fixed = |(byte, writable): (&u8, &u8)| byte & !writable;
        let pairs = || self.bytes.iter().zip(&self.writable);
        let differs = pairs()
            .zip(bytes)
            .any(|((own, writable), saved)| fixed((own, writable)) != fixed((saved, writable)));
        if bytes.len() != BYTES || differs {
            return false;
        }
        self.bytes.copy_from_slice(bytes);
        true
    }

    /// Handles a write of any length at any offset: changes what is writable. Returns the write to a BAR that
    /// the driver has asked for with it, through the window (virtio 1.2, 4.1.4.9.1).
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Option<(BarAccess, [u8; 4])> {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), value) in bytes.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
        let end = offset.saturating_add(data.len());
        let touches_data = offset < WINDOW_DATA.saturating_add(4) && end > WINDOW_DATA;
        let access = self.window().filter(|_| touches_data)?;
        Some((access, self.u32_at(WINDOW_DATA).to_le_bytes()))
    }

    /// The access that the driver has chosen in the window, if it is valid.
    pub fn window(&self) -> Option<BarAccess> {
        let bar = usize::from(*self.bytes.get(WINDOW_BAR)?);
        let offset = self.u32_at(WINDOW_OFFSET);
        let length = self.u32_at(WINDOW_LENGTH);
        let fits = offset.checked_add(length).is_some_and(|end| end <= BAR_BYTES);
        let valid = bar < BARS.len() && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length) && fits;
        valid.then_some(BarAccess {
            bar,
            offset,
            length: usize::try_from(length).ok()?,
        })
    }

    /// Sets what the window's pci_cfg_data reads as.
    pub fn set_window_data(&mut self, data: &[u8]) {
        self.set(WINDOW_DATA, data);
    }

    /// Whether the function responds to memory accesses in `bar`: the driver has enabled them and has not
    /// moved the BAR.
    pub fn is_mapped(&self, bar: usize) -> bool {
        let enabled = self
            .bytes
            .get(COMMAND)
            .is_some_and(|command| command & MEMORY_ENABLED != 0);
        let register = BARS.get(bar).map(|offset| self.u32_at(*offset));
        enabled && register.is_some() && register == self.bars.get(bar).copied()
    }

    /// The bits that decide about interrupts.
    pub fn interrupt_control(&self) -> Control {
        let is_set = |offset: usize, bit: u8| self.bytes.get(offset).is_some_and(|byte| byte & bit != 0);
        Control {
            enabled: is_set(MSIX_CONTROL, MSIX_ENABLED),
            function_masked: is_set(MSIX_CONTROL, FUNCTION_MASKED),
            bus_master: is_set(COMMAND, BUS_MASTER),
        }
    }

    fn u32_at(&self, offset: usize) -> u32 {
        let word = self.bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
        word.copied().map_or(0, u32::from_le_bytes)
    }
}
