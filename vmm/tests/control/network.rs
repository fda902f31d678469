//! A VMM in its jail that gets network devices while its guest runs, and loses them again.

use nacre_vmm::virtio::net::open_tap;

use super::*;

/// Sends a request to attach `device`, with `fds`; returns its result.
pub fn attach(vmm: &Vmm, device: DeviceConfig, fds: &[RawFd]) -> Result<Answer, ErrorText> {
    let request = ToVmm::Request {
        id: 1,
        request: Request::Attach { device },
    };
    vmm.control.send(&request, fds).unwrap();
    vmm.answer().1
}

fn net(taps: &[u8]) -> DeviceConfig {
    DeviceConfig::Net {
        taps: taps.iter().copied().map(FdIndex).collect(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
    }
}

impl Vmm {
    /// How many threads and descriptors the VMM has.
    fn size(&self) -> (usize, usize) {
        let count = |what| {
            std::fs::read_dir(format!("/proc/{}/{what}", self.child.id()))
                .unwrap()
                .count()
        };
        (count("task"), count("fd"))
    }
}

#[test]
fn network_devices_are_attached_and_detached_in_the_jail() {
    let Some(vmm) = Vmm::running(IDLE_GUEST) else {
        return;
    };
    let Ok(tap) = open_tap("nacretest%d", false) else {
        return println!("skipped: no taps");
    };
    let tap = tap.as_raw_fd();
    let file = tempfile::tempfile().unwrap();
    // KVM adds a thread to the process when the guest has started.
    while vmm.reads() == 0 {}
    let before = vmm.size();
    let refused: [(DeviceConfig, &[RawFd], &str); 7] = [
        (net(&[0]), &[], "there is no descriptor 0"),
        (net(&[0]), &[tap, tap], "no field uses descriptor 1"),
        (net(&[0, 0]), &[tap], "already used"),
        (net(&[]), &[], "got 0"),
        (net(&[0]), &[file.as_raw_fd()], "read the tap's flags"),
        (VSOCK, &[tap], "only a network device"),
        (
            DeviceConfig::Fs {
                tag: "late".to_owned(),
            },
            &[],
            "only a network device",
        ),
    ];
    for (device, fds, expected) in refused {
        let error = attach(&vmm, device, fds).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(vmm.size(), before, "{expected}");
    }
    // vsock and fs are in the first slots.
    for slot in 2..32 {
        assert_eq!(attach(&vmm, net(&[0]), &[tap]), Ok(Answer::Attached { slot }));
    }
    let full = attach(&vmm, net(&[0]), &[tap]).unwrap_err().to_string();
    assert!(full.contains("32 PCI slots"), "{full}");
    for slot in [1, 32, 255] {
        let error = vmm.request(Request::Detach { slot }).unwrap_err().to_string();
        assert!(error.contains("no device was attached"), "{slot}: {error}");
    }
    assert_eq!(vmm.request(Request::Detach { slot: 9 }), Ok(Answer::Done));
    assert!(vmm.request(Request::Detach { slot: 9 }).is_err());
    assert_eq!(
        attach(&vmm, net(&[0]), &[tap]),
        Ok(Answer::Attached { slot: 9 }),
        "the slot is used again"
    );
    for request in [Request::Pause, Request::Resume] {
        assert_eq!(vmm.request(request), Ok(Answer::Done));
    }
    for slot in 2..32 {
        assert_eq!(vmm.request(Request::Detach { slot }), Ok(Answer::Done));
    }
    assert_eq!(vmm.size(), before, "a device that was detached leaves something");
    assert_eq!(vmm.close().code(), Some(0));
}
