//! Conditions that the agent must survive: a host file system that hangs, a very long error text.
//! `containers.rs` says what these tests need; the first one also needs /dev/fuse.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use guest::container::{Container, add};
use guest::{Guest, run};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use ttrpc::Code;

/// `FUSE_INIT` of linux/fuse.h.
const INIT: u32 = 26;

/// A FUSE file system whose server answers the first request, INIT, and no other.
struct HungFiles {
    directory: tempfile::TempDir,
    device: File,
}

/// The fields of `struct fuse_in_header` that the tests use.
struct Request {
    opcode: u32,
    unique: u64,
    pid: u32,
}

impl HungFiles {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let none = MsFlags::empty();
        mount(
            Some("hung"),
            directory.path(),
            Some("fuse"),
            none,
            Some(options.as_str()),
        )
        .unwrap();
        let files = Self { directory, device };
        let init = files.next_request();
        assert_eq!(init.opcode, INIT);
        files.answer_init(init.unique);
        files
    }

    /// Waits for a request.
    fn next_request(&self) -> Request {
        let mut bytes = [0; 1 << 16];
        let length = (&self.device).read(&mut bytes).unwrap();
        assert!(length >= 40, "{length}");
        let number = |at: usize| u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
        Request {
            opcode: number(4),
            unique: u64::from_ne_bytes(*bytes[8..].first_chunk().unwrap()),
            pid: number(32),
        }
    }

    /// `struct fuse_out_header` and `struct fuse_init_out`: version 7.31, no optional feature.
    fn answer_init(&self, unique: u64) {
        let mut bytes = vec![];
        bytes.extend(80_u32.to_ne_bytes());
        bytes.extend(0_i32.to_ne_bytes());
        bytes.extend(unique.to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend(31_u32.to_ne_bytes());
        bytes.resize(80, 0);
        (&self.device).write_all(&bytes).unwrap();
    }
}

impl Drop for HungFiles {
    fn drop(&mut self) {
        // Closing the device afterwards fails all requests, also those from other mount namespaces.
        let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn the_agent_answers_while_a_working_directory_hangs() {
    run(async {
        let files = HungFiles::mount();
        let mut guest = Guest::start().await;
        let mut container = Container::new("a", &["true"]);
        let source = files.directory.path().to_str().unwrap();
        let volume =
            json!({"destination": "/volume", "type": "bind", "source": source, "options": ["rbind"]});
        add(&mut container.spec, "/mounts", volume);
        container.spec["process"]["cwd"] = json!("/volume/new");
        let (files, request) = tokio::select! {
            created = guest.create_as(container) => panic!("{created:?}"),
            request = tokio::task::spawn_blocking(move || {
                let request = files.next_request();
                (files, request)
            }) => request.unwrap(),
        };
        let name = std::fs::read_to_string(format!("/proc/{}/comm", request.pid)).unwrap();
        assert_eq!(
            name, "nacre:init\n",
            "the request came from process {}",
            request.pid
        );
        guest.setup(nacre_protocol::BUILD_ID).await.unwrap();
        guest.create("b", &["true"]).await.unwrap();
        drop(files);
    });
}

#[test]
fn a_very_long_command_is_not_found_in_create() {
    run(async {
        let mut guest = Guest::start().await;
        for (name, want) in [
            ("n".repeat(100_000), "exec: \"nnnn"),
            (format!("/{}", "n".repeat(100_000)), "exec: \"/nnn"),
        ] {
            let (code, message) = guest.create("a", &[&name]).await.unwrap_err();
            assert!(
                code == Code::INVALID_ARGUMENT && message.starts_with(want) && message.len() < 5000,
                "{code:?} {} bytes: {}",
                message.len(),
                message.get(..100).unwrap_or(&message)
            );
            guest.expect_nothing_left("a");
        }
    });
}
