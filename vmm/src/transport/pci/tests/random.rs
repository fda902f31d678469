//! Random operations on all registers: none panics, each page agrees with what the bus reads, and the
//! registers agree with a simple model. NACRE_RANDOM_OPERATIONS sets their number.
#![allow(
    clippy::cast_possible_truncation,
    reason = "random bytes, and offsets below 8 KiB"
)]

use super::driver::{BAR1, BARS, Driver};
use crate::layout::BAR_BYTES;
use crate::virtio::Interrupt as _;
use crate::virtio::testing::Prng;
use crate::virtio::worker::{ActiveDevice, DataPath, Fault};

const VECTORS: usize = 3;
/// Offset in the configuration space of the window on the BARs, from its field for the BAR on, and of its
/// data, whose accesses reach the chosen register.
const WINDOW_BAR: u64 = 0x94;
const WINDOW_DATA: u64 = 0xa0;

struct IdleDataPath;

impl DataPath for IdleDataPath {
    fn on_queue(&mut self, _index: u16, _active: &mut ActiveDevice) -> Result<(), Fault> {
        Ok(())
    }
}

/// What a driver that writes whole registers, at their addresses, reads back.
#[derive(Default)]
struct Model {
    selectors: [u32; 2],
    queue: u16,
    table: [[u32; 4]; VECTORS],
    config_vector: u16,
}

impl Model {
    fn new() -> Self {
        Self {
            table: [[0, 0, 0, 1]; VECTORS],
            config_vector: 0xffff,
            ..Self::default()
        }
    }

    /// A write to BAR 0.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let word = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        let half = <[u8; 2]>::try_from(data).map(u16::from_le_bytes);
        match (offset, word, half) {
            (0, Ok(word), _) => self.selectors[0] = word,
            (8, Ok(word), _) => self.selectors[1] = word,
            (22, _, Ok(half)) => self.queue = half,
            (16, _, Ok(half)) => self.config_vector = if half < 3 { half } else { 0xffff },
            (0x1000..0x1030, _, _)
                if matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64) =>
            {
                for (index, word) in data.chunks(4).enumerate() {
                    let at = (offset as usize - 0x1000) / 4 + index;
                    let word = u32::from_le_bytes(word.try_into().unwrap());
                    let mask = [!3, !0, !0, 1][at % 4];
                    self.table[at / 4][at % 4] = word & mask;
                }
            }
            _ => {}
        }
        if offset == 20 && data == [0] {
            (self.selectors, self.queue, self.config_vector) = ([0; 2], 0, 0xffff);
        }
    }

    fn check(&self, driver: &mut Driver) {
        let bar0 = driver.bar0();
        let word = |at: usize| u32::from_le_bytes(bar0[at..at + 4].try_into().unwrap());
        assert_eq!([word(0), word(8)], self.selectors);
        assert_eq!(word(22) & 0xffff, u32::from(self.queue));
        assert_eq!(word(16) & 0xffff, u32::from(self.config_vector));
        for (index, entry) in self.table.iter().enumerate() {
            let at = 0x1000 + 16 * index;
            assert_eq!([word(at), word(at + 4), word(at + 8), word(at + 12)], *entry);
        }
        assert_eq!(
            word(0x1800) & !0b111,
            0,
            "pending bits of vectors that do not exist"
        );
        let status = bar0[20] & !0xc0;
        assert!([0, 1, 3, 11, 15].contains(&status), "status {status}");
    }
}

/// Mostly the offset of a register.
fn offset(prng: &mut Prng) -> u64 {
    const REGISTERS: [u64; 15] = [0, 4, 8, 12, 16, 18, 20, 22, 24, 26, 28, 32, 36, 40, 48];
    match prng.below(8) {
        0 => prng.below(BAR_BYTES.into()),
        1 => 0x1000 + 4 * prng.below(16),
        2 => 20,
        3 => prng.below(0x200),
        _ => REGISTERS[prng.below(15) as usize],
    }
}

