//! Bytes in config.json that ctr would not send: a shim is started by hand, as containerd does it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Empty, ShutdownRequest};
use nacre_tests::containerd::ctr::{Output, finish, fresh_id};
use nacre_tests::containerd::task;

use super::next_starts;
use crate::leaks::Snapshot;
use crate::setup::containerd_address;

/// Each is refused with words.
pub fn bytes() -> Result<()> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let good = br#"{"ociVersion":"1.0.2","process":{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"/"},"hostname":"NAME"}"#;
    let at = good
        .windows(4)
        .position(|bytes| bytes == b"NAME")
        .context("no place")?;
    let mut not_utf8 = good.to_vec();
    not_utf8[at..at + 4].copy_from_slice(&[0xff, 0xfe, 0xc3, 0x28]);
    let rows: [(&str, &[u8]); 8] = [
        ("nothing", b""),
        ("no JSON", b"process: args"),
        ("a list", b"[]"),
        ("cut off", &good[..good.len() / 2]),
        ("no UTF-8", &not_utf8),
        (
            "half a surrogate",
            br#"{"ociVersion":"1.0.2","hostname":"\ud800"}"#,
        ),
        ("deep", deep.as_bytes()),
        (
            "other types",
            br#"{"ociVersion":1,"process":[],"root":"/","mounts":{},"linux":7}"#,
        ),
    ];
    for (name, config) in rows {
        let before = Snapshot::take()?;
        raw(config).with_context(|| name.to_owned())?;
        before
            .compare(Duration::from_secs(15))
            .with_context(|| name.to_owned())?;
    }
    next_starts()
}

/// A shim's life with `config`, from `start` to `delete`: Create must fail with words.
fn raw(config: &[u8]) -> Result<()> {
    let id = fresh_id("raw");
    let bundle = tempfile::tempdir_in("/run")?;
    fs::write(bundle.path().join("config.json"), config)?;
    let address = containerd_address()?;
    let shim = |verb: &str| -> Result<Output> {
        let mut command = Command::new("containerd-shim-nacre-v2");
        command
            .current_dir(bundle.path())
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", address.display()))
            .args([
                "-namespace",
                "default",
                "-id",
                &id,
                "-publish-binary",
                "/bin/true",
                "-address",
            ])
            .arg(&address);
        if verb == "delete" {
            command.arg("-bundle").arg(bundle.path());
        }
        command.arg(verb);
        finish(command)
    };
    let started = shim("start")?;
    if started.code == Some(0) {
        let socket = started.text().trim().to_owned();
        let request = CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.path().display().to_string(),
            ..CreateTaskRequest::default()
        };
        let created: Result<CreateTaskResponse, ttrpc::Status> = task::call_at(&socket, "Create", &request)?;
        let shutdown = ShutdownRequest {
            id: id.clone(),
            now: true,
            ..ShutdownRequest::default()
        };
        let _: Result<Empty, ttrpc::Status> = task::call_at(&socket, "Shutdown", &shutdown)?;
        match created {
            Ok(_) => bail!("it was accepted"),
            Err(status) => ensure!(!status.message().is_empty(), "refused without a word"),
        }
    } else {
        ensure!(!started.stderr.is_empty(), "refused without a word");
    }
    shim("delete")?.success().map(drop)
}
