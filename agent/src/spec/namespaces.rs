//! The container's namespaces in the guest.

use std::path::PathBuf;

use nacre_protocol::guest::NAMESPACE_OF;
use oci_spec::OciSpecError;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType as Kind, Spec};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::error::Error;

const FIELD: &str = "linux.namespaces";

/// Namespaces as libcontainer is to make them, but for those of other containers.
pub struct Namespaces {
    /// All of them.
    pub all: Vec<LinuxNamespace>,
    /// A new network is among them.
    pub new_network: bool,
}

/// Names for a UTS namespace that has others already, which libcontainer leaves alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The host's name.
    pub host: Option<String>,
    /// The domain's name.
    pub domain: Option<String>,
}

/// Whether a container has a namespace of this kind that is not the guest's own.
pub fn has_namespace(spec: &Spec, kind: Kind) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|namespaces| namespaces.iter().any(|one| one.typ() == kind))
}

/// What `linux` asks for, completed.
///
/// The guest's network is the pod's: a container that is to have a new one gets that, which is as much its own, and
/// costs nothing to make. Only settings of a network need one that they can be applied to, and so does a container with
/// users of its own, which could not mount /sys else.
pub fn prepare(linux: &Linux) -> Result<Namespaces, Error> {
    let mut all = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut all {
        let path = namespace.path().clone().unwrap_or_default();
        if path.as_os_str().is_empty() {
            namespace.set_path(None);
        } else if other(namespace).is_none() {
            return Err(Error::bad_spec(
                FIELD,
                format!("{} is no namespace of a container", path.display()),
            ));
        }
    }
    let is_new = |kind: Kind| move |one: &LinuxNamespace| one.typ() == kind && one.path().is_none();
    let has_settings = linux.sysctl().as_ref().is_some_and(|settings| {
        settings
            .keys()
            .any(|key| key.starts_with("net.") || key.starts_with("net/"))
    });
    if !has_settings && !all.iter().any(is_new(Kind::User)) {
        all.retain(|one| !is_new(Kind::Network)(one));
    }
    if !all.iter().any(|one| one.typ() == Kind::Cgroup) {
        // Without one, a container's cgroup mount would show the guest's whole tree.
        let cgroup = LinuxNamespaceBuilder::default().typ(Kind::Cgroup).build();
        all.push(cgroup.map_err(|error: OciSpecError| Error::bad_spec(FIELD, error.to_string()))?);
    }
    let new_network = all.iter().any(is_new(Kind::Network));
    Ok(Namespaces { all, new_network })
}

impl Namespaces {
    /// The names of `spec` that a UTS namespace of another container is to get.
    pub fn names(&self, spec: &Spec) -> Names {
        if self
            .all
            .iter()
            .any(|one| one.typ() == Kind::Uts && one.path().is_some())
        {
            let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
            Names {
                host: given(spec.hostname()),
                domain: given(spec.domainname()),
            }
        } else {
            Names::default()
        }
    }
}

/// The container whose namespace this is.
fn other(namespace: &LinuxNamespace) -> Option<&str> {
    namespace.path().as_ref()?.to_str()?.strip_prefix(NAMESPACE_OF)
}

/// Gives the namespaces of other containers their paths, by `init_of`, which finds a container's first process.
pub fn resolve(spec: &mut Spec, init_of: impl Fn(&str) -> Result<Pid, Error>) -> Result<(), Error> {
    let namespaces = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if let Some(id) = other(namespace) {
            let pid = init_of(id)?.as_raw_nonzero();
            let path = format!("/proc/{pid}/ns/{}", file(namespace.typ()));
            namespace.set_path(Some(PathBuf::from(path)));
        }
    }
    Ok(())
}

/// Its name in /proc/<pid>/ns.
fn file(kind: Kind) -> &'static str {
    match kind {
        Kind::Mount => "mnt",
        Kind::Cgroup => "cgroup",
        Kind::Uts => "uts",
        Kind::Ipc => "ipc",
        Kind::User => "user",
        Kind::Pid => "pid",
        Kind::Network => "net",
        Kind::Time => "time",
    }
}
