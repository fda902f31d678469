//! Tests of config.json contents that ctr would not write. They start a shim as containerd does, without
//! containerd.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Empty, ShutdownRequest};
use nacre_tests::containerd::ctr::{Output, fresh_id, output};
use nacre_tests::containerd::task;
use nacre_tests::leaks::Snapshot;

use super::expect_next_container_runs;
use crate::setup::containerd_address;

/// Checks that each content is refused with an error and leaves nothing behind.
pub fn bytes() -> Result<()> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let good = br#"{"ociVersion":"1.0.2","process":{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"/"},"hostname":"NAME"}"#;
    let at = good
        .windows(4)
        .position(|bytes| bytes == b"NAME")
        .context("the specification has no NAME")?;
    let mut not_utf8 = good.to_vec();
    not_utf8[at..at + 4].copy_from_slice(&[0xff, 0xfe, 0xc3, 0x28]);
    let rows: [(&str, &[u8]); 8] = [
        ("an empty file", b""),
        ("not JSON", b"process: args"),
        ("a list", b"[]"),
        ("truncated JSON", &good[..good.len() / 2]),
        ("invalid UTF-8", &not_utf8),
        (
            "a lone surrogate",
            br#"{"ociVersion":"1.0.2","hostname":"\ud800"}"#,
        ),
        ("100,000 nested lists", deep.as_bytes()),
        (
            "fields of the wrong types",
            br#"{"ociVersion":1,"process":[],"root":"/","mounts":{},"linux":7}"#,
        ),
    ];
    for (name, config) in rows {
        let before = Snapshot::take()?;
        start_shim_and_create(config).with_context(|| name.to_owned())?;
        before
            .compare(Duration::from_secs(15))
            .with_context(|| name.to_owned())?;
    }
    expect_next_container_runs()
}

/// Runs a shim with `config` from `start` to `delete`; `start` or Create must fail with a message.
fn start_shim_and_create(config: &[u8]) -> Result<()> {
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
        output(command)
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
            Ok(_) => bail!("Create succeeded"),
            Err(status) => ensure!(!status.message().is_empty(), "refused without a message"),
        }
    } else {
        ensure!(!started.stderr.is_empty(), "refused without a message");
    }
    shim("delete")?.success().map(drop)
}
