//! Specifications that are wrong, too large or malicious: each is refused with words, or does what it says inside of its
//! guest. Nothing is left behind, and the next container starts.

mod bytes;
mod rows;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::Output;
use serde_json::{Value, json};

use self::Expected::{Prints, Refused};
use self::bytes::bytes;
use self::rows::{NONSENSE, OUTSIDE, Row, WRONG, mount, push};
use crate::leaks::Snapshot;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("wrong specifications are refused, one after the other", || {
        table(WRONG)
    }),
    test("limits and words that make no sense are refused", || {
        table(NONSENSE)
    }),
    test("specifications that are too large", too_large),
    test("mounts and links that point outside stay inside", || {
        table(OUTSIDE)
    }),
    test("root file systems whose directories are links", roots),
    test("bytes in config.json that are no specification", bytes),
];

/// What must come of a specification.
pub enum Expected {
    /// An error with these words, whatever their case.
    Refused(&'static [&'static str]),
    /// The command runs and prints this.
    Prints(&'static str),
}

/// Every row by itself; all that fail are told.
fn table(rows: &[Row]) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, change, expected) in rows {
        if let Err(error) = alone(name, change, expected, |_| Ok(())) {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    next_starts()
}

/// One specification between two looks at the host.
fn alone(
    name: &str,
    change: impl FnOnce(&mut Value),
    expected: &Expected,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let bundle = Bundle::new(&["echo", "ran"], change)?;
    prepare(&bundle.root())?;
    let before = Snapshot::take()?;
    let output = bundle.finish("bad")?;
    judge(&output, expected).with_context(|| format!("{name}: {output:?}"))?;
    before.compare(Duration::from_secs(15))
}

fn judge(output: &Output, expected: &Expected) -> Result<()> {
    match expected {
        Refused(words) => {
            ensure!(output.code != Some(0), "it ran");
            let said = output.stderr.to_lowercase();
            for word in *words {
                ensure!(
                    said.contains(&word.to_lowercase()),
                    "the error does not say {word:?}"
                );
            }
        }
        Prints(text) => {
            ensure!(
                output.code == Some(0) && output.text() == *text,
                "it should print {text:?}"
            );
        }
    }
    Ok(())
}

fn next_starts() -> Result<()> {
    let output = Bundle::new(&["echo", "next"], |_| ())?
        .finish("next")?
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
    alone("10,000 mounts", many, &Refused(&["mounts"]), |_| Ok(()))?;
    alone(
        "an argument of 200 kB",
        long,
        &Refused(&["argument list too long"]),
        |_| Ok(()),
    )?;
    alone("arguments of 6 MB", args, &Refused(&[]), |_| Ok(()))?;
    alone(
        "20,000 masked paths",
        masked,
        &Refused(&["linux.maskedPaths"]),
        |_| Ok(()),
    )?;
    next_starts()
}

/// Directories that runtimes use by name, and that an image may have made links.
fn roots() -> Result<()> {
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
        // What a runtime needs at its place is refused, or put there all the same.
        let bundle = Bundle::new(&["true"], script)?;
        link(name, to)(&bundle.root())?;
        let before = Snapshot::take()?;
        let output = bundle.finish("root")?;
        let said = output.code != Some(0) && !output.stderr.is_empty();
        ensure!(output.text() == "ran\n" || said, "/{name} → {to} gave {output:?}");
        ensure!(
            !marker.exists(),
            "/{name} → {to}: the container wrote to the host"
        );
        before
            .compare(Duration::from_secs(15))
            .with_context(|| format!("/{name} → {to}"))?;
    }
    next_starts()
}
