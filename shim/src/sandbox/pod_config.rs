//! Converts CreateSandbox to the engine's [`PodSpec`]: CRI's configuration of the pod, and its network
//! namespace. What a VM can't give is refused by name. Called by the Sandbox service. Pure.

use std::collections::{BTreeMap, HashMap};

use containerd_shim_protos::protobuf::Message as _;
use nacre_pod::{Error, IdMap, IdRange, PodSpec, SizeHints};

use crate::proto::cri::{
    DNSConfig, IDMapping, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use crate::proto::sandbox::CreateSandboxRequest;

/// The type of CRI's configuration.
const CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// The prefix of systemd's notation of a cgroup, as containerd's CRI writes it for containers.
const SYSTEMD_PREFIX: &str = "cri-containerd";
/// What containerd 2.x sets in a pod by default, in the spec of its pause container: any user may open any port
/// and, unless the pod has a user namespace, send echo requests. Its configuration may turn that off, which a shim
/// is not told.
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    (PING_GROUPS, "0 2147483647"),
];
/// Not set in a pod with a user namespace, which does not have all these groups.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The pod that `request` describes. A client other than CRI may give no configuration.
///
/// # Errors
/// [`Error::Refused`] with the field.
pub fn pod_spec(request: &CreateSandboxRequest, namespace: &str) -> Result<PodSpec, Error> {
    let given = config(request)?;
    let has_defaults = given.is_some();
    let config = given.unwrap_or_default();
    let linux = &config.linux;
    let users = users(&linux.security_context.namespace_options)?;
    let mut defaults = DEFAULT_SYSCTLS.to_vec();
    defaults.retain(|(name, _)| has_defaults && (users.is_none() || *name != PING_GROUPS));
    check_namespaces(&linux.security_context.namespace_options)?;
    let name = Some(&config.metadata)
        .filter(|metadata| metadata.is_some())
        .map(|metadata| format!("{}/{}", metadata.namespace, metadata.name));
    Ok(PodSpec {
        cgroups_path: Some(cgroups_path(&linux.cgroup_parent, namespace, &request.sandbox_id)),
        size: size(&linux.resources),
        cpus: Vec::new(),
        resolv_conf: config.dns_config.as_ref().map(resolv_conf),
        hostname: Some(config.hostname.clone()).filter(|hostname| !hostname.is_empty()),
        network_namespace: Some(request.netns_path.clone())
            .filter(|path| !path.is_empty())
            .map(Into::into),
        users,
        sysctls: sysctls(&defaults, &linux.sysctls),
        name,
        ..PodSpec::of_sandbox_api()
    })
}

/// The `defaults`, as far as `given` does not set them.
fn sysctls(defaults: &[(&str, &str)], given: &HashMap<String, String>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = defaults
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    all.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    all
}

/// CRI's configuration of the pod; None if the client gives none.
fn config(request: &CreateSandboxRequest) -> Result<Option<PodSandboxConfig>, Error> {
    let options = &request.options;
    if options.type_url.is_empty() {
        return Ok(None);
    }
    // With or without a host before it.
    if options.type_url.rsplit('/').next() != Some(CONFIG) {
        let reason = format!("options: expected type {CONFIG}, got {:?}", options.type_url);
        return Err(Error::Refused(reason));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map(Some)
        .map_err(|error| Error::Refused(format!("options: {CONFIG}: {error}")))
}

/// The pod's resolv.conf(5).
fn resolv_conf(dns: &DNSConfig) -> String {
    let search = (!dns.searches.is_empty()).then(|| format!("search {}\n", dns.searches.join(" ")));
    let servers = dns.servers.iter().map(|server| format!("nameserver {server}\n"));
    let options = (!dns.options.is_empty()).then(|| format!("options {}\n", dns.options.join(" ")));
    search.into_iter().chain(servers).chain(options).collect()
}

/// Refuses namespaces of the host.
fn check_namespaces(options: &NamespaceOption) -> Result<(), Error> {
    for (name, mode) in [
        ("network", options.network),
        ("pid", options.pid),
        ("ipc", options.ipc),
    ] {
        if mode.enum_value() == Ok(NamespaceMode::NODE) {
            return Err(Error::Refused(format!(
                "linux.security_context.namespace_options.{name}: NODE: the host's {name} namespace can't be \
                 shared with a guest"
            )));
        }
    }
    Ok(())
}

/// The id map of the pod's user namespace, if it has one.
fn users(options: &NamespaceOption) -> Result<Option<IdMap>, Error> {
    let Some(users) = options.userns_options.as_ref() else {
        return Ok(None);
    };
    let refused = |reason: &str| {
        let field = "linux.security_context.namespace_options.userns_options";
        Err(Error::Refused(format!("{field}: {reason}")))
    };
    let range = |mapping: &IDMapping| IdRange {
        container: mapping.container_id,
        host: mapping.host_id,
        size: mapping.length,
    };
    match users.mode.enum_value() {
        Ok(NamespaceMode::NODE) => Ok(None),
        Ok(NamespaceMode::POD) if users.uids.is_empty() || users.gids.is_empty() => {
            refused("a user namespace needs uids and gids")
        }
        Ok(NamespaceMode::POD) => Ok(Some(IdMap {
            uids: users.uids.iter().map(range).collect(),
            gids: users.gids.iter().map(range).collect(),
        })),
        Ok(NamespaceMode::CONTAINER | NamespaceMode::TARGET) | Err(_) => refused("expected mode POD or NODE"),
    }
}

/// The pod's cgroup in the notation of `linux.cgroupsPath`, as containerd's CRI writes it for containers.
fn cgroups_path(parent: &str, namespace: &str, id: &str) -> String {
    let last = parent.rsplit('/').next().unwrap_or_default();
    if last.ends_with(".slice") {
        return format!("{last}:{SYSTEMD_PREFIX}:{id}");
    }
    if parent.is_empty() {
        return format!("/{namespace}/{id}");
    }
    format!("{}/{id}", parent.trim_end_matches('/'))
}

/// The limits of the pod's containers together. The VM's own share (`linux.overhead`) is not part of the
/// guest's memory, but of the limits of the pod's cgroup, which kubelet sets.
fn size(resources: &LinuxContainerResources) -> SizeHints {
    SizeHints::of_cri(
        resources.memory_limit_in_bytes,
        resources.cpu_quota,
        resources.cpu_period,
    )
}

#[cfg(test)]
mod tests;
