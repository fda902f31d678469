//! Fields of a spec that are not applied are refused by name, never ignored.

use std::fs;

use anyhow::{Result, ensure};

use crate::ctr::{Run, fresh_id};
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("host network is refused by name", host_network),
    test("a terminal is refused by name", terminal),
    test("a hook in the spec is refused by name", hook),
];

fn refused(flags: &[&str], names: &[&str]) -> Result<()> {
    let output = Run {
        flags,
        command: &["true"],
    }
    .finish(&fresh_id("refused"))?;
    ensure!(output.code != Some(0), "{flags:?} was accepted");
    for name in names {
        ensure!(
            output.stderr.contains(name),
            "the error does not name {name}: {}",
            output.stderr
        );
    }
    Ok(())
}

fn host_network() -> Result<()> {
    refused(&["--net-host"], &["linux.namespaces", "network"])
}

fn terminal() -> Result<()> {
    refused_spec("process.terminal", |spec| {
        spec["process"]["terminal"] = true.into()
    })
}

fn hook() -> Result<()> {
    refused_spec("hooks.poststop", |spec| {
        spec["hooks"] = serde_json::json!({"poststop": [{"path": "/bin/true"}]});
    })
}

/// A whole specification, changed, is refused with these words. (`ctr run --config` takes one.)
fn refused_spec(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "/run"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "pid"}]}
    });
    change(&mut spec);
    let file = directory.path().join("config.json");
    fs::write(&file, spec.to_string())?;
    let id = fresh_id("spec");
    let path = file.display().to_string();
    let output = crate::ctr::ctr([
        "run",
        "--rm",
        "--runtime",
        crate::ctr::RUNTIME,
        "--config",
        &path,
        &id,
    ])?;
    ensure!(
        output.code != Some(0) && output.stderr.contains(name),
        "the error does not name {name}: {output:?}"
    );
    Ok(())
}
