//! The device with a driver of ours, on in-memory guest memory, with each of its engines.

mod malformed;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::virtio::testing::{
    BUFFERS, Driver, Fields, assert_passes_confined, hammer, is_confined, is_recorded, readable, writable,
};

/// The size of the disk: 1 MiB.
const SECTORS: u64 = 2048;
const SECTOR_BYTES: usize = 512;
/// Types of requests (virtio 1.2, 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// What the status is before the device writes it.
const NO_STATUS: u8 = 0xff;
/// Where the parts of request number `n` are: its header, the status, and 64 KiB of data.
const DATA: u64 = BUFFERS + 0x1_0000;

fn header_at(n: u64) -> u64 {
    BUFFERS + 0x100 * n
}

fn status_at(n: u64) -> u64 {
    header_at(n) + 0x80
}

fn data_at(n: u64) -> u64 {
    DATA + 0x1_0000 * n
}

struct Options {
    io_uring: bool,
    is_read_only: bool,
    queues: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            io_uring: true,
            is_read_only: false,
            queues: 1,
        }
    }
}

/// A device with a disk each of whose sectors begins with its number, and its driver.
struct Fixture {
    device: Device,
    driver: Driver,
    file: File,
}

impl Fixture {
    fn new(io_uring: bool) -> Self {
        Self::with(Options {
            io_uring,
            ..Options::default()
        })
    }

    fn with(options: Options) -> Self {
        let Options {
            io_uring,
            is_read_only,
            queues,
        } = options;
        let mut file = tempfile::tempfile().unwrap();
        for sector in 0..SECTORS {
            let mut bytes = [0x11; SECTOR_BYTES];
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
            file.write_all(&bytes).unwrap();
        }
        let mut config =
            Config::new(file.try_clone().unwrap().into(), is_read_only, "disk-1", queues).unwrap();
        config.io_uring = io_uring && !is_recorded();
        let driver = Driver::new(&vec![QUEUE_SIZE; queues.into()]);
        let mut device = spawn(config, &driver.env()).unwrap();
        device.activate(driver.activation(device.features())).unwrap();
        Self { device, driver, file }
    }

    /// Makes request number `n` available on queue 0.
    fn offer(&mut self, n: u64, kind: u32, sector: u64, data: &[Fields]) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.driver.set_bytes(header_at(n), &header);
        self.driver.set_bytes(status_at(n), &[NO_STATUS]);
        let chain = [&[readable(header_at(n), 16)], data, &[writable(status_at(n), 1)]].concat();
        self.driver.offer(0, &chain);
    }

    /// Carries out a request; returns its status, and how many bytes the device says that it wrote.
    fn request(&mut self, kind: u32, sector: u64, data: &[Fields]) -> (u8, u32) {
        self.offer(0, kind, sector, data);
        self.driver.kick(0);
        let (_, length) = self.driver.wait_used(0);
        (self.driver.bytes(status_at(0), 1)[0], length)
    }

    /// Carries out a request with a range.
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let range = [
            &sector.to_le_bytes()[..],
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat();
        self.driver.set_bytes(DATA, &range);
        self.request(kind, 0, &[readable(DATA, 16)]).0
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR_BYTES];
        self.file.read_exact_at(&mut bytes, sector * SECTOR).unwrap();
        bytes
    }
}

#[test]
fn sectors_are_read_and_written() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        assert_eq!(disk.request(IN, 5, &[writable(DATA, 1024)]), (0, 1025));
        assert_eq!(disk.driver.bytes(DATA, 8), 5_u64.to_le_bytes());
        assert_eq!(disk.driver.bytes(DATA + SECTOR, 8), 6_u64.to_le_bytes());
        disk.driver.set_bytes(DATA, &[0x5a; 1024]);
        assert_eq!(disk.request(OUT, SECTORS - 2, &[readable(DATA, 1024)]), (0, 1));
        assert_eq!(disk.request(FLUSH, 0, &[]), (0, 1));
        assert_eq!(disk.sector(SECTORS - 1), [0x5a; SECTOR_BYTES]);
        assert_eq!(disk.sector(SECTORS - 3)[..8], (SECTORS - 3).to_le_bytes());
    }
}

