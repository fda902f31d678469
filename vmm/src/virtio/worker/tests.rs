//! The worker with a data path that succeeds, fails or panics as the driver's buffer says.

mod pause;

use virtio_queue::QueueT as _;

use super::*;
use crate::jail::calls::rng;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, writable};
use crate::virtio::{Report, WorkerDeath};

/// The first byte of a buffer selects: 'f' fails, 'p' panics, anything else succeeds with 7 bytes written.
struct TestDataPath;

impl DataPath for TestDataPath {
    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        let mut action = 0_u8;
        active.serve(index, Notify::Each, |memory, chain| {
            use vm_memory::Bytes as _;
            for descriptor in chain {
                action = memory.read_obj(descriptor.addr()).unwrap();
            }
            assert_ne!(action, b'p', "asked to panic");
            7
        })?;
        if action == b'f' {
            Err(Fault::io("test")(std::io::Error::other("asked to fail")))
        } else {
            Ok(())
        }
    }
}

/// A device with 8 bytes of configuration, of which the driver may write the last 4.
fn spec() -> Spec {
    Spec {
        name: "test",
        device_type: 0,
        queue_sizes: vec![16],
        features: 0,
        config: vec![0; 8],
        config_writable: 4..8,
        profile: &rng::PROFILE,
    }
}

fn spawn<D: DataPath + Send + 'static>(driver: &Driver, path: D) -> Worker {
    Worker::spawn(&spec(), &driver.env(), || Ok(path)).unwrap()
}

fn start(driver: &Driver) -> Worker {
    let worker = spawn(driver, TestDataPath);
    worker.activate(driver.activation(u64::MAX)).unwrap();
    worker
}

fn send(driver: &mut Driver, byte: u8) {
    driver.set_bytes(BUFFERS, &[byte]);
    driver.offer(0, &[writable(BUFFERS, 8)]);
    driver.kick(0);
}

#[track_caller]
fn assert_serves_after_reset(driver: &mut Driver, worker: &Worker) {
    worker.reset().unwrap();
    driver.restart();
    worker.activate(driver.activation(u64::MAX)).unwrap();
    send(driver, b'.');
    assert_eq!(driver.wait_used(0).1, 7);
}

#[test]
fn serves_until_reset_and_again_after() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    for _ in 0..3 {
        for _ in 0..50 {
            send(&mut driver, b'.');
            assert_eq!(driver.wait_used(0).1, 7);
        }
        worker.reset().unwrap();
        driver.restart();
        send(&mut driver, b'.');
        assert!(driver.take_used(0).is_none(), "a chain was served after reset");
        driver.restart();
        worker.activate(driver.activation(u64::MAX)).unwrap();
    }
    worker.reset().unwrap();
    worker.reset().unwrap();
}

#[test]
fn a_device_that_failed_works_again_after_a_reset() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    send(&mut driver, b'f');
    driver
        .interrupts
        .wait("needs-reset", |signals| signals.needs_reset == 1);
    let Report::Stopped {
        device: "test",
        fault,
    } = driver.reports.recv_timeout(DEADLINE).unwrap()
    else {
        panic!("expected Report::Stopped");
    };
    assert_eq!(fault.to_string(), "test: asked to fail");
    assert_serves_after_reset(&mut driver, &worker);
}

#[test]
fn the_number_of_reported_failures_is_bounded() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    for count in 1..=u64::from(MAX_REPORTS) + 8 {
        send(&mut driver, b'f');
        driver
            .interrupts
            .wait("needs-reset", |signals| signals.needs_reset == count);
        worker.reset().unwrap();
        driver.restart();
        worker.activate(driver.activation(u64::MAX)).unwrap();
    }
    assert_eq!(driver.reports.try_iter().count(), MAX_REPORTS as usize);
}

#[test]
fn a_panic_is_reported_and_later_commands_fail() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    send(&mut driver, b'p');
    let Report::Died {
        device: "test",
        death: WorkerDeath::Panic(reason),
    } = driver.reports.recv_timeout(DEADLINE).unwrap()
    else {
        panic!("expected Report::Died");
    };
    assert!(reason.contains("asked to panic"), "{reason}");
    assert!(worker.reset().is_err());
    assert!(worker.activate(driver.activation(u64::MAX)).is_err());
}

#[test]
fn broken_rings_need_a_reset() {
    let broken: [fn(&mut Driver); 3] = [
        |driver| driver.set_available_index(0, 17),
        |driver| driver.set_available_index(0, 0x8000),
        |driver| driver.make_available(0, 16),
    ];
    for break_it in broken {
        let mut driver = Driver::new(&[16]);
        let _worker = start(&driver);
        break_it(&mut driver);
        driver.kick(0);
        driver
            .interrupts
            .wait("needs-reset", |signals| signals.needs_reset == 1);
    }
}

