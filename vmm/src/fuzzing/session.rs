//! A hostile driver of one device: an input is a list of operations on its rings, registers and life. The
//! device and its worker live as long as the process; each input begins with a reset and empty rings.

use crate::virtio::testing::{BUFFERS, Driver, Fields, MEMORY_SIZE, readable, writable};
use crate::virtio::{Device, Env, Report};
use nacre_fuzzing::Input;

/// Most operations of an input, so that none lasts long.
const MAX_OPERATIONS: usize = 64;
/// Guest memory for one operation: a request in the first half, its reply in the second.
const SLOT_BYTES: u64 = 128 * 1024;

/// What a target has besides the rings: the device's requests, and the host's side of it.
pub trait Attack {
    /// The queue that requests are sent to.
    const QUEUE: usize;

    /// The bytes of a request.
    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8>;

    /// What happens on the host.
    fn host(&mut self, _input: &mut Input<'_>) {}

    /// The device has written `length` bytes in reply to a request; `reply` has the first of them.
    fn replied(&mut self, _reply: &[u8]) {}
}

/// A device and its driver.
pub struct Session {
    pub driver: Driver,
    pub device: Device,
    queues: usize,
    slot: u64,
}

impl Session {
    /// The device that `spawn` makes, with queues of these `sizes`.
    pub fn new(sizes: &[u16], spawn: impl FnOnce(&Env) -> Device) -> Self {
        let driver = Driver::new(sizes);
        let device = spawn(&driver.env());
        Self {
            driver,
            device,
            queues: sizes.len(),
            slot: 0,
        }
    }

    /// Resets the device, and activates it with `features` and empty rings.
    pub fn restart(&mut self, features: u64) {
        self.device.resume().unwrap();
        self.device.reset().unwrap();
        for report in self.driver.reports.try_iter() {
            assert!(matches!(report, Report::Stopped { .. }), "{report:?}");
        }
        self.driver.restart();
        self.device.activate(self.driver.activation(features)).unwrap();
    }

    /// Waits until the worker has handled all that was ready.
    fn settle(&mut self) {
        self.device.settle();
    }

    /// Waits until no request is in progress.
    fn pause(&mut self) {
        self.device.pause().unwrap();
        self.device.resume().unwrap();
    }

    /// Carries out the operations of `input`.
    pub fn run(&mut self, input: &mut Input<'_>, attack: &mut impl Attack) {
        for _ in 0..MAX_OPERATIONS {
            if input.is_empty() {
                break;
            }
            self.operation(input, attack);
        }
        self.settle();
        self.pause();
    }

    fn operation<A: Attack>(&mut self, input: &mut Input<'_>, attack: &mut A) {
        match input.u8() % 16 {
            0..6 => self.request(input, attack),
            6 | 7 => self.chain(input),
            8 => attack.host(input),
            9 => self.driver.kick(input.below(self.queues)),
            10 => while self.driver.take_used(input.below(self.queues)).is_some() {},
            11 => self.restart(input.u64()),
            12 => {
                let (queue, index) = (input.below(self.queues), input.u16());
                self.driver.set_available_index(queue, index);
            }
            13 => {
                let (queue, head) = (input.below(self.queues), input.u16());
                self.driver.make_available(queue, head);
            }
            14 => self.access_config(input),
            _ => self.pause(),
        }
    }

    fn next_slot(&mut self) -> u64 {
        self.slot = (self.slot + 1) % ((MEMORY_SIZE - BUFFERS) / SLOT_BYTES);
        BUFFERS + self.slot * SLOT_BYTES
    }

    /// Sends a request of the device's kind in one or two buffers, with room for a reply of some length.
    pub fn request<A: Attack>(&mut self, input: &mut Input<'_>, attack: &mut A) {
        const ROOM: [u32; 8] = [1, 4096, 0, 8, 16, 144, 512, 65_535];
        let shape = input.u8();
        let bytes = attack.request(input);
        let at = self.next_slot();
        let reply_at = at + SLOT_BYTES / 2;
        self.driver.set_bytes(at, &bytes);
        let length = bytes.len() as u32;
        let split = length / 2;
        let reply = writable(reply_at, ROOM[usize::from(shape >> 5)]);
        let chain = match shape & 7 {
            0..4 => vec![readable(at, length), reply],
            4 => vec![
                readable(at, split),
                readable(at + u64::from(split), length - split),
                reply,
            ],
            5 => vec![readable(at, length), reply, writable(reply_at + 8192, 1)],
            6 => vec![reply],
            _ => vec![readable(at, length), self.descriptor(input)],
        };
        while self.driver.take_used(A::QUEUE).is_some() {}
        if self.driver.has_room(A::QUEUE) {
            self.driver.set_chain(A::QUEUE, 0, &chain);
            self.driver.make_available(A::QUEUE, 0);
        }
        self.driver.kick(A::QUEUE);
        if shape & 8 == 0 {
            self.settle();
            if let Some((0, length)) = self.driver.take_used(A::QUEUE) {
                let length = usize::try_from(length).unwrap().min(256);
                attack.replied(&self.driver.bytes(reply_at, length));
            }
        }
    }

    /// Makes a chain of any descriptors available, whose buffers have bytes of the input.
    fn chain(&mut self, input: &mut Input<'_>) {
        let queue = input.below(self.queues);
        let descriptors: Vec<Fields> = (0..input.below(7)).map(|_| self.descriptor(input)).collect();
        self.driver.offer_raw(queue, &descriptors);
        self.driver.kick(queue);
    }

    fn descriptor(&mut self, input: &mut Input<'_>) -> Fields {
        let kind = input.u8();
        let address = match kind >> 3 & 7 {
            0..4 => {
                let (at, bytes) = (self.next_slot(), input.sized());
                self.driver.set_bytes(at, &bytes);
                at
            }
            4 => MEMORY_SIZE - u64::from(input.u8()),
            5 => input.u64(),
            6 => u64::from(input.u16()) << 4,
            _ => u64::from(input.u32()) % MEMORY_SIZE,
        };
        let length = if kind & 0x80 == 0 {
            input.u16().into()
        } else {
            input.u32()
        };
        let next = input.u8();
        (address, length, u16::from(kind & 7), next.into())
    }

    fn access_config(&mut self, input: &mut Input<'_>) {
        let offset = match input.u8() {
            255 => input.u64(),
            offset => offset.into(),
        };
        let data = input.sized();
        // Most of the bytes can't be written.
        let _ = self.device.config().write(offset, &data);
        let mut read = vec![0; data.len()];
        self.device.config().read(offset, &mut read);
    }
}
