//! Pause and resume with the other commands, kicks, events and writes to the configuration space.

use virtio_queue::QueueState;

use super::*;

/// Positions in the available and the used ring.
fn positions(states: &[QueueState]) -> Vec<(u16, u16)> {
    states
        .iter()
        .map(|state| (state.next_avail, state.next_used))
        .collect()
}

#[test]
fn a_paused_device_serves_nothing_and_loses_nothing() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    for round in 1..100 {
        send(&mut driver, b'.');
        assert_eq!(driver.wait_used(0).1, 7);
        assert_eq!(
            positions(&worker.pause().unwrap()),
            [(2 * round - 1, 2 * round - 1)]
        );
        send(&mut driver, b'.');
        assert_eq!(
            positions(&worker.pause().unwrap()),
            [(2 * round - 1, 2 * round - 1)]
        );
        assert!(driver.take_used(0).is_none(), "a chain was served while paused");
        worker.resume().unwrap();
        assert_eq!(driver.wait_used(0).1, 7);
    }
}

#[test]
fn the_state_of_the_queues_has_what_the_driver_set() {
    let mut driver = Driver::new(&[16, 8]);
    let worker = spawn(&driver, TestDataPath);
    assert!(
        worker.pause().unwrap().is_empty(),
        "a device that is not active has no queues"
    );
    worker.resume().unwrap();
    let mut activation = driver.activation(u64::MAX);
    activation.queues[1].queue.set_ready(false);
    let expected: Vec<QueueState> = activation
        .queues
        .iter()
        .map(|active| active.queue.state())
        .collect();
    worker.activate(activation).unwrap();
    send(&mut driver, b'.');
    driver.wait_used(0);
    let [first, second] = worker.pause().unwrap()[..] else {
        panic!("expected two queues");
    };
    assert_eq!(
        first,
        QueueState {
            next_avail: 1,
            next_used: 1,
            event_idx_enabled: true,
            ..expected[0]
        }
    );
    assert_eq!(second, expected[1]);
}

#[test]
fn queues_that_arrive_while_paused_are_served_after_resume() {
    let mut driver = Driver::new(&[16]);
    let worker = spawn(&driver, TestDataPath);
    worker.pause().unwrap();
    worker.activate(driver.activation(u64::MAX)).unwrap();
    send(&mut driver, b'.');
    assert_eq!(positions(&worker.pause().unwrap()), [(0, 0)]);
    assert!(driver.take_used(0).is_none());
    worker.resume().unwrap();
    assert_eq!(driver.wait_used(0).1, 7);
}

#[test]
fn a_paused_device_can_be_reset_and_stays_paused() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    // First with queues that are served, then with queues that wait for the resume.
    for _ in 0..2 {
        worker.pause().unwrap();
        worker.reset().unwrap();
        assert!(worker.pause().unwrap().is_empty());
        driver.restart();
        worker.activate(driver.activation(u64::MAX)).unwrap();
        send(&mut driver, b'.');
        assert_eq!(positions(&worker.pause().unwrap()), [(0, 0)]);
    }
    worker.resume().unwrap();
    assert_eq!(driver.wait_used(0).1, 7);
    assert!(driver.reports.try_recv().is_err(), "the device stopped");
}

#[test]
fn a_device_that_failed_has_no_queues_and_works_after_resume_and_reset() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    send(&mut driver, b'f');
    driver
        .interrupts
        .wait("needs-reset", |signals| signals.needs_reset == 1);
    assert!(worker.pause().unwrap().is_empty());
    worker.resume().unwrap();
    assert_serves_after_reset(&mut driver, &worker);
}

#[test]
fn pause_waits_for_the_request_in_progress_and_takes_no_late_answer() {
    let driver = Driver::new(&[16]);
    let (entered, has_entered) = channel();
    let (release, may_return) = channel();
    let mut worker = spawn(&driver, BlockingDataPath { entered, may_return });
    worker.activate(driver.activation(u64::MAX)).unwrap();
    for _ in 0..2 {
        driver.kick(0);
        has_entered.recv_timeout(DEADLINE).unwrap();
        worker.timeout = Duration::from_millis(20);
        let error = worker.pause().unwrap_err().to_string();
        assert!(error.contains("did not answer within 20ms"), "{error}");
        // The late pause is undone by this resume, since commands are carried out one after the other.
        worker.resume().unwrap();
        release.send(()).unwrap();
        worker.timeout = DEADLINE;
    }
    assert_eq!(worker.pause().unwrap().len(), 1);
}

/// Tells the test each event and each write to the configuration space.
struct EchoDataPath {
    host: EventFd,
    seen: Sender<&'static str>,
}

impl DataPath for EchoDataPath {
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        active
            .poller
            .add(&self.host, 1, EventSet::IN | EventSet::EDGE_TRIGGERED)
            .map_err(Fault::io("add"))?;
        self.see("start")
    }

    fn on_queue(&mut self, _index: u16, _active: &mut ActiveDevice) -> Result<(), Fault> {
        self.see("queue")
    }

    fn on_event(&mut self, _token: u64, _ready: EventSet, _active: &mut ActiveDevice) -> Result<(), Fault> {
        self.see("event")
    }

    fn on_config_write(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let mut written = [0; 4];
        active.config.read(4, &mut written);
        active.config.update(0, &written).unwrap();
        self.see("config")
    }
}

impl EchoDataPath {
    fn see(&self, what: &'static str) -> Result<(), Fault> {
        // Fails only once the test has ended.
        let _ = self.seen.send(what);
        Ok(())
    }
}

#[test]
fn everything_that_happens_while_paused_is_handled_after_resume() {
    let driver = Driver::new(&[16]);
    let host = EventFd::new(EFD_NONBLOCK).unwrap();
    let (seen, events) = channel();
    let path = EchoDataPath {
        host: host.try_clone().unwrap(),
        seen,
    };
    let worker = spawn(&driver, path);
    let next = || events.recv_timeout(DEADLINE).unwrap();
    worker.activate(driver.activation(u64::MAX)).unwrap();
    assert_eq!(next(), "start");
    for _ in 0..50 {
        worker.pause().unwrap();
        host.write(1).unwrap();
        driver.kick(0);
        worker.config().write(4, &[1, 2, 3, 4]).unwrap();
        worker.pause().unwrap();
        assert!(events.try_recv().is_err(), "handled while paused");
        worker.resume().unwrap();
        let mut handled = [next(), next(), next()];
        handled.sort_unstable();
        assert_eq!(handled, ["config", "event", "queue"]);
    }
    assert_eq!(worker.config().generation(), 50);
}

#[test]
fn a_write_to_the_configuration_space_before_driver_ok_is_reported_after_start() {
    let driver = Driver::new(&[16]);
    let (seen, events) = channel();
    let host = EventFd::new(EFD_NONBLOCK).unwrap();
    let worker = spawn(&driver, EchoDataPath { host, seen });
    worker.config().write(4, &[9; 4]).unwrap();
    // Pausing waits until the worker has woken from the write.
    worker.pause().unwrap();
    worker.resume().unwrap();
    worker.activate(driver.activation(u64::MAX)).unwrap();
    let next = || events.recv_timeout(DEADLINE).unwrap();
    assert_eq!((next(), next()), ("start", "config"));
}