#[test]
fn queues_outside_of_memory_need_a_reset() {
    let driver = Driver::new(&[16]);
    let worker = spawn(&driver, TestDataPath);
    let mut activation = driver.activation(u64::MAX);
    activation.queues[0]
        .queue
        .set_used_ring_address(Some(0xffff_f000), None);
    worker.activate(activation).unwrap();
    driver
        .interrupts
        .wait("needs-reset", |signals| signals.needs_reset == 1);
}

#[test]
fn a_data_path_that_cannot_be_built_is_an_error() {
    let driver = Driver::new(&[16]);
    let made = Worker::spawn::<TestDataPath>(&spec(), &driver.env(), || Err("no tree".into()));
    assert_eq!(
        made.err().unwrap().to_string(),
        "virtio device test: build the data path: no tree"
    );
}

/// Blocks at each kick until the test sends a message or drops its sender.
struct BlockingDataPath {
    entered: Sender<()>,
    may_return: Receiver<()>,
}

impl DataPath for BlockingDataPath {
    fn on_queue(&mut self, _index: u16, _active: &mut ActiveDevice) -> Result<(), Fault> {
        // Both fail only once the test has ended.
        let _ = self.entered.send(());
        let _ = self.may_return.recv_timeout(DEADLINE);
        Ok(())
    }
}

#[test]
fn the_late_answer_to_a_timed_out_reset_is_not_taken_for_the_next_one() {
    let mut driver = Driver::new(&[16]);
    let (entered, has_entered) = channel();
    let (release, may_return) = channel();
    let mut worker = spawn(&driver, BlockingDataPath { entered, may_return });
    let block = |driver: &mut Driver, worker: &Worker| {
        driver.restart();
        worker.activate(driver.activation(u64::MAX)).unwrap();
        driver.kick(0);
        has_entered.recv_timeout(DEADLINE).unwrap();
    };

    block(&mut driver, &worker);
    worker.timeout = Duration::from_millis(20);
    assert!(worker.reset().is_err(), "the worker still uses the queues");
    release.send(()).unwrap();
    worker.timeout = DEADLINE;
    worker.reset().unwrap();

    block(&mut driver, &worker);
    worker.timeout = Duration::from_millis(20);
    assert!(worker.reset().is_err(), "the worker still uses the queues");
    drop(release);
}

#[test]
fn buffers_in_memory_that_was_added_are_served() {
    use vm_memory::{GuestAddress, GuestRegionMmap};
    const ADDED: u64 = 1 << 30;
    for is_paused in [false, true] {
        let mut driver = Driver::new(&[16]);
        let worker = spawn(&driver, TestDataPath);
        if is_paused {
            worker.pause().unwrap();
        }
        worker.activate(driver.activation(u64::MAX)).unwrap();
        let region = GuestRegionMmap::from_range(GuestAddress(ADDED), 4096, None).unwrap();
        let grown = driver.memory.insert_region(Arc::new(region)).unwrap();
        worker.memory_sender().give(Arc::new(grown));
        worker.resume().unwrap();
        // The second time, the transport has read guest memory before it has grown.
        for _ in 0..2 {
            driver.offer(0, &[writable(ADDED, 8)]);
            driver.kick(0);
            assert_eq!(driver.wait_used(0).1, 7, "paused: {is_paused}");
            worker.reset().unwrap();
            driver.restart();
            worker.activate(driver.activation(u64::MAX)).unwrap();
        }
    }
}

/// As while the file server is in a slow system call.
#[test]
fn nobody_waits_for_a_worker_that_is_to_use_more_memory() {
    let driver = Driver::new(&[16]);
    let (entered, has_entered) = channel();
    let (release, may_return) = channel();
    let worker = spawn(&driver, BlockingDataPath { entered, may_return });
    worker.activate(driver.activation(u64::MAX)).unwrap();
    driver.kick(0);
    has_entered.recv_timeout(DEADLINE).unwrap();
    let (taken, is_taken) = channel();
    let on_taken = Box::new(move || taken.send(()).unwrap());
    let sender = worker.memory_sender();
    sender.send(Arc::clone(&driver.memory), on_taken).unwrap();
    assert!(is_taken.try_recv().is_err());
    release.send(()).unwrap();
    is_taken.recv_timeout(DEADLINE).unwrap();
    drop(release);
}
