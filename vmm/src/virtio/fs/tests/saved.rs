//! When the device can be saved, and a device that continues from a snapshot.

use super::*;

#[test]
fn a_session_begins_with_the_first_request_whatever_it_is() {
    for opcode in [INIT, LOOKUP, 0xffff] {
        let mut guest = Guest::bound(|config, env| spawn(config, env).unwrap());
        assert!(!guest.device.has_session(), "the driver has only been bound");
        guest.driver.reactivate(&mut guest.device);
        guest.device.pause().unwrap();
        guest.device.resume().unwrap();
        assert!(!guest.device.has_session());
        let _ = guest.call(opcode, ROOT, Body::default().name("none"));
        assert!(guest.device.has_session(), "{opcode}");
        guest.driver.reactivate(&mut guest.device);
        assert!(guest.device.has_session(), "inodes are kept until the next INIT");
    }
}

#[test]
fn a_device_that_is_restored_serves_its_own_tree() {
    let mut guest = Guest::bound(|config, env| {
        let mut device = spawn(config, env).unwrap();
        device.pause().unwrap();
        device
    });
    guest.device.reset().unwrap();
    let activation = Activation {
        is_restored: true,
        ..guest.driver.activation(guest.device.features())
    };
    guest.device.activate(activation).unwrap();
    std::fs::write(guest.path().join("file"), "text").unwrap();
    guest.device.resume().unwrap();
    guest.init();
    assert_eq!(guest.lookup(ROOT, "file").unwrap().size, 4);
}
