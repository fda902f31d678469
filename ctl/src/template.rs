//! `nacre template`: lists the templates on this host, makes that of a pod without limits, and removes those that
//! no pod can use. The engine's own functions do the work (`pod/src/template/`).

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use nacre_pod::template::maker::{self, Made};
use nacre_pod::template::{Entry, Kind, Store};
use nacre_protocol::config;
use serde_json::json;

use crate::text::{age, bytes, mib, table};

/// Subcommands of `nacre template`.
#[derive(Subcommand)]
pub enum Command {
    /// List the templates on this host.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make the template of a pod without limits, as its first start would.
    ///
    /// Most other pods continue from it, too. Those that need less memory have smaller ones, which their first starts
    /// make.
    Build,
    /// Remove the templates that no pod can use: a file of the installation was replaced since. Pods do this,
    /// too, whenever one makes a template.
    Gc,
}

/// Runs `command` on the templates below the state directory `root`; returns what to print.
///
/// # Errors
/// If a file can't be read or removed, or the template can't be made.
pub fn run(root: &Path, command: &Command) -> Result<String> {
    let store = Store::at(root);
    match command {
        Command::List { json } => list(&store, *json),
        Command::Build => build(&store),
        Command::Gc => {
            let removed = store.collect()?.removed;
            Ok(match removed.len() {
                0 => "nothing to remove\n".to_owned(),
                _ => format!("removed {}\n", removed.join(", ")),
            })
        }
    }
}

fn build(store: &Store) -> Result<String> {
    let config = config::load().context("reading config.toml")?;
    let kind = Kind::usual(&config)?;
    let key = kind.key()?;
    let begun = Instant::now();
    let made = maker::make(store, &kind, config.boot_deadline);
    let made = made.with_context(|| format!("making template {key}"))?;
    let note = if config.templates {
        ""
    } else {
        "\nnote: templates = false in config.toml, so no pod uses it"
    };
    Ok(match made {
        Made::Now => format!(
            "made template {key} in {} ms{note}\n",
            begun.elapsed().as_millis()
        ),
        Made::Before => format!("template {key} exists{note}\n"),
        Made::Elsewhere => format!("another process is making template {key}{note}\n"),
    })
}

fn list(store: &Store, json: bool) -> Result<String> {
    let entries = store.list()?;
    if json {
        let entries: Vec<_> = entries.iter().map(entry_json).collect();
        return Ok(format!("{:#}\n", json!(entries)));
    }
    if entries.is_empty() {
        return Ok(
            "no templates: the first start of a pod makes one, or `nacre template build`\n".to_owned(),
        );
    }
    let header = [
        "TEMPLATE",
        "MEMORY",
        "VCPUS",
        "PARAMETERS",
        "STATE",
        "SIZE",
        "USED",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(row));
    Ok(table(&rows))
}

/// Whether a pod can use it.
fn state(entry: &Entry) -> &'static str {
    match &entry.kind {
        Some(kind) if kind.is_current() => "current",
        Some(_) => "stale",
        None => "unreadable",
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let of = |show: &dyn Fn(&Kind) -> String| entry.kind.as_ref().map_or("-".to_owned(), show);
    let used = entry.used.elapsed().unwrap_or_default().as_secs();
    vec![
        entry.key.clone(),
        of(&|kind| mib(kind.memory_mib)),
        of(&|kind| format!("{} of {}", kind.vcpus, kind.max_vcpus)),
        of(&|kind| match kind.kernel_params.as_str() {
            "" => "-".to_owned(),
            parameters => crate::text::printable(parameters),
        }),
        state(entry).to_owned(),
        bytes(entry.bytes),
        format!("{} ago", age(used)),
    ]
}

fn entry_json(entry: &Entry) -> serde_json::Value {
    json!({
        "key": entry.key,
        "state": state(entry),
        "bytes": entry.bytes,
        "unused_seconds": entry.used.elapsed().unwrap_or_default().as_secs(),
        "kind": entry.kind,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn templates_are_listed_and_collected() {
        let root = tempfile::tempdir().unwrap();
        let list = |json| run(root.path(), &Command::List { json }).unwrap();
        assert!(list(false).starts_with("no templates"));
        assert_eq!(run(root.path(), &Command::Gc).unwrap(), "nothing to remove\n");
        let directory = root.path().join("templates/0123456789abcdef");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory"), [1; 8192]).unwrap();
        assert!(list(false).starts_with("no templates"), "half of one");
        fs::write(directory.join("state"), "").unwrap();
        let text = list(false);
        assert!(
            text.contains("0123456789abcdef") && text.contains("unreadable"),
            "{text}"
        );
        let value: serde_json::Value = serde_json::from_str(&list(true)).unwrap();
        assert_eq!(value[0]["state"], "unreadable");
        assert!(value[0]["bytes"].as_u64().unwrap() >= 8192, "{value}");
        let removed = run(root.path(), &Command::Gc).unwrap();
        assert_eq!(removed, "removed 0123456789abcdef\n");
        assert!(list(false).starts_with("no templates"));
    }
}
