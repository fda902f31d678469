//! The device in a VM that continues from a snapshot: the guest learns that all connections are gone.

use super::*;

const EVENT_QUEUE: usize = EVENT as usize;

fn restored(driver: &mut Driver) -> Device {
    let config = Config {
        host: Box::new(NoHost),
        listener: None,
    };
    let mut device = spawn(config, &driver.env()).unwrap();
    let mut activation = driver.activation(device.features());
    activation.is_restored = true;
    device.activate(activation).unwrap();
    device
}

struct NoHost;

impl Host for NoHost {
    fn expects(&mut self, _ports: Ports) -> bool {
        false
    }

    fn connect(&mut self, _ports: Ports, _stream: OwnedFd) -> Result<(), Refused> {
        Err(Refused)
    }
}

#[test]
fn the_guest_gets_a_transport_reset_and_its_packets_are_served_without_a_kick() {
    let mut driver = Driver::new(QUEUE_SIZES);
    driver.set_bytes(BUFFERS, &[0xff; 8]);
    driver.offer(EVENT_QUEUE, &[writable(BUFFERS, 4)]);
    // A packet that the driver had sent, whose kick is lost: less than a header, which is dropped.
    driver.offer(usize::from(TX), &[readable(BUFFERS + 4096, 8)]);
    let _device = restored(&mut driver);
    assert_eq!(driver.wait_used(EVENT_QUEUE).1, 4);
    assert_eq!(driver.bytes(BUFFERS, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    driver.wait_used(usize::from(TX));
}

#[test]
fn a_driver_without_a_buffer_for_the_event_must_reset_the_device() {
    let mut driver = Driver::new(QUEUE_SIZES);
    let mut device = restored(&mut driver);
    driver
        .interrupts
        .wait("a reset", |signals| signals.needs_reset > 0);
    driver.reactivate(&mut device);
    driver.offer(usize::from(TX), &[readable(BUFFERS, 8)]);
    driver.kick(usize::from(TX));
    driver.wait_used(usize::from(TX));
}
