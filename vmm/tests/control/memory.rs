//! A VMM in its jail that gets a device to plug memory, and requests to plug it. The guest has no driver, so it
//! never plugs any.

use super::network::attach;
use super::*;

#[test]
fn memory_is_plugged_in_the_jail() {
    let Some(vmm) = Vmm::running(IDLE_GUEST) else {
        return;
    };
    let mem = |max_mib| DeviceConfig::Mem { max_mib };
    let refused = |result: Result<Answer, ErrorText>, expected: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for request in [Request::Memory, Request::PlugMemory { mib: 0 }] {
        refused(vmm.request(request), "no device to plug memory");
    }
    refused(attach(&vmm, mem(100), &[]), "max_mib = 100");
    assert_eq!(attach(&vmm, mem(512), &[]), Ok(Answer::Attached { slot: 2 }));
    refused(attach(&vmm, mem(512), &[]), "already");
    refused(vmm.request(Request::Detach { slot: 2 }), "can't be removed");
    for mib in [2, 256, 512, 130, 512] {
        assert_eq!(
            vmm.request(Request::PlugMemory { mib }),
            Ok(Answer::Done),
            "{mib}"
        );
        let memory = Answer::Memory {
            requested_mib: mib,
            plugged_mib: 0,
        };
        assert_eq!(vmm.request(Request::Memory), Ok(memory));
    }
    for mib in [1, 514, u32::MAX] {
        refused(
            vmm.request(Request::PlugMemory { mib }),
            "must be a multiple of 2 up to 512",
        );
    }
    // Nothing is plugged, which is what is requested.
    let request = ToVmm::Request {
        id: 2,
        request: Request::PlugMemory { mib: 0 },
    };
    vmm.control.send(&request, &[]).unwrap();
    let (message, _) = vmm.control.receive::<FromVmm>().unwrap();
    assert_eq!(message, FromVmm::MemoryPlugged { mib: 0 });
    assert_eq!(vmm.answer(), (2, Ok(Answer::Done)));
    assert_eq!(vmm.close().code(), Some(0));
}
