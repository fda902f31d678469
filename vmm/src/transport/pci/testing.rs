//! A driver of one function: it writes what a test asks for, and collects the interrupts.

#![cfg_attr(not(test), allow(dead_code, missing_docs, reason = "the fuzzer needs a part"))]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use crate::jail::Confinement;
use crate::jail::calls::rng;
use crate::layout::BAR_BYTES;
use crate::memory::{Memory, SharedMemory};
use crate::msi::Message;
use crate::transport::pci::config_space::ISR;
use crate::transport::pci::function::{FunctionPages, PciFunction};
use crate::transport::pci::page::RegisterPages;
use crate::transport::pci::register::COMMON_BYTES;
use crate::transport::pci::{Areas, PciTransport, Placement, VERSION_1};
use crate::virtio::worker::{ActiveDevice, DataPath, Fault};
use crate::virtio::{Device, Env, Report, Spec};

pub const FEATURES: u64 = VERSION_1 | 1 << 29 | 1 << 28 | 1;
pub const MEMORY: u64 = 1 << 20;
pub const BARS: [u32; 2] = [0xd010_0000, 0xd018_0000];
/// Number of BAR 1.
pub const BAR1: usize = 1;
/// Offset of device_status.
pub const STATUS: u64 = 20;

/// Blocks in `stop` until the test drops the sender.
struct TestDataPath(Receiver<()>);

impl DataPath for TestDataPath {
    fn on_queue(&mut self, _index: u16, _active: &mut ActiveDevice) -> Result<(), Fault> {
        panic!("asked to panic")
    }

    fn stop(&mut self, _active: &mut ActiveDevice) {
        // Fails once the sender is dropped.
        let _ = self.0.recv();
    }
}

/// The test device, served by `path`, and the reports of its worker.
fn device(path: impl DataPath + Send + 'static) -> (Device, Receiver<Report>) {
    let (reporter, reports) = channel();
    let spec = Spec {
        name: "test",
        device_type: 4,
        queue_sizes: vec![8, 16],
        features: 1,
        config: (0..8).collect(),
        config_writable: 4..8,
        profile: &rng::PROFILE,
    };
    let env = Env {
        confinement: Confinement::none(),
        report: Arc::new(move |report| drop(reporter.send(report))),
        hotplug: crate::virtio::testing::HOTPLUG,
    };
    (Device::spawn(spec, &env, || Ok(path)).unwrap(), reports)
}

pub fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

pub struct Driver {
    /// Dropped to let the data path stop, so before the device.
    pub may_stop: Option<Sender<()>>,
    areas: Areas,
    transport: Arc<Mutex<PciTransport>>,
    pub function: Arc<PciFunction>,
    pub pages: FunctionPages,
    pub ioeventfds: Vec<EventFd>,
    pub messages: Receiver<Message>,
    pub reports: Receiver<Report>,
    pub memory: Arc<Memory>,
}

impl Driver {
    /// A driver of the test device, with memory accesses enabled.
    pub fn new() -> Self {
        let (may_stop, stops) = channel();
        let mut driver = Self::of_path(TestDataPath(stops));
        driver.may_stop = Some(may_stop);
        driver
    }

    /// A driver of the test device, served by `path`.
    pub fn of_path(path: impl DataPath + Send + 'static) -> Self {
        let (device, reports) = device(path);
        Self::of(device, reports)
    }

    /// A driver of `device`, with memory accesses and bus mastering enabled.
    pub fn of(device: Device, reports: Receiver<Report>) -> Self {
        let memory = Arc::new(crate::memory::allocate(MEMORY).unwrap());
        Self::on(RegisterPages::allocate(3).unwrap(), memory, device, reports)
    }

    /// As [`Driver::of`], with three pages and a memory that no function uses any more: they are never freed.
    pub fn on(
        all_pages: RegisterPages,
        memory: Arc<Memory>,
        device: Device,
        reports: Receiver<Report>,
    ) -> Self {
        let ioeventfds: Vec<EventFd> = device.queue_sizes().iter().map(|_| event()).collect();
        let pages = FunctionPages {
            config: all_pages,
            bar0: all_pages.skip(1),
        };
        let (sender, messages) = channel();
        let placement = Placement {
            has_fixed_bars: false,
            vectors: 3,
            bars: BARS,
            pages,
            ioeventfds: ioeventfds
                .iter()
                .map(|event| event.try_clone().unwrap())
                .collect(),
            send: Arc::new(move |message| sender.send(message).map_err(std::io::Error::other)),
        };
        let transport = PciTransport::new(device, SharedMemory::new(Arc::clone(&memory)), placement);
        let function = Arc::clone(&transport.function);
        let transport = Arc::new(Mutex::new(transport));
        let mut driver = Self {
            may_stop: None,
            areas: PciTransport::areas(&transport),
            transport,
            function,
            pages,
            ioeventfds,
            messages,
            reports,
            memory,
        };
        driver.write_config(4, &[6]);
        driver
    }

