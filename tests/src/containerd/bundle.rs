//! A container given whole: a root file system outside of every snapshotter and a specification for
//! `ctr run --config`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ctr::{Output, Run, ctr, finish, fresh_id};

const SHARED: &str = "shared";

/// A root file system and the specification of a container in it, until dropped.
pub struct Bundle {
    directory: TempDir,
    spec: Value,
}

impl Bundle {
    /// busybox with all its applets, and containerd's own default specification running `args`, changed by `change`.
    ///
    /// # Errors
    /// Where a file can't be written, or `ctr oci spec` fails.
    pub fn new(args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run")?;
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open)?;
        let root = directory.path().join("rootfs");
        fill(&root)?;
        let beside = directory.path().join(SHARED);
        fs::create_dir(&beside)?;
        fs::write(beside.join("file"), "the host's\n")?;
        let mut spec = default_spec()?.clone();
        spec["root"]["path"] = json!(root);
        spec["process"]["args"] = json!(args);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        let name = directory.path().file_name().context("no name")?;
        spec["linux"]["cgroupsPath"] = json!(format!("/default/{}", name.to_string_lossy()));
        change(&mut spec);
        Ok(Self { directory, spec })
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// Adds a file to the root file system.
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn file(&self, path: &str, mode: u32, text: &str) -> Result<()> {
        let file = self.root().join(path);
        fs::create_dir_all(file.parent().context("no parent")?)?;
        fs::write(&file, text)?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(mode))?)
    }

    /// A directory of the host's beside the root file system, with `file` in it.
    pub fn shared(&self) -> PathBuf {
        self.directory.path().join(SHARED)
    }

    /// `ctr run --rm` of it under Nacre, to its end.
    ///
    /// # Errors
    /// Where ctr can't be run.
    pub fn finish(&self, word: &str) -> Result<Output> {
        Run {
            config: Some(&self.config()?),
            ..Run::default()
        }
        .finish(&fresh_id(word))
    }

    /// Writes the specification; gives its file for [`super::ctr::Run::config`].
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn config(&self) -> Result<PathBuf> {
        let file = self.directory.path().join("config.json");
        fs::write(&file, self.spec.to_string())?;
        Ok(file)
    }
}

/// [`Bundle::shared`] of the bundle that `spec` is for.
pub fn shared(spec: &Value) -> String {
    let root = Path::new(spec["root"]["path"].as_str().unwrap_or_default());
    root.with_file_name(SHARED).display().to_string()
}

/// What containerd gives a container of which nothing is said.
fn default_spec() -> Result<&'static Value> {
    static SPEC: OnceLock<Value> = OnceLock::new();
    if let Some(spec) = SPEC.get() {
        return Ok(spec);
    }
    let text = ctr(["oci", "spec"])?.success()?;
    let spec = serde_json::from_str(&text).context("what ctr oci spec prints")?;
    Ok(SPEC.get_or_init(|| spec))
}

/// The image's files, as tests/lab/prepare makes them.
fn fill(root: &Path) -> Result<()> {
    for name in ["bin", "proc", "sys", "dev", "etc", "run", "root", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in applets()? {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    )?;
    Ok(())
}

fn applets() -> Result<&'static [String]> {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    if let Some(applets) = APPLETS.get() {
        return Ok(applets);
    }
    let mut list = Command::new("/bin/busybox");
    list.arg("--list");
    let names = finish(list)?.success()?;
    let names = names.lines().filter(|name| *name != "busybox");
    Ok(APPLETS.get_or_init(|| names.map(str::to_owned).collect()))
}