fn data(prng: &mut Prng, offset: u64) -> Vec<u8> {
    let natural = match offset {
        20 => 1,
        16..=30 => 2,
        _ => 4,
    };
    let width = if prng.below(8) == 0 {
        1 << prng.below(4)
    } else {
        natural
    };
    let value = match (offset, prng.below(4)) {
        (20, 0..3) => [0, 1, 3, 11, 15, 15, 0x80, 7][prng.below(8) as usize],
        (_, 0) => prng.next(),
        (_, 1) => 0x1000 * prng.below(0x110),
        _ => prng.below(17),
    };
    value.to_le_bytes()[..width].to_vec()
}

#[test]
fn the_transport_survives_random_operations() {
    let operations = std::env::var("NACRE_RANDOM_OPERATIONS").map_or(20_000, |count| count.parse().unwrap());
    let mut prng = Prng(0x5eed_0006);
    let mut driver = Driver::of_path(IdleDataPath);
    let mut model = Model::new();
    let bars = BARS.map(u32::to_le_bytes);
    for operation in 0..operations {
        match prng.below(20) {
            0 => {
                let at = prng.below(0x1000);
                let bytes = data(&mut prng, at);
                // The window on the BARs could change any register, which the model does not know.
                if at + bytes.len() as u64 <= WINDOW_DATA {
                    driver.write_config(at, &bytes);
                }
            }
            1 => driver.write_config(0x43, &[prng.next() as u8]),
            2 => driver.function.signal_queue(prng.small(3)),
            3 => driver.function.signal_config(),
            4 => drop(
                driver
                    .transport()
                    .device
                    .config()
                    .update(prng.below(9), &[prng.next() as u8]),
            ),
            5 => drop(driver.read(BAR1, prng.below(0x1ff8), 1 << prng.below(4))),
            6 => {
                let at = prng.below(0x1ff8);
                let bytes = data(&mut prng, at);
                driver.write(BAR1, at, &bytes);
            }
            7 => drop(driver.read(0, prng.below(0x1ff8), 1 << prng.below(4))),
            8 => drop(driver.read_config(prng.below(0xff8), 1 << prng.below(4))),
            _ => {
                let at = offset(&mut prng);
                let bytes = data(&mut prng, at);
                driver.write(0, at, &bytes);
                if driver.function.is_mapped(0) {
                    model.write(at, &bytes);
                }
            }
        }
        driver.messages.try_iter().for_each(drop);
        if operation % 16 == 0 {
            driver.write_config(4, &[6]);
            driver.write_config(0x10, &bars[0]);
            driver.write_config(0x14, &bars[1]);
            model.check(&mut driver);
        }
    }
}

#[test]
fn the_window_on_the_bars_survives_random_accesses() {
    let mut prng = Prng(0x5eed_0008);
    let mut driver = Driver::of_path(IdleDataPath);
    let mut chosen_registers = 0;
    for operation in 0..5_000 {
        let register = offset(&mut prng);
        let length = 1 << prng.below(4);
        let mut window = [prng.small(3), 0].map(u16::to_le_bytes).concat();
        window.extend(u32::try_from(register).unwrap().to_le_bytes());
        window.extend(u32::from(prng.small(9)).to_le_bytes());
        driver.write_config(WINDOW_BAR, &window[..4]);
        driver.write_config(WINDOW_BAR + 4, &window[4..]);
        let value = data(&mut prng, register);
        driver.write_config(WINDOW_DATA + prng.below(4), &value);
        driver.function.signal_queue(prng.small(3));
        driver.function.signal_config();
        driver.read_config(WINDOW_DATA, length);
        if operation % 64 == 0 {
            driver.bar0();
        }
        driver.messages.try_iter().for_each(drop);
        chosen_registers += usize::from(driver.read_config(WINDOW_DATA, 4) != [0; 4]);
    }
    assert!(chosen_registers > 100, "{chosen_registers} registers were read");
}
