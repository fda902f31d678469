//! Completes the OCI spec that the shim sends for the guest: a pure function from JSON to [`PreparedSpec`].
//! The fields are checked by [`nacre_protocol::spec`], as in the shim; here, only paths that the shim has
//! replaced by the guest's are. `container` calls it; `exec` and `runtime` use its types. Never makes a
//! system call.

mod id_map;
mod library;
mod mounts;
mod namespaces;

use std::path::{Component, Path, PathBuf};

use nacre_protocol::spec::{self, Checked};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, LinuxSeccomp, Process, Spec};

use crate::cgroup::limits::{self, Setting};
use crate::devices;
use crate::disk::{DisksByHostNumber, use_guest_numbers};
use crate::error::Error;

pub use id_map::guest_uid;
pub use mounts::{MountPropagation, normalize};
pub use namespaces::{UtsNames, has_namespace, resolve_namespaces};

/// A checked spec, and the settings in it that the agent applies itself.
#[derive(Debug)]
pub struct PreparedSpec {
    /// The spec, without what the agent applies itself.
    pub spec: Spec,
    /// The container's cgroup, as an absolute path below the cgroup2 mount.
    pub cgroup: PathBuf,
    /// The cgroup's device program, as BPF instructions; empty if all devices are allowed.
    pub devices: Vec<u64>,
    /// The limits to write to the cgroup's files, in order.
    pub limits: Vec<Setting>,
    /// The disks that limits are for.
    pub disks: DisksByHostNumber,
    /// Owner of the standard streams, a uid in the guest's initial user namespace.
    pub uid: u32,
    /// HOME in `spec` is a placeholder: it must be looked up in the container's /etc/passwd.
    pub find_home: bool,
    /// Names to set in a UTS namespace that the container shares.
    pub uts_names: UtsNames,
    /// The seccomp profile.
    pub seccomp: Option<LinuxSeccomp>,
    /// Propagation types to set once the container's mounts exist.
    pub propagation: Vec<MountPropagation>,
    /// The parts of the spec that have no effect in this guest, each as a JSON path and the reason.
    pub ignored: Vec<String>,
}

/// Checks the spec of container `id` (JSON), which has these disks, and completes it.
pub fn prepare(id: &str, json: &[u8], disks: DisksByHostNumber) -> Result<PreparedSpec, Error> {
    let checked = spec::check(json)?;
    let ignored = ignored(&checked);
    let mut spec = library::spec(checked)?;
    use_guest_numbers(&mut spec, &disks);
    check_root(&spec)?;
    check_hooks(&spec)?;
    let mut process = required("process", spec.process())?;
    let find_home = complete_process(&mut process);
    let uid = guest_uid(&spec, process.user().uid());
    spec.set_process(Some(process));

    let mut linux = required("linux", spec.linux())?;
    let resources = linux.resources().clone().unwrap_or_default();
    linux.set_resources(None);
    let seccomp = linux.seccomp().clone();
    linux.set_seccomp(None);
    let devices = devices::program(resources.devices().as_deref().unwrap_or_default())?;
    let limits = limits::settings(&resources, &disks)?;
    let cgroup = cgroup_path(id, linux.cgroups_path().as_deref())?;
    linux.set_cgroups_path(Some(cgroup.clone()));
    let namespaces = namespaces::prepare(&linux)?;
    let uts_names = namespaces.take_uts_names(&mut spec);
    linux.set_namespaces(Some(namespaces.all));
    let propagation = mounts::prepare(&mut spec, &mut linux);
    spec.set_linux(Some(linux));
    Ok(PreparedSpec {
        spec,
        cgroup,
        devices,
        limits,
        disks,
        uid,
        find_home,
        uts_names,
        seccomp,
        propagation,
        ignored,
    })
}

