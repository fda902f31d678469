//! The worker alone, with a data path that does what the driver tells it to.

use super::*;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, writable};

/// Answers kicks by what the first byte of the buffer says.
struct Echo;

impl DataPath for Echo {
    fn on_queue(&mut self, index: u16, active: &mut Active) -> Result<(), Fault> {
        let mut order = 0_u8;
        active.serve(index, Notify::Each, |memory, chain| {
            use vm_memory::Bytes as _;
            for descriptor in chain {
                order = memory.read_obj(descriptor.addr()).unwrap();
            }
            assert_ne!(order, b'p', "asked to panic");
            7
        })?;
        if order == b'f' {
            Err(Fault("asked to fail".to_owned()))
        } else {
            Ok(())
        }
    }
}

fn start(driver: &Driver) -> Worker {
    let worker = Worker::spawn("echo", ThreadKind::Device, &driver.env(), || Ok(Echo)).unwrap();
    worker.activate(driver.activation(u64::MAX)).unwrap();
    worker
}

fn order(driver: &mut Driver, byte: u8) {
    driver.set_bytes(BUFFERS, &[byte]);
    driver.offer(0, &[writable(BUFFERS, 8)]);
    driver.kick(0);
}

#[test]
fn serves_until_reset_and_again_after() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    for _ in 0..3 {
        for _ in 0..50 {
            order(&mut driver, b'.');
            assert_eq!(driver.wait_used(0).1, 7);
        }
        worker.reset().unwrap();
        driver.restart();
        order(&mut driver, b'.');
        assert!(driver.take_used(0).is_none(), "served after reset");
        driver.restart();
        worker.activate(driver.activation(u64::MAX)).unwrap();
    }
    worker.reset().unwrap();
    worker.reset().unwrap();
}

#[test]
fn a_failure_asks_for_a_reset_which_helps() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    order(&mut driver, b'f');
    driver
        .interrupts
        .wait("needs-reset", |signals| signals.needs_reset == 1);
    let Report::Stopped {
        device: "echo",
        reason,
    } = driver.reports.recv_timeout(DEADLINE).unwrap()
    else {
        panic!("another report");
    };
    assert_eq!(reason, "asked to fail");
    worker.reset().unwrap();
    driver.restart();
    worker.activate(driver.activation(u64::MAX)).unwrap();
    order(&mut driver, b'.');
    assert_eq!(driver.wait_used(0).1, 7);
}

#[test]
fn failures_are_reported_so_often_and_no_more() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    for count in 1..=u64::from(MAX_REPORTS) + 8 {
        order(&mut driver, b'f');
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
fn a_panic_is_reported_and_the_device_refuses_afterwards() {
    let mut driver = Driver::new(&[16]);
    let worker = start(&driver);
    order(&mut driver, b'p');
    let Report::Died {
        device: "echo",
        reason,
    } = driver.reports.recv_timeout(DEADLINE).unwrap()
    else {
        panic!("another report");
    };
    assert!(reason.contains("asked to panic"), "{reason}");
    assert!(worker.reset().is_err());
    assert!(worker.activate(driver.activation(u64::MAX)).is_err());
}

#[test]
fn rings_that_are_broken_ask_for_a_reset() {
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
fn queues_outside_of_memory_ask_for_a_reset() {
    let driver = Driver::new(&[16]);
    let worker = Worker::spawn("echo", ThreadKind::Device, &driver.env(), || Ok(Echo)).unwrap();
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
fn what_can_not_be_built_is_an_error() {
    let driver = Driver::new(&[16]);
    let made = Worker::spawn::<Echo>("echo", ThreadKind::Device, &driver.env(), || {
        Err("no tree".to_owned())
    });
    assert_eq!(made.err().unwrap().to_string(), "virtio device echo: no tree");
}
