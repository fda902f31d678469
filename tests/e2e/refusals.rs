//! Fields of a spec that are not applied are refused by name, never ignored.

use anyhow::{Result, ensure};
use nacre_tests::containerd::bundle::Bundle;
use serde_json::Value;

use crate::{Test, core, test};
use nacre_tests::containerd::ctr::{Run, fresh_id};

pub const TESTS: &[Test] = &[
    core("host network is refused by name", host_network),
    test("a terminal is refused by name", terminal),
    test("a hook in the spec is refused by name", hook),
];

fn refused(flags: &[&str], names: &[&str]) -> Result<()> {
    let output = Run {
        flags,
        command: &["true"],
        ..Run::default()
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

/// A whole specification, changed, is refused with these words.
fn refused_spec(name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    let output = Bundle::new(&["true"], change)?.finish("spec")?;
    ensure!(
        output.code != Some(0) && output.stderr.contains(name),
        "the error does not name {name}: {output:?}"
    );
    Ok(())
}
