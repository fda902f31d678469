//! A container's OCI spec as the shim sends it, checked and completed for the guest: a pure function from bytes to
//! [`Prepared`]. Called by container creation; never looks at the system.

mod id_map;
mod library;
mod mounts;
mod namespaces;

use std::path::{Component, Path, PathBuf};

use nacre_protocol::spec::{sift, sift_process, sift_update};
use oci_spec::runtime::{Capabilities, Linux, LinuxCapabilities, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cgroup::limits::{self, Setting};
use crate::devices;
use crate::error::Error;
use crate::terminal::Terminal;

pub use id_map::outside_uid;
pub use mounts::{Later, clean};
pub use namespaces::{Names, has_namespace, resolve};

/// A spec that can be run.
#[derive(Debug)]
pub struct Prepared {
    /// What libcontainer is to get.
    pub spec: Spec,
    /// The container's cgroup, absolute.
    pub cgroup: PathBuf,
    /// The device program of the cgroup; none where all is allowed.
    pub devices: Vec<u64>,
    /// The limits of its cgroup, which can all be said in files.
    pub limits: Vec<Setting>,
    /// Owner of the standard streams, as the guest numbers users.
    pub uid: u32,
    /// The process's terminal, where it wants one.
    pub terminal: Option<Terminal>,
    /// The spec names no HOME: the one it has now stands for what the container's /etc/passwd says.
    pub find_home: bool,
    /// The container gets a network of its own, in which the loopback device is down.
    pub new_network: bool,
    /// Names for a UTS namespace that is another container's.
    pub names: Names,
    /// What is to be done with its mounts once they are made.
    pub mounts: Vec<Later>,
    /// What of it has no effect: each a path and the reason.
    pub ignored: Vec<String>,
}

/// Whether `id` can be a directory's name and part of libcontainer's state.
pub fn check_id(id: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(Error::BadId {
            id: id.chars().take(128).collect(),
        });
    }
    Ok(())
}

/// Checks the spec of container `id` and fills in what the guest decides.
pub fn prepare(id: &str, json: &[u8]) -> Result<Prepared, Error> {
    let mut value: Value = parse("config.json", json)?;
    let findings = sift(&mut value);
    if !findings.refused.is_empty() {
        return Err(Error::Refused(findings.refusals()));
    }
    library::translate(&mut value);
    let mut spec: Spec = from_value("config.json", value)?;
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    if !root.path().is_absolute() {
        return Err(Error::bad_spec("root.path", "is not absolute"));
    }
    check_hooks(&spec)?;
    let mut process = spec.process().clone().ok_or_else(|| missing("process"))?;
    let find_home = complete_process(&mut process);
    let uid = outside_uid(&spec, process.user().uid());
    let terminal = Terminal::wanted(&process).map(|terminal| Terminal { uid, ..terminal });
    spec.set_process(Some(process));

    let mut linux = spec.linux().clone().ok_or_else(|| missing("linux"))?;
    // libcontainer gets none of them: it drops some and mistakes others.
    let resources = linux.resources().clone().unwrap_or_default();
    linux.set_resources(None);
    let devices = devices::program(resources.devices().as_deref().unwrap_or_default())?;
    let limits = limits::settings(&resources)?;
    check_devices(&linux)?;
    let cgroup = cgroup_path(id, linux.cgroups_path().as_deref())?;
    linux.set_cgroups_path(Some(cgroup.clone()));
    let namespaces = namespaces::prepare(&linux)?;
    let names = namespaces.names(&spec);
    linux.set_namespaces(Some(namespaces.all));
    let mounts = mounts::prepare(&mut spec, &mut linux);
    spec.set_linux(Some(linux));
    Ok(Prepared {
        spec,
        cgroup,
        devices,
        limits,
        uid,
        terminal,
        find_home,
        new_network: namespaces.new_network,
        names,
        mounts,
        ignored: Vec::new(),
    })
}

/// The process that an exec is to be.
pub fn parse_process(json: &[u8]) -> Result<Process, Error> {
    let mut value: Value = parse("process", json)?;
    let findings = sift_process(&mut value);
    if !findings.refused.is_empty() {
        return Err(Error::Refused(findings.refusals()));
    }
    library::translate_process(&mut value);
    from_value("process", value)
}

/// The limits that a container is to get while it lives.
pub fn parse_update(json: &[u8]) -> Result<Vec<Setting>, Error> {
    let mut value: Value = parse("linux.resources", json)?;
    let findings = sift_update(&mut value);
    if !findings.refused.is_empty() {
        return Err(Error::Refused(findings.refusals()));
    }
    library::translate_resources(&mut value);
    limits::settings(&from_value("linux.resources", value)?)
}

fn parse(field: &'static str, json: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(json).map_err(|error| Error::bad_spec(field, error.to_string()))
}

fn from_value<T: DeserializeOwned>(field: &'static str, value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::bad_spec(field, error.to_string()))
}

fn missing(field: &'static str) -> Error {
    Error::bad_spec(field, "is missing")
}

/// The host runs its hooks itself; startContainer's are programs of the container.
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
        Some((field, _)) => Err(Error::bad_spec(field, "is not for a guest")),
        None => Ok(()),
    }
}

fn check_devices(linux: &Linux) -> Result<(), Error> {
    let outside = |path: &Path| !path.starts_with("/dev") || path == Path::new("/dev");
    match linux
        .devices()
        .iter()
        .flatten()
        .find(|device| outside(device.path()))
    {
        Some(device) => Err(Error::bad_spec(
            "linux.devices",
            format!("{:?} is not below /dev", device.path()),
        )),
        None => Ok(()),
    }
}

/// Fills in what the guest decides; whether HOME is a placeholder now.
pub fn complete_process(process: &mut Process) -> bool {
    if process.no_new_privileges() == Some(false) {
        // libcontainer takes "no" for a decision to load the seccomp filter late, when that is no longer allowed.
        process.set_no_new_privileges(None);
    }
    // Those that are not named are none; libcontainer would leave the agent's.
    process.set_capabilities(Some(whole(process.capabilities().as_ref())));
    let mut environment = process.env().clone().unwrap_or_default();
    let home = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("HOME="));
    let find_home = home.is_none_or(str::is_empty);
    if find_home {
        // Else libcontainer would ask the C library, which may load code from the container.
        environment.push("HOME=/".to_owned());
    }
    process.set_env(Some(environment));
    find_home
}

/// All five sets.
fn whole(named: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(named.and_then(|named| of(named).clone()).unwrap_or_default())
    };
    // The library's default is some of them.
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding));
    all.set_effective(set(LinuxCapabilities::effective));
    all.set_inheritable(set(LinuxCapabilities::inheritable));
    all.set_permitted(set(LinuxCapabilities::permitted));
    all.set_ambient(set(LinuxCapabilities::ambient));
    all
}

fn cgroup_path(id: &str, wanted: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(path) = wanted.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("/").join(id));
    };
    let mut components = path.components();
    let plain = components.next() == Some(Component::RootDir)
        && components.next().is_some()
        && path
            .components()
            .skip(1)
            .all(|component| matches!(component, Component::Normal(_)));
    if !plain {
        let reason = format!("{} is no absolute path below the root", path.display());
        return Err(Error::BadSpec {
            field: "linux.cgroupsPath",
            reason,
        });
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests;
