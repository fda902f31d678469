//! A pod for a test, without CRI: its sandbox runs from [`Pod::start`] to [`Pod::remove`]. Called by `nacre-e2e` and
//! `nacre-soak`.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::bundle::{Bundle, shared_directory};
use super::ctr::{Foreground, Output, Run, ctr, fresh_id, output, remove_detached};
use crate::leaks::only_process;
use crate::memory::{self, resident_kib};

/// The namespaces that CRI shares between the containers of a pod.
const SHARED: [(&str, &str); 3] = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// A pod whose sandbox runs.
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// The pid of its tasks.
    pub pid: u32,
}

impl Pod {
    /// Starts a sandbox whose spec `change` has adapted; `word` is part of its id.
    pub fn start(word: &str, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let id = fresh_id(word);
        let bundle = Bundle::new(&["/pause"], |spec| {
            annotate(spec, "sandbox", &id);
            change(spec);
        })?;
        Run {
            config: Some(&bundle.config()?),
            ..Run::default()
        }
        .detach(&id)?;
        let pid = pid(&id)?;
        Ok(Self { id, pid })
    }

    /// Kills the sandbox and removes it.
    pub fn remove(self) -> Result<()> {
        remove_detached(&self.id)
    }

    /// A container of the pod that runs `script`; its spec is adapted by `change`.
    pub fn member(&self, script: &str, change: impl FnOnce(&mut Value)) -> Result<Bundle> {
        Bundle::new(&["sh", "-c", script], |spec| {
            annotate(spec, "container", &self.id);
            for (kind, name) in SHARED {
                set_path(spec, &[kind], &format!("/proc/{}/ns/{name}", self.pid));
            }
            change(spec);
        })
    }

    /// Runs `bundle` to its end as container `id`.
    pub fn output(&self, bundle: &Bundle, id: &str) -> Result<Output> {
        let run = Run {
            config: Some(&bundle.config()?),
            ..Run::default()
        };
        let output = run.output(id)?;
        if output.code != Some(0) {
            // What `ctr run --rm` leaves if Create fails.
            ctr(["containers", "delete", id])?;
        }
        Ok(output)
    }

    /// Runs `bundle`, with pipes for its standard streams; `word` is part of its id.
    pub fn spawn(&self, bundle: &Bundle, word: &str) -> Result<Foreground> {
        Run {
            config: Some(&bundle.config()?),
            ..Run::default()
        }
        .spawn(&fresh_id(word))
    }

    /// Runs `script` in a container of the pod; returns its output.
    pub fn run(&self, word: &str, script: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
        self.output(&self.member(script, change)?, &fresh_id(word))?
            .success()
    }

    /// A tmpfs of the host as CRI makes one for each pod.
    pub fn make_shm(&self, size: &str) -> Result<HostShm> {
        let directory = tempfile::tempdir_in("/run")?;
        let path = directory.path().join("sandboxes").join(&self.id).join("shm");
        fs::create_dir_all(&path)?;
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "shm"])
            .arg(&path);
        output(mount)?.success()?;
        Ok(HostShm {
            _directory: directory,
            path,
        })
    }

    /// What the pod's VMM and shim hold now.
    pub fn figures(&self) -> Result<Figures> {
        let shim = only_process("containerd-shim-nacre")?;
        let count = |path: String| -> Result<usize> { Ok(fs::read_dir(&path).context(path)?.count()) };
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid))?;
        Ok(Figures {
            mounts: mounts.lines().count(),
            vmm_files: count(format!("/proc/{}/fd", self.pid))?,
            vmm_kib: resident_kib(self.pid)?,
            shim_files: count(format!("/proc/{shim}/fd"))?,
            shim_kib: memory::of(shim.into())?.own_kib,
        })
    }
}

/// What a pod's processes hold.
#[derive(Debug)]
pub struct Figures {
    mounts: usize,
    vmm_files: usize,
    vmm_kib: u64,
    shim_files: usize,
    /// Without the pages of its program, of which each new way through the code brings some.
    shim_kib: u64,
}

impl Figures {
    /// Fails if `after` has more mounts or descriptors, or memory that was not there before.
    pub fn compare(&self, after: &Self) -> Result<()> {
        ensure!(
            after.mounts == self.mounts,
            "mounts of the VMM: {self} -> {after}"
        );
        ensure!(
            after.vmm_files <= self.vmm_files,
            "descriptors of the VMM: {self} -> {after}"
        );
        ensure!(
            after.shim_files <= self.shim_files,
            "descriptors of the shim: {self} -> {after}"
        );
        ensure!(
            after.shim_kib <= self.shim_kib + 1024,
            "memory of the shim: {self} -> {after}"
        );
        Ok(())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "VMM {} mounts, {} descriptors, {} KiB; shim {} descriptors, {} KiB",
            self.mounts, self.vmm_files, self.vmm_kib, self.shim_files, self.shim_kib
        )
    }
}

/// A tmpfs of the host, unmounted when it is dropped.
pub struct HostShm {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl HostShm {
    /// Where it is mounted.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for HostShm {
    fn drop(&mut self) {
        // The leak check reports a mount that stays.
        let _ = nix::mount::umount(&self.path);
    }
}

/// Sets the annotations by which CRI names a container's sandbox.
fn annotate(spec: &mut Value, kind: &str, sandbox: &str) {
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": sandbox,
    });
}

/// Sets the path of the namespaces of these types; the empty one is that of a new namespace.
pub fn set_path(spec: &mut Value, kinds: &[&str], path: &str) {
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if kinds.iter().any(|kind| namespace["type"] == *kind) {
            namespace["path"] = json!(path);
        }
    }
}

/// Mounts the bundle's shared directory at /volume.
pub fn with_volume(spec: &mut Value) {
    let source = shared_directory(spec);
    let volume =
        json!({"destination": "/volume", "type": "bind", "source": source, "options": ["rbind", "ro"]});
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(volume);
    }
}

/// Binds `source` to /dev/shm, as CRI does.
pub fn replace_shm(spec: &mut Value, source: &str) {
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/dev/shm" {
            *mount = json!({"destination": "/dev/shm", "type": "bind", "source": source,
                "options": ["rbind", "rw", "nosuid", "nodev", "noexec"]});
        }
    }
}

/// Puts the members of `change` into `spec`; lists are appended to mounts and replaced elsewhere.
pub fn merge(spec: &mut Value, change: &Value) {
    match (spec, change) {
        (Value::Object(spec), Value::Object(change)) => {
            for (key, value) in change {
                let known = spec.entry(key.clone()).or_insert(Value::Null);
                match (key.as_str(), known) {
                    ("mounts", Value::Array(mounts)) => {
                        mounts.extend(value.as_array().into_iter().flatten().cloned())
                    }
                    (_, known) => merge(known, value),
                }
            }
        }
        (spec, change) => *spec = change.clone(),
    }
}

/// The pid of task `id`, as containerd lists it.
fn pid(id: &str) -> Result<u32> {
    let listed = ctr(["task", "list"])?.success()?;
    let line = listed.lines().find(|line| line.starts_with(id));
    let line = line.with_context(|| format!("{id} is not listed: {listed}"))?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("no pid is listed")?
        .parse()?)
}

/// Runs `script` in container `id`; returns both outputs, whatever its exit code is.
pub fn exec(id: &str, exec_id: &str, script: &str) -> Result<String> {
    let script = format!("{{ {script}; }} 2>&1");
    let output = ctr(["task", "exec", "--exec-id", exec_id, id, "sh", "-c", &script])?;
    Ok(output.text())
}
