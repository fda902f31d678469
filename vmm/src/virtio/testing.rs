//! A virtio driver for tests and fuzzing: guest memory in this process, queues in it, and a test double of the
//! interrupts. The tests of all devices use it; it writes what the test asks for, valid or not.

#![allow(clippy::cast_possible_truncation, reason = "sizes of a test guest are small")]
#![cfg_attr(
    not(test),
    allow(dead_code, unused_imports, reason = "the fuzzer needs a part")
)]

#[cfg(test)]
mod allocations;
mod chains;
mod hammer;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, Device, Env, Interrupt, Report};
use crate::jail::{Confinement, Violation, recorder};
use crate::memory::Memory;
use crate::memory::ranges::Range;
pub use chains::{Fields, INDIRECT, NEXT, Prng, WRITE, malformed_chains, readable, writable};
pub use hammer::hammer;

/// Size of the test guest's memory in bytes.
pub const MEMORY_SIZE: u64 = 32 << 20;
/// Lowest address for buffers; the queues are below.
pub const BUFFERS: u64 = 4 << 20;
/// A test fails if it waits longer than this.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Where memory may be plugged in: the upper half of memory, which a test may use as if it were mapped.
pub const HOTPLUG: Range = Range {
    start: MEMORY_SIZE / 2,
    bytes: MEMORY_SIZE / 2,
};
/// Bytes of guest memory for the rings of one queue.
const QUEUE_STRIDE: u64 = 0x2_0000;
/// Descriptors per slot of a descriptor table: the longest chain that [`Driver::offer`] makes.
const SLOT: u16 = 4;

/// Environment variable of a test process in which device workers confine themselves.
const CONFINED: &str = "NACRE_TEST_CONFINED";

/// Runs the tests whose path contains `path` again, in a child process in which the workers are confined: a
/// forbidden system call kills it. Does nothing in such a child process.
///
/// `path` must not match the calling test.
pub fn assert_passes_confined(path: &str) {
    if std::env::var_os(CONFINED).is_some() {
        return;
    }
    let output = confined_tests(path).output().unwrap();
    assert_passed(&output);
}

/// The system calls that workers make in the tests whose path contains `path`.
pub fn recorded_calls(path: &str) -> BTreeSet<i64> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = confined_tests(path)
        // Each system call takes two more switches between threads.
        .args(["--skip", "a_hundred_thousand"])
        .env(recorder::FILE, file.path())
        .output()
        .unwrap();
    assert_passed(&output);
    let recorded = std::fs::read(file.path()).unwrap();
    recorded
        .chunks_exact(2)
        .map(|number| i64::from(u16::from_le_bytes([number[0], number[1]])))
        .collect()
}

/// A process that runs the tests whose path contains `path`, with confined workers.
fn confined_tests(path: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([path, "--test-threads=2"])
        .env(CONFINED, "1")
        // Printing a backtrace reads files, which a confined thread may not do.
        .env_remove("RUST_BACKTRACE");
    command
}

fn assert_passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{text}", output.status);
    assert!(!text.contains("running 0 tests"), "no such test");
}

/// True in a process whose workers are confined; else runs the test at `path`, the calling one, in such a
/// process. False where calls are recorded, which would take too long.
pub fn is_confined(path: &str) -> bool {
    assert_passes_confined(path);
    std::env::var_os(CONFINED).is_some() && !is_recorded()
}

/// Whether calls are recorded. An operation that io_uring finishes later interrupts the wait for the recorder, and
/// the call starts again, without end: no ring may be used.
pub fn is_recorded() -> bool {
    std::env::var_os(recorder::FILE).is_some()
}

/// How often the device has sent each notification.
#[derive(Debug, Default, Clone)]
pub struct Signals {
    /// Used buffer notifications, by queue.
    pub queues: [u64; 8],
    /// Configuration change notifications.
    pub config: u64,
    pub needs_reset: u64,
    /// Allocations of the thread that sent the last notification, the worker, up to then.
    #[cfg(test)]
    pub allocations: u64,
}

/// Counts a device's notifications, and wakes the test that waits for them.
#[derive(Default)]
pub struct Interrupts {
    signals: Mutex<Signals>,
    changed: Condvar,
}

impl Interrupts {
    pub fn signals(&self) -> MutexGuard<'_, Signals> {
        self.signals.lock().unwrap()
    }

    /// Waits until `condition` holds; panics after [`DEADLINE`] with `what` was expected.
    pub fn wait(&self, what: &str, mut condition: impl FnMut(&Signals) -> bool) {
        let (_signals, timeout) = self
            .changed
            .wait_timeout_while(self.signals(), DEADLINE, |signals| !condition(signals))
            .unwrap();
        assert!(!timeout.timed_out(), "timed out waiting for {what}");
    }

    fn change(&self, change: impl FnOnce(&mut Signals)) {
        let mut signals = self.signals();
        change(&mut signals);
        #[cfg(test)]
        {
            signals.allocations = allocations::of_this_thread();
        }
        drop(signals);
        self.changed.notify_all();
    }
}