/// Checks the process object of an exec (JSON). Also returns the fields that have no effect, each as a JSON
/// path and the reason.
pub fn parse_process(json: &[u8]) -> Result<(Process, Vec<String>), Error> {
    let checked = spec::check_process(json)?;
    let ignored = ignored(&checked);
    Ok((library::process(checked)?, ignored))
}

/// Checks a `linux.resources` object (JSON) of a container with these disks, and returns the limits that it changes.
/// Also returns the fields that have no effect, each as a JSON path and the reason.
pub fn parse_update(json: &[u8], disks: &DisksByHostNumber) -> Result<(Vec<Setting>, Vec<String>), Error> {
    let checked = spec::check_resources(json)?;
    let ignored = ignored(&checked);
    Ok((limits::settings(&library::resources(checked)?, disks)?, ignored))
}

fn ignored<D>(checked: &Checked<D>) -> Vec<String> {
    checked.ignored().iter().map(ToString::to_string).collect()
}

/// A field that the check requires; oci-spec has it as an option.
fn required<T: Clone>(name: &'static str, field: &Option<T>) -> Result<T, Error> {
    field.clone().ok_or_else(|| Error::bad_spec(name, "is missing"))
}

/// The shim replaces the root's path by the one in the guest, which is absolute.
fn check_root(spec: &Spec) -> Result<(), Error> {
    if required("root", spec.root())?.path().is_absolute() {
        Ok(())
    } else {
        Err(Error::bad_spec("root.path", "must be absolute in the guest"))
    }
}

/// Refuses every hook that runs on the host; only `startContainer` hooks are programs of the container.
fn check_hooks(spec: &Spec) -> Result<(), Error> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let others = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    match others
        .iter()
        .find(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty()))
    {
        Some((field, _)) => Err(Error::bad_spec(*field, "runs on the host, not in a guest")),
        None => Ok(()),
    }
}

/// Completes a process object. Returns whether HOME in its environment is a placeholder.
pub fn complete_process(process: &mut Process) -> bool {
    process.set_capabilities(Some(complete_capabilities(process.capabilities().as_ref())));
    let mut environment = Vec::new();
    for variable in process.env().iter().flatten() {
        set_variable(&mut environment, variable.clone());
    }
    let home = environment
        .iter()
        .find_map(|variable| variable.strip_prefix("HOME="));
    let find_home = home.is_none_or(str::is_empty);
    if find_home {
        // In its place in the environment, where the command gets it.
        set_variable(&mut environment, "HOME=/".to_owned());
    }
    process.set_env(Some(environment));
    find_home
}

/// Sets `variable`, NAME=VALUE, where the name was first, as runc does.
pub fn set_variable(environment: &mut Vec<String>, variable: String) {
    let mut others = environment.iter_mut();
    match others.find(|other| name(other) == name(&variable)) {
        Some(other) => *other = variable,
        None => environment.push(variable),
    }
}

/// The name of a variable.
fn name(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

/// All five capability sets; one that the spec does not have is empty.
fn complete_capabilities(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(given.and_then(|given| of(given).clone()).unwrap_or_default())
    };
    // oci-spec's default is not empty: each set must be overwritten.
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding));
    all.set_effective(set(LinuxCapabilities::effective));
    all.set_inheritable(set(LinuxCapabilities::inheritable));
    all.set_permitted(set(LinuxCapabilities::permitted));
    all.set_ambient(set(LinuxCapabilities::ambient));
    all
}

/// The container's cgroup: `linux.cgroupsPath`, or `/<id>` if it is missing or empty.
fn cgroup_path(id: &str, given: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(path) = given.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("/").join(id));
    };
    let mut components = path.components();
    let is_normal = components.next() == Some(Component::RootDir)
        && components.next().is_some()
        && path
            .components()
            .skip(1)
            .all(|component| matches!(component, Component::Normal(_)));
    if !is_normal {
        let reason = format!(
            "expected an absolute path below the root without \"..\", got {:?}",
            path.display().to_string()
        );
        return Err(Error::bad_spec("linux.cgroupsPath", reason));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests;