#[test]
fn a_driver_may_divide_a_request_into_any_buffers() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        let header = [&IN.to_le_bytes()[..], &[0; 4], &9_u64.to_le_bytes()].concat();
        disk.driver.set_bytes(header_at(0), &header);
        // Half of the header, the rest, 500 bytes of data, and 12 bytes of data with the status.
        let chain = [
            readable(header_at(0), 7),
            readable(header_at(0) + 7, 9),
            writable(DATA, 500),
            writable(DATA + 0x1000, 13),
        ];
        disk.driver.offer(0, &chain);
        disk.driver.kick(0);
        assert_eq!(disk.driver.wait_used(0).1, 513);
        assert_eq!(disk.driver.bytes(DATA, 8), 9_u64.to_le_bytes());
        assert_eq!(
            disk.driver.bytes(DATA + 0x1000, 13),
            [&[0x11; 12][..], &[0]].concat()
        );
        // The header and the data in one buffer.
        let request = [
            &OUT.to_le_bytes()[..],
            &[0; 4],
            &3_u64.to_le_bytes(),
            &[0x77; 512],
        ]
        .concat();
        disk.driver.set_bytes(DATA, &request);
        disk.driver
            .offer(0, &[readable(DATA, 528), writable(status_at(0), 1)]);
        disk.driver.kick(0);
        assert_eq!(disk.driver.wait_used(0).1, 1);
        assert_eq!(disk.sector(3), [0x77; SECTOR_BYTES]);
    }
}

#[test]
fn ranges_are_discarded_and_filled_with_zeros() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        for (kind, sector, flags) in [(DISCARD, 100, 0), (WRITE_ZEROES, 200, 0), (WRITE_ZEROES, 300, 1)] {
            assert_eq!(disk.range(kind, sector, 8, flags), 0, "{kind} {flags}");
            assert_eq!(disk.sector(sector - 1)[..8], (sector - 1).to_le_bytes());
            assert_eq!(disk.sector(sector), [0; SECTOR_BYTES]);
            assert_eq!(disk.sector(sector + 7), [0; SECTOR_BYTES]);
            assert_eq!(disk.sector(sector + 8)[..8], (sector + 8).to_le_bytes());
        }
        for (kind, sector, sectors, flags, status) in [
            (DISCARD, 0, 8, 1, 2),
            (DISCARD, 0, 8, 2, 2),
            (WRITE_ZEROES, 0, 8, 2, 2),
            (DISCARD, SECTORS - 1, 2, 0, 1),
            (DISCARD, u64::MAX, 2, 0, 1),
            (WRITE_ZEROES, 0, u32::MAX, 0, 1),
            (WRITE_ZEROES, 0, 0, 0, 1),
        ] {
            assert_eq!(
                disk.range(kind, sector, sectors, flags),
                status,
                "{kind} {sector} {sectors} {flags}"
            );
        }
        assert_eq!(disk.sector(0)[8..], [0x11; SECTOR_BYTES - 8]);
    }
}

#[test]
fn the_guest_reads_the_disk_s_id() {
    let mut disk = Fixture::new(true);
    assert_eq!(disk.request(GET_ID, 0, &[writable(DATA, 20)]), (0, 21));
    assert_eq!(
        disk.driver.bytes(DATA, 20),
        *b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(disk.request(GET_ID, 0, &[writable(DATA, 19)]).0, 1);
}

#[test]
fn a_read_only_disk_is_not_written() {
    for io_uring in [true, false] {
        let mut disk = Fixture::with(Options {
            io_uring,
            is_read_only: true,
            ..Options::default()
        });
        assert_ne!(disk.device.features() & feature(bits::VIRTIO_BLK_F_RO), 0);
        assert_eq!(disk.request(OUT, 0, &[readable(DATA, 512)]), (1, 1));
        assert_eq!(disk.range(DISCARD, 0, 1, 0), 1);
        assert_eq!(disk.range(WRITE_ZEROES, 0, 1, 0), 1);
        assert_eq!(disk.request(IN, 0, &[writable(DATA, 512)]).0, 0);
        assert_eq!(disk.sector(0)[8], 0x11);
    }
}

#[test]
fn many_requests_are_in_progress_at_once() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        for n in 0..64 {
            disk.offer(n, IN, n * 3, &[writable(data_at(n), 0x1_0000)]);
        }
        disk.driver.kick(0);
        for _ in 0..64 {
            assert_eq!(disk.driver.wait_used(0).1, 0x1_0001);
        }
        for n in 0..64 {
            assert_eq!(disk.driver.bytes(status_at(n), 1), [0]);
            assert_eq!(disk.driver.bytes(data_at(n), 8), (n * 3).to_le_bytes());
        }
    }
}

