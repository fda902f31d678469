//! What a lab with `--cri` has in addition: containerd's CRI plugin with a handler per runtime, and a CNI
//! network. Called by `containerd` before it starts containerd. The differences between the configurations of
//! containerd's versions are here and nowhere else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use super::cni;
use super::containerd::DIRECTORY;
use super::run_quietly;

/// Where the package containernetworking-plugins installs its programs.
pub const PLUGINS: &str = "/usr/lib/cni";

/// The image without a process of its own; `tests/lab/prepare` makes it.
const PAUSE_IMAGE: &str = "localhost/pause:lab";

/// Kernel parameters of pods' network namespaces, which inherit them from this one. Without duplicate address
/// detection an IPv6 address is usable at once; with it each pod would wait for one to two seconds.
const KERNEL_PARAMETERS: [(&str, &str); 5] = [
    ("net/core/devconf_inherit_init_net", "1"),
    ("net/ipv6/conf/all/dad_transmits", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// containerd's configuration for `version`, with the plugins `unused` disabled.
pub fn configuration(version: &str, unused: &str) -> String {
    let first = version.starts_with("1.");
    let (format, cri) = match first {
        true => (2, "io.containerd.grpc.v1.cri"),
        false => (3, "io.containerd.cri.v1.runtime"),
    };
    let mut text = format!("version = {format}\ndisabled_plugins = [{unused}]\n");
    if first {
        text.push_str(&format!(
            "[plugins.\"{cri}\"]\n  sandbox_image = \"{PAUSE_IMAGE}\"\n  enable_unprivileged_ports = true\n"
        ));
    } else {
        let images = "io.containerd.cri.v1.images";
        text.push_str(&format!(
            "[plugins.\"{images}\"]\n  snapshotter = \"overlayfs\"\n\
             [plugins.\"{images}\".pinned_images]\n  sandbox = \"{PAUSE_IMAGE}\"\n"
        ));
    }
    let programs = match first {
        true => format!("bin_dir = \"{DIRECTORY}/cni-bin\""),
        false => format!("bin_dirs = [\"{DIRECTORY}/cni-bin\"]"),
    };
    text.push_str(&format!(
        "[plugins.\"{cri}\".cni]\n  {programs}\n  conf_dir = \"{DIRECTORY}/cni\"\n\
         [plugins.\"{cri}\".containerd]\n  default_runtime_name = \"runc\"\n"
    ));
    if first {
        text.push_str("  snapshotter = \"overlayfs\"\n");
    }
    for name in ["runc", "nacre"] {
        text.push_str(&handler(cri, name, &format!("io.containerd.{name}.v2"), ""));
    }
    if !first {
        let sandboxer = "  sandboxer = \"shim\"\n";
        text.push_str(&handler(
            cri,
            "nacre-sandbox",
            "io.containerd.nacre.v2",
            sandboxer,
        ));
    }
    text
}

/// A runtime handler. A privileged container gets no devices of the host: under nacre those of the guest.
fn handler(cri: &str, name: &str, runtime: &str, more: &str) -> String {
    format!(
        "[plugins.\"{cri}\".containerd.runtimes.{name}]\n  runtime_type = \"{runtime}\"\n  \
         privileged_without_host_devices = true\n{more}"
    )
}

/// Prepares the network of pods: the directory of plugins, the network's configuration, kernel parameters.
pub fn network() -> Result<()> {
    ensure!(
        Path::new(PLUGINS).join("bridge").exists(),
        "{PLUGINS} has no plugin `bridge`; run: make setup"
    );
    let directory = Path::new(DIRECTORY);
    let programs = directory.join("cni-bin");
    fs::create_dir_all(&programs)?;
    for entry in fs::read_dir(PLUGINS)? {
        let entry = entry?;
        if !cni::OPTIONAL.iter().any(|(name, _)| entry.file_name() == *name) {
            symlink(entry.path(), programs.join(entry.file_name()))?;
        }
    }
    let this = std::env::current_exe()?;
    for name in ["lab"].into_iter().chain(cni::OPTIONAL.map(|(name, _)| name)) {
        symlink(&this, programs.join(name))?;
    }
    let networks = directory.join("cni");
    fs::create_dir_all(&networks)?;
    let file = networks.join("10-lab.conflist");
    fs::write(&file, network_list().to_string()).with_context(|| format!("writing {}", file.display()))?;
    for (name, value) in KERNEL_PARAMETERS {
        let file = PathBuf::from("/proc/sys").join(name);
        fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
    }
    hosts()?;
    run_quietly("ip", &["link", "set", "lo", "up"]).context("package iproute2")
}

/// Gives this run a hosts file of its own in which localhost has both families: containerd resolves it for
/// port-forward.
fn hosts() -> Result<()> {
    let file = Path::new(DIRECTORY).join("hosts");
    let text = fs::read_to_string("/etc/hosts").context("reading /etc/hosts")?;
    fs::write(&file, format!("{text}\n::1 localhost\n"))?;
    mount(
        Some(&file),
        "/etc/hosts",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context("binding the run's hosts file to /etc/hosts")
}

/// One bridge with IPv4 and IPv6 addresses, host ports, rates, and the lab's own plugin for what single pods
/// ask for. The host is the pods' gateway; nothing beyond it is reached, so no addresses are translated.
fn network_list() -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": format!("{DIRECTORY}/addresses"),
                    "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            {"type": "lab", "capabilities": {"io.kubernetes.cri.pod-annotations": true}},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_names_of_plugins_and_one_handler_per_runtime() {
        for (version, format, handlers) in [("1.6", 2, 2), ("1.7", 2, 2), ("2.1", 3, 3), ("2.4", 3, 3)] {
            let text = configuration(version, "");
            assert!(text.starts_with(&format!("version = {format}\n")), "{text}");
            assert_eq!(text.matches("runtime_type = ").count(), handlers, "{version}");
            assert_eq!(text.matches(PAUSE_IMAGE).count(), 1, "{version}");
        }
    }
}
