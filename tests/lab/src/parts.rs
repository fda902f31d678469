//! Decides where a command runs (`nacre-vmm --probe`) and finds the parts of the lab (`tests/lab/prepare`).
//! Never downloads or builds anything itself.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::Arguments;
use crate::wire::{Job, Snapshotter};

/// Where the command runs.
#[derive(Debug)]
pub struct Choice {
    /// True for this machine, false for a VM.
    pub direct: bool,
    /// The decision and its reason, one line for the user.
    pub why: String,
}

/// Cargo's target directory of `checkout`.
pub fn target_directory(checkout: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), |dir| checkout.join(dir))
}

/// Asks the installed VMM whether this machine's KVM runs Linux.
pub fn choose(arguments: &Arguments, checkout: &Path) -> Result<Choice> {
    if arguments.vm || arguments.direct {
        let place = if arguments.direct {
            "on this machine"
        } else {
            "in a VM under emulation"
        };
        return Ok(Choice {
            direct: arguments.direct,
            why: format!("running {place}, as requested"),
        });
    }
    let vmm = target_directory(checkout).join("nacre/bin/nacre-vmm");
    if !vmm.exists() {
        let why = "running in a VM under emulation: Nacre is not installed under target/ (run make), so this machine's KVM cannot be probed";
        return Ok(Choice {
            direct: false,
            why: why.to_owned(),
        });
    }
    // The probe has a deadline of its own; timeout(1) covers a broken VMM.
    let output = Command::new("timeout")
        .args(["-s", "KILL", "20"])
        .arg(&vmm)
        .arg("--probe")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {} --probe", vmm.display()))?;
    let direct = output.status.success();
    let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed.push_str(&String::from_utf8_lossy(&output.stderr));
    let reason = printed
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("the probe printed nothing")
        .trim();
    let place = if direct {
        "on this machine"
    } else {
        "in a VM under emulation"
    };
    Ok(Choice {
        direct,
        why: format!("running {place}: {reason}"),
    })
}

/// Runs `tests/lab/prepare` with the arguments `what` and returns the paths that it prints, by name.
pub fn prepare(checkout: &Path, what: &[&str]) -> Result<HashMap<String, PathBuf>> {
    let output = Command::new(checkout.join("tests/lab/prepare"))
        .args(what)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("running tests/lab/prepare")?;
    if !output.status.success() {
        bail!("tests/lab/prepare {} failed ({})", what.join(" "), output.status);
    }
    let text = String::from_utf8(output.stdout).context("the output of tests/lab/prepare")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), PathBuf::from(value)))
        .collect())
}

/// The path of the part `name`.
pub fn part(parts: &HashMap<String, PathBuf>, name: &str) -> Result<PathBuf> {
    parts
        .get(name)
        .cloned()
        .with_context(|| format!("tests/lab/prepare printed no {name}=…"))
}

/// The job for a run on this machine; a run in a VM adds the modules and the terminal.
pub fn job(arguments: &Arguments, checkout: &Path) -> Result<Job> {
    let images = prepare(checkout, &["image"])?;
    let containerd = part(&prepare(checkout, &["containerd", &arguments.containerd])?, "bin")?;
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let mut pod_images = Vec::new();
    if arguments.cri || arguments.software {
        pod_images.push(part(&images, "pod_images")?);
    }
    if arguments.software {
        pod_images.push(part(&prepare(checkout, &["software"])?, "software")?);
    }
    let erofs = match arguments.snapshotter {
        Some(Snapshotter::Erofs) => Some(part(&prepare(checkout, &["erofs"])?, "erofs")?),
        Some(Snapshotter::Blockfile) | None => None,
    };
    Ok(Job {
        command: arguments.command.clone(),
        environment,
        checkout: checkout.to_owned(),
        target: target_directory(checkout),
        containerd,
        containerd_version: arguments.containerd.clone(),
        snapshotter: arguments.snapshotter,
        erofs,
        ext4: arguments.ext4,
        name: arguments.name.clone(),
        image: part(&images, "image")?,
        pod_images,
        modules: None,
        terminal: None,
    })
}
