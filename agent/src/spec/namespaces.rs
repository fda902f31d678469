//! The namespaces of a container in the guest: which are created, which are joined, which are the guest's
//! own.

use std::path::{Path, PathBuf};

use nacre_protocol::guest::{NAMESPACE_OF, POD_NAMESPACE};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType as Kind, Spec};

use crate::error::Error;

const FIELD: &str = "linux.namespaces";

/// The namespaces of a container. Those of other containers still have a path "container:ID".
pub struct Namespaces {
    /// All namespaces that the container creates or joins.
    pub all: Vec<LinuxNamespace>,
}

/// Names to set in a UTS namespace that the container shares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UtsNames {
    /// The host name.
    pub host: Option<String>,
    /// The NIS domain name.
    pub domain: Option<String>,
}

/// Whether a container has a namespace of this kind other than the guest's initial one.
pub fn has_namespace(spec: &Spec, kind: Kind) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|namespaces| namespaces.iter().any(|namespace| namespace.typ() == kind))
}

/// The namespaces of `linux`, with a mount and a cgroup namespace in any case.
///
/// The guest's initial namespaces are the pod's: a container shares those of the types that it does not list.
pub fn prepare(linux: &Linux) -> Result<Namespaces, Error> {
    let mut all = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut all {
        let path = namespace.path().clone().unwrap_or_default();
        if path.as_os_str().is_empty() {
            namespace.set_path(None);
        } else if path != Path::new(POD_NAMESPACE) && other_container(namespace).is_none() {
            return Err(Error::bad_spec(
                FIELD,
                format!(
                    "expected a path {NAMESPACE_OF}ID or {POD_NAMESPACE}, got {:?}",
                    path.display().to_string()
                ),
            ));
        }
    }
    // Without them, a container's mounts would be the guest's, and its cgroup mount would show all cgroups.
    for kind in [Kind::Mount, Kind::Cgroup] {
        if !all.iter().any(|namespace| namespace.typ() == kind) {
            let own = LinuxNamespaceBuilder::default().typ(kind).build();
            all.push(own.map_err(|error: OciSpecError| Error::bad_spec(FIELD, error.to_string()))?);
        }
    }
    Ok(Namespaces { all })
}

impl Namespaces {
    /// Takes the names from `spec` that are to be set in a UTS namespace that the container shares: the
    /// guest's or another container's.
    pub fn take_uts_names(&self, spec: &mut Spec) -> UtsNames {
        let is_new = |namespace: &LinuxNamespace| namespace.typ() == Kind::Uts && namespace.path().is_none();
        if self.all.iter().any(is_new) {
            return UtsNames::default();
        }
        let not_empty = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let names = UtsNames {
            host: not_empty(spec.hostname()),
            domain: not_empty(spec.domainname()),
        };
        spec.set_hostname(None).set_domainname(None);
        names
    }
}

/// The id of the container whose namespace this is.
fn other_container(namespace: &LinuxNamespace) -> Option<&str> {
    namespace.path().as_ref()?.to_str()?.strip_prefix(NAMESPACE_OF)
}

/// Replaces the paths of other containers' namespaces, and of the pod's. `directory_of` returns the directory
/// with the namespaces of a container's init, as /proc/PID/ns; without a container, with those of the pod's
/// own init.
pub fn resolve_namespaces(
    spec: &mut Spec,
    directory_of: impl Fn(Option<&str>) -> Result<PathBuf, Error>,
) -> Result<(), Error> {
    let namespaces = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.path().is_none() {
            continue;
        }
        let directory = directory_of(other_container(namespace))?;
        namespace.set_path(Some(directory.join(proc_name(namespace.typ()))));
    }
    Ok(())
}

/// The name in `/proc/<pid>/ns` of a namespace of this kind.
fn proc_name(kind: Kind) -> &'static str {
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
