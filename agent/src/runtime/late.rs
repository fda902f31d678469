//! Completes a container's root file system after libcontainer has made its devices and links in /dev, and before
//! the root becomes that of the container: mounts over them, and a working directory in a mount. libcontainer has no
//! such step but a hook of the spec, so this is a program: the agent's own again, as [`PROGRAM`]. Few containers
//! need it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use libcontainer::rootfs::RootFS;
use oci_spec::runtime::{Hook, Hooks, Linux, Mount, Spec};
use pathrs::Root;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::child::{Failure, chain};
use crate::error::truncate;

/// `argv[0]` of the program.
pub const PROGRAM: &str = "nacre-late-mounts";
/// Most bytes of a report that are read.
const MAX_REPORT: u64 = 4096;

/// What is done late.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// Mounts, in their order.
    pub mounts: Vec<Mount>,
    /// The working directory to make.
    pub working_directory: Option<PathBuf>,
}

/// The program's argument.
#[derive(Serialize, Deserialize)]
struct Request {
    root: PathBuf,
    propagation: Option<String>,
    late: Late,
}

/// Where the program writes why it failed.
pub struct Report(File);

impl Late {
    /// Has libcontainer run the program when it creates the container of `spec`; None if there is nothing to do.
    pub fn add_to(self, spec: &mut Spec) -> Result<Option<Report>, Failure> {
        if self == Self::default() {
            return Ok(None);
        }
        let root = spec.root().as_ref().ok_or("root is missing")?.path().clone();
        let linux = spec.linux().as_ref();
        let request = Request {
            root,
            propagation: linux.and_then(|linux| linux.rootfs_propagation().clone()),
            late: self,
        };
        // Without CLOEXEC, so that the program inherits it. libcontainer closes it before the container's command.
        let report = memfd_create("report", MemfdFlags::empty())?;
        let arguments = vec![
            PROGRAM.to_owned(),
            format!("/proc/self/fd/{}", report.as_raw_fd()),
            serde_json::to_string(&request)?,
        ];
        let mut hook = Hook::default();
        hook.set_path(std::env::current_exe()?);
        hook.set_args(Some(arguments));
        let mut hooks = spec.hooks().clone().unwrap_or_else(no_hooks);
        hooks.set_create_container(Some(vec![hook]));
        spec.set_hooks(Some(hooks));
        Ok(Some(Report(report.into())))
    }
}

/// oci-spec's default has hooks.
fn no_hooks() -> Hooks {
    let mut hooks = Hooks::default();
    hooks.set_prestart(None);
    hooks.set_create_runtime(None);
    hooks.set_create_container(None);
    hooks.set_start_container(None);
    hooks.set_poststart(None);
    hooks.set_poststop(None);
    hooks
}

impl Report {
    /// Why the program failed; None if it did not.
    pub fn read(mut self) -> Option<String> {
        let mut text = String::new();
        self.0.rewind().ok()?;
        self.0.take(MAX_REPORT).read_to_string(&mut text).ok()?;
        Some(text).filter(|text| !text.is_empty())
    }
}

/// Does the work that its arguments name. Returns the process's exit status.
pub fn main(arguments: &[OsString]) -> i32 {
    let [report, request] = arguments else {
        return 2;
    };
    let Err(error) = run(request) else {
        return 0;
    };
    let text = truncate(chain(&*error));
    // If even this fails, libcontainer reports the exit status.
    let _ = std::fs::write(report, text);
    1
}

fn run(request: &OsStr) -> Result<(), Failure> {
    let request: Request = serde_json::from_slice(request.as_encoded_bytes())?;
    let mut linux = Linux::default();
    linux.set_rootfs_propagation(request.propagation);
    if !request.late.mounts.is_empty() {
        let mut spec = Spec::default();
        spec.set_mounts(Some(request.late.mounts));
        RootFS::new().mount_to_rootfs(&linux, &spec, &request.root, true)?;
    }
    if let Some(path) = &request.late.working_directory {
        let made = Root::open(&request.root)?.mkdir_all(path, &Permissions::from_mode(0o755));
        made.map_err(|error| format!("process.cwd: creating {}: {}", path.display(), chain(&error)))?;
    }
    Ok(())
}