#[test]
fn a_pause_waits_for_all_requests() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        for round in 0..50 {
            for n in 0..16 {
                disk.offer(n, OUT, n * 128, &[readable(data_at(n), 0x1_0000)]);
            }
            disk.driver.kick(0);
            let [queue] = disk.device.pause().unwrap().try_into().unwrap();
            assert_eq!(queue.next_avail, queue.next_used, "round {round}");
            disk.device.resume().unwrap();
            for _ in 0..16 {
                disk.driver.wait_used(0);
            }
        }
    }
}

#[test]
fn each_queue_is_served() {
    let mut disk = Fixture::with(Options {
        queues: 4,
        ..Options::default()
    });
    let header = [&IN.to_le_bytes()[..], &[0; 4], &1_u64.to_le_bytes()].concat();
    disk.driver.set_bytes(header_at(0), &header);
    for queue in 0..4 {
        let chain = [
            readable(header_at(0), 16),
            writable(DATA, 512),
            writable(status_at(0), 1),
        ];
        disk.driver.offer(queue, &chain);
        disk.driver.kick(queue);
        assert_eq!(disk.driver.wait_used(queue).1, 513, "queue {queue}");
    }
}

#[test]
fn a_file_that_has_become_shorter_is_an_i_o_error() {
    for io_uring in [true, false] {
        let mut disk = Fixture::new(io_uring);
        disk.file.set_len(SECTOR + 100).unwrap();
        assert_eq!(disk.request(IN, 8, &[writable(DATA, 512)]), (1, 1));
        // A part is read, and then nothing more.
        assert_eq!(disk.request(IN, 1, &[writable(DATA, 512)]), (1, 1));
        assert_eq!(disk.request(IN, 0, &[writable(DATA, 512)]), (0, 513));
    }
}

#[test]
fn the_configuration_space_is_that_of_the_specification() {
    let disk = Fixture::with(Options {
        queues: 4,
        ..Options::default()
    });
    let mut space = [0; 60];
    disk.device.config().read(0, &mut space);
    let u32_at = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(space[..8], SECTORS.to_le_bytes());
    assert_eq!((u32_at(8), u32_at(12)), (0, 254), "size_max, seg_max");
    assert_eq!((u32_at(20), space[24]), (512, 3), "blk_size, physical_block_exp");
    assert_eq!(space[34..36], 4_u16.to_le_bytes(), "num_queues");
    assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (1 << 21, 1, 1), "discard");
    assert_eq!(
        (u32_at(48), u32_at(52), space[56]),
        (1 << 21, 1, 1),
        "write_zeroes"
    );
}

#[test]
fn what_can_t_be_a_disk_is_refused() {
    let open = |path: &str, write| File::options().read(true).write(write).open(path).unwrap();
    let refused = |file: File, is_read_only, id: &str, queues| {
        Config::new(file.into(), is_read_only, id, queues)
            .unwrap_err()
            .to_string()
    };
    let file = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1024).unwrap();
        file
    };
    let short = tempfile::tempfile().unwrap();
    short.set_len(511).unwrap();
    assert!(refused(open("/dev/null", true), false, "", 1).contains("CharacterDevice"));
    assert!(refused(open("/", false), true, "", 1).contains("Directory"));
    assert!(refused(open("/proc/self/exe", false), false, "", 1).contains("not open for writing"));
    assert!(refused(short, false, "", 1).contains("511"));
    assert!(refused(file(), false, "a name with blanks", 1).contains("a name with blanks"));
    assert!(refused(file(), false, "012345678901234567890", 1).contains("at most 20"));
    assert!(refused(file(), false, "", 0).contains("1 to 8 queues"));
    assert!(refused(file(), false, "", 9).contains("1 to 8 queues"));
}

#[test]
fn works_confined() {
    assert_passes_confined("virtio::blk::tests::sectors_are");
    assert_passes_confined("virtio::blk::tests::ranges_are");
    assert_passes_confined("virtio::blk::tests::a_pause");
}
