//! A VMM in its jail that gets the devices that every VM has while its guest runs.

use super::network::attach;
use super::*;

#[test]
fn the_devices_that_every_vm_has_are_added_once() {
    let Some(vmm) = Vmm::running(IDLE_GUEST) else {
        return;
    };
    assert_eq!(vmm.request(Request::AttachCommon), Ok(Answer::Done));
    let again = vmm.request(Request::AttachCommon).unwrap_err().to_string();
    assert!(again.contains("already"), "{again}");
    // vsock and fs are in the first slots, rng and balloon in the next ones.
    let mem = DeviceConfig::Mem { max_mib: 128 };
    assert_eq!(attach(&vmm, mem, &[]), Ok(Answer::Attached { slot: 4 }));
    for request in [Request::Pause, Request::Resume] {
        assert_eq!(vmm.request(request), Ok(Answer::Done));
    }
    assert_eq!(vmm.close().code(), Some(0));
}