impl Interrupt for Interrupts {
    fn signal_queue(&self, index: u16) {
        self.change(|signals| signals.queues[usize::from(index)] += 1);
    }

    fn signal_config(&self) {
        self.change(|signals| signals.config += 1);
    }

    fn signal_needs_reset(&self) {
        self.change(|signals| signals.needs_reset += 1);
    }
}

/// One split virtqueue (virtio 1.2, 2.7).
struct Ring {
    /// Address of the descriptor table; the available and used rings follow.
    base: u64,
    size: u16,
    /// Index of the available ring, as last written.
    available: u16,
    /// The value of `available` at the last call of [`Driver::kick_if_wanted`].
    kicked_at: u16,
    /// Index up to which the used ring was read.
    used: u16,
    /// Free slots of [`SLOT`] descriptors.
    slots: Vec<u16>,
    kick: EventFd,
}

impl Ring {
    fn available_at(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_at(&self) -> u64 {
        (self.available_at() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }
}

/// The driver, with guest memory and one ring per queue.
pub struct Driver {
    pub memory: Arc<Memory>,
    pub interrupts: Arc<Interrupts>,
    pub reports: Receiver<Report>,
    reporter: Sender<Report>,
    rings: Vec<Ring>,
    /// The number of needs-reset notifications before the last [`Driver::restart`].
    resets: u64,
}

impl Driver {
    /// Zeroed memory, and one empty queue per element of `sizes`.
    pub fn new(sizes: &[u16]) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)]).unwrap();
        let rings = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| Ring {
                base: QUEUE_STRIDE * (index as u64 + 1),
                size: *size,
                available: 0,
                kicked_at: 0,
                used: 0,
                slots: (0..size / SLOT).rev().collect(),
                kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
            })
            .collect();
        let (reporter, reports) = channel();
        Self {
            memory: Arc::new(memory),
            interrupts: Arc::default(),
            reports,
            reporter,
            rings,
            resets: 0,
        }
    }

    /// What the device under test is created with. Its reports arrive at [`Driver::reports`].
    pub fn env(&self) -> Env {
        let reporter = self.reporter.clone();
        let report = move |report| drop(reporter.send(report));
        let confinement = if is_recorded() {
            Confinement::closed(Violation::Record).unwrap()
        } else if std::env::var_os(CONFINED).is_some() {
            Confinement::closed(Violation::Kill).unwrap()
        } else {
            Confinement::none()
        };
        Env {
            confinement,
            report: Arc::new(report),
            hotplug: HOTPLUG,
        }
    }

    /// What the device gets on DRIVER_OK: all queues, ready.
    pub fn activation(&self, features: u64) -> Activation {
        let queues = self.rings.iter().enumerate().map(|(index, ring)| {
            let mut queue = Queue::new(ring.size).unwrap();
            let split = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
            let (low, high) = split(ring.base);
            queue.set_desc_table_address(low, high);
            let (low, high) = split(ring.available_at());
            queue.set_avail_ring_address(low, high);
            let (low, high) = split(ring.used_at());
            queue.set_used_ring_address(low, high);
            queue.set_ready(true);
            ActiveQueue {
                index: index as u16,
                queue,
                kick: ring.kick.try_clone().unwrap(),
            }
        });
        Activation {
            memory: Arc::clone(&self.memory),
            queues: queues.collect(),
            interrupt: Arc::clone(&self.interrupts) as Arc<dyn Interrupt>,
            features,
            is_restored: false,
        }
    }

    /// Empties the queues, as a driver does after it has reset the device.
    pub fn restart(&mut self) {
        self.resets = self.interrupts.signals().needs_reset;
        for ring in &mut self.rings {
            ring.available = 0;
            ring.kicked_at = 0;
            ring.used = 0;
            ring.slots = (0..ring.size / SLOT).rev().collect();
            let zeros = vec![0; usize::from(ring.size) * 32 + 64];
            self.memory.write_slice(&zeros, GuestAddress(ring.base)).unwrap();
        }
    }

    pub fn set_bytes(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn u16_at(&self, address: u64) -> u16 {
        self.memory
            .load(GuestAddress(address), std::sync::atomic::Ordering::Acquire)
            .unwrap()
    }

    fn set_u16(&self, address: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(address), std::sync::atomic::Ordering::Release)
            .unwrap();
    }

    /// Resets `device`, forgets the rings' content, and activates the device again.
    pub fn reactivate(&mut self, device: &mut Device) {
        device.reset().unwrap();
        self.restart();
        device.activate(self.activation(device.features())).unwrap();
    }

    /// Writes descriptor `index` without checks.
    pub fn set_descriptor(&self, queue: usize, index: u16, fields: Fields) {
        let at = self.rings[queue].base + 16 * u64::from(index);
        self.write_descriptor(at, fields);
    }

    /// The address in descriptor `index`.
    pub fn descriptor_address(&self, queue: usize, index: u16) -> u64 {
        let at = self.rings[queue].base + 16 * u64::from(index);
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Writes an indirect table (virtio 1.2, 2.7.5.3) to `address`, without checks.
    pub fn set_table(&self, address: u64, descriptors: &[Fields]) {
        for (index, fields) in descriptors.iter().enumerate() {
            self.write_descriptor(address + 16 * index as u64, *fields);
        }
    }

    fn write_descriptor(&self, at: u64, (address, length, flags, next): Fields) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
        self.memory.write_obj(descriptor, GuestAddress(at)).unwrap();
    }

    /// Makes a well-formed chain of `buffers` available and returns its head.
    pub fn offer(&mut self, queue: usize, buffers: &[Fields]) -> u16 {
        assert!(buffers.len() <= usize::from(SLOT));
        let slot = self.rings[queue].slots.pop().expect("the queue is full");
        let head = slot * SLOT;
        self.set_chain(queue, head, buffers);
        self.make_available(queue, head);
        head
    }

    /// Writes a well-formed chain of `buffers` from descriptor `head` on.
    pub fn set_chain(&self, queue: usize, head: u16, buffers: &[Fields]) {
        for (position, buffer) in buffers.iter().enumerate() {
            let index = head + position as u16;
            let next = if position + 1 < buffers.len() { NEXT } else { 0 };
            self.set_descriptor(queue, index, (buffer.0, buffer.1, buffer.2 | next, index + 1));
        }
    }

    /// Whether fewer chains are available than the queue has descriptors.
    pub fn has_room(&self, queue: usize) -> bool {
        let ring = &self.rings[queue];
        ring.available.wrapping_sub(self.u16_at(ring.used_at() + 2)) < ring.size
    }

    /// Whether the device has asked for a reset since the last [`Driver::restart`].
    pub fn needs_reset(&self) -> bool {
        self.interrupts.signals().needs_reset > self.resets
    }

    /// Writes `descriptors` from index 0 without checks, and makes the chain with head 0 available.
    pub fn offer_raw(&mut self, queue: usize, descriptors: &[Fields]) {
        for (index, fields) in descriptors.iter().enumerate() {
            self.set_descriptor(queue, index as u16, *fields);
        }
        self.make_available(queue, 0);
    }

    /// Puts `head` into the available ring without checks.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &self.rings[queue];
        let (at, size, available) = (ring.available_at(), ring.size, ring.available);
        self.set_u16(at + 4 + 2 * u64::from(available % size), head);
        self.set_available_index(queue, available.wrapping_add(1));
    }

    /// Sets the index of the available ring without checks.
    pub fn set_available_index(&mut self, queue: usize, index: u16) {
        let ring = &mut self.rings[queue];
        ring.available = index;
        let at = ring.available_at() + 2;
        self.set_u16(at, index);
    }

    /// Kicks even if the device has disabled notifications.
    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).unwrap();
    }

    /// Kicks if the device has asked for a notification of what was made available since the last call, as
    /// Linux does (virtio 1.2, 2.7.10).
    pub fn kick_if_wanted(&mut self, queue: usize) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let ring = &self.rings[queue];
        let event = self.u16_at(ring.used_at() + 4 + 8 * u64::from(ring.size));
        let (new, old) = (ring.available, ring.kicked_at);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick(queue);
        }
        self.rings[queue].kicked_at = new;
    }

    /// Takes the next chain out of the used ring: its head, and the bytes that the device wrote.
    pub fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &self.rings[queue];
        let at = ring.used_at();
        if self.u16_at(at + 2) == ring.used {
            return None;
        }
        let element = at + 4 + 8 * u64::from(ring.used % ring.size);
        let [head, length]: [u32; 2] = self.memory.read_obj(GuestAddress(element)).unwrap();
        let ring = &mut self.rings[queue];
        ring.used = ring.used.wrapping_add(1);
        let slot = head as u16 / SLOT;
        if !ring.slots.contains(&slot) {
            ring.slots.push(slot);
        }
        Some((head as u16, length))
    }

    /// Asks for a notification of the next used chain (virtio 1.2, 2.7.7). True if a used chain waits
    /// already.
    fn request_notification(&self, queue: usize) -> bool {
        let ring = &self.rings[queue];
        self.set_u16(ring.available_at() + 4 + 2 * u64::from(ring.size), ring.used);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.u16_at(ring.used_at() + 2) != ring.used
    }

    /// Waits for the next used chain and takes it. Relies on notifications, so a missing one fails the test.
    pub fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        let interrupts = Arc::clone(&self.interrupts);
        loop {
            let before = interrupts.signals().queues[queue];
            if self.request_notification(queue) {
                return self.take_used(queue).unwrap();
            }
            interrupts.wait("a used chain", |signals| signals.queues[queue] > before);
        }
    }

    /// Waits until the device has used a chain or needs a reset; true if it needs a reset.
    pub fn wait_used_or_reset(&mut self, queue: usize) -> bool {
        let interrupts = Arc::clone(&self.interrupts);
        let mut reset = false;
        let resets = self.resets;
        self.request_notification(queue);
        interrupts.wait("a used chain or a reset", |signals| {
            reset = signals.needs_reset > resets;
            reset || self.request_notification(queue)
        });
        reset
    }
}
