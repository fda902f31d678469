//! Bundles for `ctr run --config`: a root file system that no snapshotter manages, and a specification. The
//! end-to-end tests and the comparison with runc use them to change single fields.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ctr::{Output, Run, ctr, fresh_id, output};

/// Name of the shared directory in a bundle's directory.
const SHARED: &str = "shared";

/// Adds `mount` to `spec`.
pub fn add_mount(spec: &mut Value, mount: Value) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(mount);
    }
}

/// A root file system and a specification, in a temporary directory that is removed on drop.
pub struct Bundle {
    directory: TempDir,
    spec: Value,
}

impl Bundle {
    /// A root file system with busybox and all its applets, and containerd's default specification that runs
    /// `args`, modified by `change`.
    ///
    /// # Errors
    /// If a file can't be written, or `ctr oci spec` fails.
    pub fn new(args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run")?;
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open)?;
        let root = directory.path().join("rootfs");
        create_root(&root)?;
        let beside = directory.path().join(SHARED);
        fs::create_dir(&beside)?;
        fs::write(beside.join("file"), "the host's\n")?;
        let mut spec = default_spec()?.clone();
        spec["root"]["path"] = json!(root);
        spec["process"]["args"] = json!(args);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        let name = directory
            .path()
            .file_name()
            .context("the bundle's directory has no name")?;
        spec["linux"]["cgroupsPath"] = json!(format!("/default/{}", name.to_string_lossy()));
        change(&mut spec);
        Ok(Self { directory, spec })
    }

    /// The directory of the root file system, on the host.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// Adds the file `path`, relative to the root file system.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn add_file(&self, path: &str, mode: u32, text: &str) -> Result<()> {
        let file = self.root().join(path);
        fs::create_dir_all(file.parent().context("the file has no parent directory")?)?;
        fs::write(&file, text)?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(mode))?)
    }

    /// A host directory outside of the root file system that contains a file named `file`, for bind mounts.
    pub fn shared_directory(&self) -> PathBuf {
        self.directory.path().join(SHARED)
    }

    /// Runs it to its end with `ctr run --rm` under Nacre; `word` is part of the container's id.
    ///
    /// # Errors
    /// If ctr can't be run.
    pub fn output(&self, word: &str) -> Result<Output> {
        Run {
            config: Some(&self.config()?),
            ..Run::default()
        }
        .output(&fresh_id(word))
    }

    /// Writes the specification to config.json; returns its path, for [`super::ctr::Run::config`].
    ///
    /// # Errors
    /// If it can't be written.
    pub fn config(&self) -> Result<PathBuf> {
        let file = self.directory.path().join("config.json");
        fs::write(&file, self.spec.to_string())?;
        Ok(file)
    }
}

/// The [`Bundle::shared_directory`] of the bundle to which `spec` belongs, from its `root.path`.
pub fn shared_directory(spec: &Value) -> String {
    let root = Path::new(spec["root"]["path"].as_str().unwrap_or_default());
    root.with_file_name(SHARED).display().to_string()
}

/// containerd's default specification, from `ctr oci spec`. Cached.
fn default_spec() -> Result<&'static Value> {
    static SPEC: OnceLock<Value> = OnceLock::new();
    if let Some(spec) = SPEC.get() {
        return Ok(spec);
    }
    let text = ctr(["oci", "spec"])?.success()?;
    let spec = serde_json::from_str(&text).context("parsing the output of ctr oci spec")?;
    Ok(SPEC.get_or_init(|| spec))
}

/// Creates the files of the busybox image that tests/lab/prepare builds.
fn create_root(root: &Path) -> Result<()> {
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

/// The names of busybox's applets. Cached.
fn applets() -> Result<&'static [String]> {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    if let Some(applets) = APPLETS.get() {
        return Ok(applets);
    }
    let mut list = Command::new("/bin/busybox");
    list.arg("--list");
    let names = output(list)?.success()?;
    let names = names.lines().filter(|name| *name != "busybox");
    Ok(APPLETS.get_or_init(|| names.map(str::to_owned).collect()))
}
