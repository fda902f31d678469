//! The last CNI plugin of the lab's network: changes a pod's network as the pod's annotations ask, so that a
//! test needs no network of its own. containerd executes this program by the name `lab`, with CNI_COMMAND in
//! its environment and the configuration on standard input.
//!
//! | annotation | effect |
//! |---|---|
//! | `lab/mtu` | the MTU of the pod's first interface and of its peer |
//! | `lab/links` | so many more veth pairs, with an address each, the host's ends in the bridge |
//! | `lab/bare-links` | so many more veth pairs without an address |
//! | `lab/fail` | the plugin fails when the pod is added, with this text |
//!
//! Deletes nothing: veth pairs end with the pod's network namespace.
//!
//! By the names `portmap` and `bandwidth` it executes the real plugins, but only for pods that have host ports or
//! rates. For each other pod, too, these would run iptables and tc: 23 processes and threads.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::cri::PLUGINS;

/// The real plugins by whose names this one is called, and what of the configuration they act on.
pub const OPTIONAL: [(&str, &str); 2] = [("portmap", "portMappings"), ("bandwidth", "bandwidth")];

/// Runs the command that the environment names.
pub fn main() -> ExitCode {
    match run() {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!(
                "{}",
                json!({"cniVersion": "1.0.0", "code": 100, "msg": format!("{error:#}")})
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Value> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let command = std::env::var("CNI_COMMAND").context("CNI_COMMAND")?;
    if let Some((name, acts_on)) = optional_plugin() {
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        return match (command.as_str(), &config["runtimeConfig"][acts_on]) {
            ("ADD", wanted) if is_empty(wanted) => Ok(config["prevResult"].clone()),
            ("DEL" | "CHECK", wanted) if is_empty(wanted) => Ok(json!({})),
            _ => execute(name, &text),
        };
    }
    match command.as_str() {
        "VERSION" => Ok(json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]})),
        "ADD" => {
            let config: Value = serde_json::from_str(&text).context("the configuration")?;
            add(&config)?;
            Ok(config["prevResult"].clone())
        }
        _ => Ok(json!({})),
    }
}

/// The real plugin that this program is to be, by its name.
fn optional_plugin() -> Option<(&'static str, &'static str)> {
    let program = std::env::args_os().next()?;
    let called = Path::new(&program).file_name()?;
    OPTIONAL.into_iter().find(|(name, _)| called == *name)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Runs the real plugin `name` with `config` on its standard input; returns what it prints.
fn execute(name: &str, config: &str) -> Result<Value> {
    let mut plugin = Command::new(Path::new(PLUGINS).join(name));
    let mut plugin = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = plugin.stdin.take().context("no standard input")?;
    input.write_all(config.as_bytes())?;
    drop(input);
    let output = plugin.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{name}: {printed}");
    }
    // DEL prints nothing.
    Ok(serde_json::from_str(&printed).unwrap_or_else(|_| json!({})))
}

fn add(config: &Value) -> Result<()> {
    let annotations = &config["runtimeConfig"]["io.kubernetes.cri.pod-annotations"];
    if annotations.is_null() {
        return Ok(());
    }
    let annotations: HashMap<String, String> =
        serde_json::from_value(annotations.clone()).context("the pod's annotations")?;
    let namespace = std::env::var("CNI_NETNS").context("CNI_NETNS")?;
    if let Some(mtu) = annotations.get("lab/mtu") {
        let peer = peer(config)?;
        ip(None, &["link", "set", &peer, "mtu", mtu])?;
        ip(Some(&namespace), &["link", "set", "eth0", "mtu", mtu])?;
    }
    let count = |name: &str| -> Result<u8> {
        let given = annotations.get(name).map_or("0", String::as_str);
        given.parse().with_context(|| format!("annotation {name}"))
    };
    for number in 0..count("lab/links")? {
        link(&namespace, &format!("net{number}"), Some(number))?;
    }
    for number in 0..count("lab/bare-links")? {
        link(&namespace, &format!("bare{number}"), None)?;
    }
    match annotations.get("lab/fail") {
        Some(text) => bail!("{text}"),
        None => Ok(()),
    }
}

/// The host's end of the pod's first interface: the bridge plugin lists the bridge, this end, the pod's end.
fn peer(config: &Value) -> Result<String> {
    let interfaces = config["prevResult"]["interfaces"].as_array();
    let found = interfaces
        .into_iter()
        .flatten()
        .filter_map(|interface| interface["name"].as_str())
        .find(|name| name.starts_with("veth"));
    Ok(found.context("the bridge plugin named no veth")?.to_owned())
}

/// Adds the interface `name` to the pod, with the address 10.99.NUMBER.2 if a number is given.
fn link(namespace: &str, name: &str, number: Option<u8>) -> Result<()> {
    let container = std::env::var("CNI_CONTAINERID").context("CNI_CONTAINERID")?;
    let host = format!("{}{name}", container.get(..6).context("a short CNI_CONTAINERID")?);
    ip(
        None,
        &[
            "link", "add", &host, "type", "veth", "peer", "name", name, "netns", namespace,
        ],
    )?;
    ip(None, &["link", "set", &host, "up"])?;
    if let Some(number) = number {
        let address = format!("10.99.{number}.2/24");
        ip(Some(namespace), &["address", "add", &address, "dev", name])?;
    }
    ip(Some(namespace), &["link", "set", name, "up"])
}

/// Runs `ip`, in the network namespace with that path if one is given.
fn ip(namespace: Option<&str>, arguments: &[&str]) -> Result<()> {
    let mut command = match namespace {
        Some(path) => {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net={path}")).arg("ip");
            enter
        }
        None => Command::new("ip"),
    };
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("starting ip")?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
