//! Tests of pods that continue from a template instead of booting: when they do, when they don't, and that each
//! is a machine of its own.

mod clones;
mod poisoned;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, remove_detached};
use nacre_tests::installation::{Config, TEMPLATES_OFF};
use nacre_tests::templates::{Appears, NONE_YET, directory};
use serde_json::Value;

use crate::operator::nacre;
use crate::{Test, core, long, test};

pub const TESTS: &[Test] = &[
    core("pods from one template are machines of their own", || {
        clones::differ(6)
    }),
    long("200 pods from one template are machines of their own", || {
        clones::differ(200)
    }),
    test(
        "the first pod of a kind has a template made, from which the next one continues",
        first_of_a_kind,
    ),
    test("a template that can't be used is made again", made_again),
    test(
        "whatever is in a template's place, the pod starts",
        poisoned::ways,
    ),
    test(
        "a template that is removed stays with the pods that use it",
        poisoned::removed_in_use,
    ),
    test("a full disk leaves no template and a reason", poisoned::full_disk),
    test("a template does not grow while its pods use memory", no_growth),
    test(
        "what guests only read is in huge pages of the template",
        huge_pages,
    ),
    test("no pod uses a template if they are off", off),
];

/// A detached pod, which is removed on [`Pod::remove`].
struct Pod(String);

impl Pod {
    fn start(word: &str) -> Result<Self> {
        let id = fresh_id(word);
        let run = Run {
            command: &["sh", "-c", "sleep 1000"],
            ..Run::default()
        };
        run.detach(&id)?;
        Ok(Self(id))
    }

    /// Where its guest came from.
    fn origin(&self) -> Result<String> {
        origin_of(&self.0)
    }

    fn remove(self) -> Result<()> {
        remove_detached(&self.0)
    }
}

/// Where the guest of the pod `id` came from.
pub fn origin_of(id: &str) -> Result<String> {
    let inspected: Value = serde_json::from_str(&nacre(&["inspect", "--json", id])?)?;
    let origin = inspected["timeline"]["origin"].as_str();
    Ok(origin.context("no origin in the timeline")?.to_owned())
}

/// The origin of a pod that has come and gone.
fn origin_of_one(word: &str) -> Result<String> {
    let pod = Pod::start(word)?;
    let origin = pod.origin();
    pod.remove()?;
    origin
}

/// A configuration whose pods are a kind of their own, with room for their template: those of other tests are removed.
fn own_kind(memory_mib: u32) -> Result<Config> {
    for entry in fs::read_dir(directory())? {
        let path = entry?.path();
        if path.extension().is_none() {
            fs::remove_dir_all(path)?;
        }
    }
    Config::with(&format!("memory_mib = {memory_mib}\n"))
}

fn first_of_a_kind() -> Result<()> {
    let config = own_kind(320)?;
    let appears = Appears::watch()?;
    let first = Pod::start("template-first")?;
    let template = appears.wait();
    let origin = first.origin();
    first.remove()?;
    let (origin, template) = (origin?, template?);
    ensure!(origin == NONE_YET, "{origin}");
    let next = origin_of_one("template-next");
    drop(config);
    fs::remove_dir_all(&template)?;
    let key = template.file_name().unwrap_or_default().to_string_lossy();
    let next = next?;
    ensure!(next == format!("template {key}"), "{next}, not {key}");
    Ok(())
}

/// The key of the template with `memory_mib`.
fn key_of(memory_mib: u32) -> Result<String> {
    let list: Value = serde_json::from_str(&nacre(&["template", "list", "--json"])?)?;
    let mut entries = list.as_array().into_iter().flatten();
    let entry = entries.find(|entry| entry["kind"]["memory_mib"] == memory_mib);
    let key = entry.and_then(|entry| entry["key"].as_str());
    Ok(key.context("the template is not listed")?.to_owned())
}

fn made_again() -> Result<()> {
    let config = own_kind(336)?;
    nacre(&["template", "build"])?;
    let key = key_of(336)?;
    let appears = Appears::watch()?;
    fs::write(directory().join(&key).join("state"), "damaged")?;
    let origin = origin_of_one("template-damaged")?;
    let next = Pod::start("template-none")?;
    let template = appears.wait();
    let boots = next.origin();
    next.remove()?;
    let (boots, template) = (boots?, template?);
    let next = origin_of_one("template-again");
    drop(config);
    fs::remove_dir_all(&template)?;
    ensure!(
        origin.starts_with(&format!("boot: template {key} can't be used: ")) && origin.contains("state"),
        "{origin}"
    );
    ensure!(boots == NONE_YET, "{boots}");
    let next = next?;
    ensure!(next == format!("template {key}"), "{next}");
    Ok(())
}

fn off() -> Result<()> {
    let _config = Config::with(TEMPLATES_OFF)?;
    let origin = origin_of_one("template-off")?;
    ensure!(origin == "boot: templates are off in config.toml", "{origin}");
    Ok(())
}

/// The host memory that the template `key` takes, bytes.
fn bytes_of(key: &str) -> Result<u64> {
    let list: Value = serde_json::from_str(&nacre(&["template", "list", "--json"])?)?;
    let mut entries = list.as_array().into_iter().flatten();
    let entry = entries.find(|entry| entry["key"] == key);
    entry
        .and_then(|entry| entry["bytes"].as_u64())
        .with_context(|| format!("{key} is not in {list}"))
}

fn no_growth() -> Result<()> {
    nacre(&["template", "build"])?;
    let pod = Pod::start("template-memory")?;
    let grown = || -> Result<(u64, u64)> {
        let origin = pod.origin()?;
        let key = origin.strip_prefix("template ").context(origin.clone())?;
        let before = bytes_of(key)?;
        let script = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=48 2>&1";
        ctr(["task", "exec", "--exec-id", "fill", &pod.0, "sh", "-c", script])?.success()?;
        Ok((before, bytes_of(key)?))
    };
    let grown = grown();
    pod.remove()?;
    let (before, after) = grown?;
    // Small holes are mapped from the file.
    ensure!(after < before + (4 << 20), "{before} bytes before, {after} after");
    Ok(())
}

/// Most page faults of a guest from a template until its agent is ready: 360 in the lab, and 970 before a template had
/// huge pages and a rehearsal.
const MOST_FAULTS: u64 = 650;

/// A template has some, and a guest that continues from it takes few page faults: its kernel's text is 4 of them.
fn huge_pages() -> Result<()> {
    nacre(&["template", "build"])?;
    let host = fs::read_to_string("/proc/meminfo")?;
    let pod = Pod::start("template-huge")?;
    let inspected = nacre(&["inspect", "--json", &pod.0]);
    let origin = pod.origin();
    pod.remove()?;
    let (inspected, origin): (Value, _) = (serde_json::from_str(&inspected?)?, origin?);
    ensure!(origin.starts_with("template "), "{origin}");
    let line = host.lines().find(|line| line.starts_with("ShmemHugePages:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let kib = kib.context("no ShmemHugePages in /proc/meminfo")?;
    ensure!(kib >= 4 * 2048, "{kib} KiB of huge pages in files");
    let faults = inspected["timeline"]["boot_exits"]["kvm pf_taken"].as_u64();
    let faults = faults.context("no count of page faults")?;
    ensure!(
        faults <= MOST_FAULTS,
        "{faults} page faults until the agent was ready"
    );
    Ok(())
}
