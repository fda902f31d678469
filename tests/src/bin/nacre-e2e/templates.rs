//! Tests of pods that continue from a template instead of booting: when they do, when they don't, and that each
//! is a machine of its own.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, remove_detached};
use nacre_tests::installation::Config;
use nacre_tests::templates::{Appears, NONE_YET, directory};
use serde_json::Value;

use crate::operator::nacre;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("pods from one template are machines of their own", own_machines),
    test(
        "the first pod of a kind has a template made, from which the next one continues",
        first_of_a_kind,
    ),
    test("a template that can't be used is made again", made_again),
    test("a template does not grow while its pods use memory", no_growth),
    test("no pod uses a template if they are off", off),
];

/// Prints what must differ between two pods, a line each: two random numbers of the kernel, and its id of the boot.
const IDENTITY: &str = "head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid \
    /proc/sys/kernel/random/boot_id; sleep 1000";

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
        let inspected: Value = serde_json::from_str(&nacre(&["inspect", "--json", &self.0])?)?;
        let origin = inspected["timeline"]["origin"].as_str();
        Ok(origin.context("no origin in the timeline")?.to_owned())
    }

    fn remove(self) -> Result<()> {
        remove_detached(&self.0)
    }
}

/// The origin of a pod that has come and gone.
fn origin_of_one(word: &str) -> Result<String> {
    let pod = Pod::start(word)?;
    let origin = pod.origin();
    pod.remove()?;
    origin
}

fn own_machines() -> Result<()> {
    // The lab makes only that of pods without limits and configuration.
    nacre(&["template", "build"])?;
    let mut outputs = Vec::new();
    let mut pods = Vec::new();
    for word in ["clone-a", "clone-b"] {
        let id = fresh_id(word);
        let run = Run {
            command: &["sh", "-c", IDENTITY],
            ..Run::default()
        };
        let mut pod = run.spawn(&id)?;
        let lines: Vec<String> = (0..3).map(|_| pod.line()).collect::<Result<_>>()?;
        let origin = Pod(id).origin()?;
        ensure!(origin.starts_with("template "), "{origin}");
        outputs.push(lines);
        pods.push(pod);
    }
    for pod in pods {
        pod.kill("KILL")?;
        pod.wait_with_output()?;
    }
    let [one, other] = &outputs[..] else {
        anyhow::bail!("two pods")
    };
    for (a, b) in one.iter().zip(other) {
        ensure!(a != b, "both pods have {a}");
    }
    Ok(())
}

fn first_of_a_kind() -> Result<()> {
    let config = Config::with("memory_mib = 320\n")?;
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

fn made_again() -> Result<()> {
    let config = Config::with("memory_mib = 336\n")?;
    nacre(&["template", "build"])?;
    let made = |json: &str| -> Result<String> {
        let list: Value = serde_json::from_str(json)?;
        let mut entries = list.as_array().into_iter().flatten();
        let entry = entries.find(|entry| entry["kind"]["memory_mib"] == 336);
        let key = entry.and_then(|entry| entry["key"].as_str());
        Ok(key.context("the template is not listed")?.to_owned())
    };
    let key = made(&nacre(&["template", "list", "--json"])?)?;
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
    let _config = Config::with("templates = false\n")?;
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