    pub fn transport(&self) -> MutexGuard<'_, PciTransport> {
        self.transport.lock().unwrap()
    }

    pub fn read(&mut self, bar: usize, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xee; length];
        match bar {
            0 => {
                self.areas.bar0.read(offset, &mut data);
                let mut page = vec![0; length];
                self.pages.bar0.load(usize::try_from(offset).unwrap(), &mut page);
                assert_eq!(page, data, "the page and the registers differ at {offset:#x}");
            }
            _ => self.areas.bar1.read(offset, &mut data),
        }
        data
    }

    pub fn write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            0 => self.areas.bar0.write(offset, data),
            _ => self.areas.bar1.write(offset, data),
        }
    }

    pub fn read_config(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xee; length];
        self.areas.config.read(offset, &mut data);
        let mut page = vec![0; length];
        self.pages
            .config
            .load(usize::try_from(offset).unwrap(), &mut page);
        assert_eq!(
            page, data,
            "the page and the configuration space differ at {offset:#x}"
        );
        data
    }

    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.areas.config.write(offset, data);
    }

    pub fn config32(&mut self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read_config(offset, 4).try_into().unwrap())
    }

    /// All of BAR 0, compared with its pages.
    pub fn bar0(&mut self) -> Vec<u8> {
        self.read(0, 0, usize::try_from(BAR_BYTES).unwrap())
    }

    /// The common configuration structure.
    pub fn common(&mut self) -> Vec<u8> {
        self.read(0, 0, usize::try_from(COMMON_BYTES).unwrap())
    }

    pub fn read8(&mut self, offset: u64) -> u8 {
        self.read(0, offset, 1)[0]
    }

    pub fn read16(&mut self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(0, offset, 2).try_into().unwrap())
    }

    pub fn read32(&mut self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(0, offset, 4).try_into().unwrap())
    }

    pub fn write16(&mut self, offset: u64, value: u16) {
        self.write(0, offset, &value.to_le_bytes());
    }

    pub fn write32(&mut self, offset: u64, value: u32) {
        self.write(0, offset, &value.to_le_bytes());
    }

    pub fn read_isr(&mut self) -> u8 {
        self.read(BAR1, u64::from(ISR), 1)[0]
    }

    pub fn set_status(&mut self, status: u8) {
        self.write(0, STATUS, &[status]);
    }

    pub fn status(&mut self) -> u8 {
        self.read8(STATUS)
    }

    pub fn needs_reset(&mut self) -> bool {
        self.status() & 0x40 != 0
    }

    pub fn accept(&mut self, features: u64) {
        for half in [0u32, 1] {
            self.write32(8, half);
            self.write32(12, u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap());
        }
    }

    /// Initializes the device up to FEATURES_OK.
    pub fn negotiate(&mut self, features: u64) {
        self.set_status(1);
        self.set_status(3);
        self.accept(features);
        self.set_status(11);
    }

    pub fn set_up_queue(&mut self, queue: u16, size: u16, rings: [u64; 3]) {
        self.write16(22, queue);
        self.write16(24, size);
        for (offset, address) in [32, 40, 48].into_iter().zip(rings) {
            self.write32(offset, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write32(offset + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write16(28, 1);
    }

    pub fn activate(&mut self) {
        self.negotiate(FEATURES);
        self.set_up_queue(0, 8, [0x1000, 0x2000, 0x3000]);
        self.set_up_queue(1, 4, [0x4000, 0x5000, 0x6000]);
        self.set_status(15);
    }

    /// Sets the table entry `vector` and its mask.
    pub fn set_vector(&mut self, vector: u64, address: u64, data: u32, masked: bool) {
        let entry = 0x1000 + 16 * vector;
        self.write(0, entry, &address.to_le_bytes());
        self.write32(entry + 8, data);
        self.write32(entry + 12, u32::from(masked));
    }

    /// Enables MSI-X with vector n for the address 0xfee00000 and the data n, none masked; the vectors of the
    /// configuration and the queues are 0, 1 and 2.
    pub fn enable_interrupts(&mut self) {
        for vector in 0..3u8 {
            self.set_vector(vector.into(), 0xfee0_0000, vector.into(), false);
        }
        self.write_config(0x43, &[0x80]);
        self.write16(16, 0);
        for queue in [0, 1] {
            self.write16(22, queue);
            self.write16(26, queue + 1);
        }
    }

    /// The data of the messages since the last call.
    pub fn received(&self) -> Vec<u32> {
        self.messages.try_iter().map(|message| message.data).collect()
    }

    /// The queues that the device has; none if it is not active.
    pub fn active_queues(&mut self) -> Vec<QueueState> {
        let mut transport = self.transport();
        let queues = transport.device.pause().unwrap();
        transport.device.resume().unwrap();
        queues
    }
}
