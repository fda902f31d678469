//! Tests of specifications that are invalid, too large or malicious. Each is refused with an error, or has
//! its effect inside the guest only. Nothing is left behind, and the next container starts.

mod bytes;
mod rows;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::Output;
use nacre_tests::leaks::Snapshot;
use serde_json::{Value, json};

use self::Expected::{Prints, Refused};
use self::bytes::bytes;
use self::rows::{INVALID_FIELDS, INVALID_VALUES, OUTSIDE_PATHS, Row, mount, push};
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("invalid specifications are refused", || run_rows(INVALID_FIELDS)),
    test("invalid limits and unknown values are refused", || {
        run_rows(INVALID_VALUES)
    }),
    test("specifications that are too large are refused", too_large),
    test("mounts that point outside the root stay inside", || {
        run_rows(OUTSIDE_PATHS)
    }),
    test(
        "root file systems with symbolic links for directories",
        symlinked_roots,
    ),
    test("config.json without a valid specification", bytes),
];

/// The expected result of a specification.
pub enum Expected {
    /// An error that contains each of these texts, in any case.
    Refused(&'static [&'static str]),
    /// The command runs and prints this text.
    Prints(&'static str),
}

/// Runs each row and reports all that fail, then checks that a container starts.
fn run_rows(rows: &[Row]) -> Result<()> {
    let mut failures = Vec::new();
    for (name, change, expected) in rows {
        if let Err(error) = run_one(name, change, expected, |_| Ok(())) {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    expect_next_container_runs()
}

/// Runs one specification and checks its result and that it leaves nothing behind. `prepare` may change the
/// root file system before.
fn run_one(
    name: &str,
    change: impl FnOnce(&mut Value),
    expected: &Expected,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let bundle = Bundle::new(&["echo", "ran"], change)?;
    prepare(&bundle.root())?;
    let before = Snapshot::take()?;
    let output = bundle.output("bad")?;
    check_output(&output, expected).with_context(|| format!("{name}: {output:?}"))?;
    before.compare(Duration::from_secs(15))
}

fn check_output(output: &Output, expected: &Expected) -> Result<()> {
    match expected {
        Refused(texts) => {
            ensure!(output.code != Some(0), "the container ran");
            let error = output.stderr.to_lowercase();
            for text in *texts {
                ensure!(
                    error.contains(&text.to_lowercase()),
                    "the error does not contain {text:?}"
                );
            }
        }
        Prints(text) => {
            ensure!(
                output.code == Some(0) && output.text() == *text,
                "expected the output {text:?}"
            );
        }
    }
    Ok(())
}

/// Checks that a container with the default specification runs.
fn expect_next_container_runs() -> Result<()> {
    let output = Bundle::new(&["echo", "next"], |_| ())?
        .output("next")?
        .success()?;
    ensure!(output == "next\n", "the next container printed {output:?}");
    Ok(())
}

fn too_large() -> Result<()> {
    let many = |spec: &mut Value| {
        for number in 0..10_000 {
            mount(spec, &format!("/m/{number}"), "tmpfs");
        }
    };
    let long = |spec: &mut Value| spec["process"]["args"] = json!(["echo", "x".repeat(200_000)]);
    let args = |spec: &mut Value| {
        spec["process"]["args"] = json!(["echo"]);
        for _ in 0..60 {
            push(&mut spec["process"]["args"], json!("x".repeat(100_000)));
        }
    };
    let masked = |spec: &mut Value| spec["linux"]["maskedPaths"] = json!(vec!["/etc/passwd"; 20_000]);
    run_one("10,000 mounts", many, &Refused(&["mounts"]), |_| Ok(()))?;
    run_one(
        "an argument of 200 kB",
        long,
        &Refused(&["argument list too long"]),
        |_| Ok(()),
    )?;
    run_one("arguments of 6 MB", args, &Refused(&[]), |_| Ok(()))?;
    run_one(
        "20,000 masked paths",
        masked,
        &Refused(&["linux.maskedPaths"]),
        |_| Ok(()),
    )?;
    expect_next_container_runs()
}

/// Replaces directories that runtimes access by path with symbolic links, as an image could.
fn symlinked_roots() -> Result<()> {
    let link = |name: &'static str, to: &'static str| {
        move |root: &Path| -> Result<()> {
            let path = root.join(name);
            fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path))?;
            Ok(symlink(to, path)?)
        }
    };
    let marker = Path::new("/run/nacre-e2e-marker");
    for (name, to) in [
        ("etc", "/"),
        ("etc", "/../../../.."),
        ("dev", "/tmp"),
        ("sys", "/etc"),
        ("run", "/../../../../run"),
        ("tmp", "/proc/self/root"),
        ("proc", "/tmp"),
        ("proc", "/../../../../proc"),
    ] {
        let script = |spec: &mut Value| {
            spec["process"]["args"] = json!(["sh", "-c", "touch /run/nacre-e2e-marker; echo ran"]);
        };
        // Either the runtime refuses the root file system, or the container runs.
        let bundle = Bundle::new(&["true"], script)?;
        link(name, to)(&bundle.root())?;
        let before = Snapshot::take()?;
        let output = bundle.output("root")?;
        let refused = output.code != Some(0) && !output.stderr.is_empty();
        ensure!(
            output.text() == "ran\n" || refused,
            "/{name} → {to} gave {output:?}"
        );
        ensure!(
            !marker.exists(),
            "/{name} → {to}: the container created a file on the host"
        );
        before
            .compare(Duration::from_secs(15))
            .with_context(|| format!("/{name} → {to}"))?;
    }
    expect_next_container_runs()
}
