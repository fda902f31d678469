//! A VMM in its jail that gets disks while its guest runs.

use super::network::attach;
use super::*;

/// A loop device with the content of a file.
struct LoopDevice(String);

impl LoopDevice {
    /// None if this process may not make one.
    fn of(file: &std::path::Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(Self(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").args(["-d", &self.0]).status().unwrap();
    }
}

#[test]
fn files_and_block_devices_are_attached_in_the_jail() {
    let Some(vmm) = Vmm::running(IDLE_GUEST) else {
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let Some(device) = LoopDevice::of(file.path()) else {
        return println!("skipped: no loop devices");
    };
    let disk = |serial: &str| DeviceConfig::Blk {
        file: FdIndex(0),
        read_only: true,
        serial: serial.to_owned(),
        queues: 1,
    };
    let block_device = File::open(&device.0).unwrap();
    for (file, serial, slot) in [(file.as_file(), "file", 2), (&block_device, "block-device", 3)] {
        let attached = attach(&vmm, disk(serial), &[file.as_raw_fd()]);
        assert_eq!(attached, Ok(Answer::Attached { slot }), "{serial}");
    }
    let pipe = std::io::pipe().unwrap().0;
    let error = attach(&vmm, disk("pipe"), &[pipe.as_raw_fd()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("a Fifo"), "{error}");
    for slot in [2, 3] {
        assert_eq!(vmm.request(Request::Detach { slot }), Ok(Answer::Done));
    }
    assert_eq!(vmm.close().code(), Some(0));
}
