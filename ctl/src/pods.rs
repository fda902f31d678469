//! Reads what shims leave in the state directory: pods that are there and records of pods that failed. Never writes.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nacre_protocol::state::{FAILURES_DIR, Failure, POD_FILE, Pod, TIMELINE_FILE, Timeline};
use serde::de::DeserializeOwned;

use crate::text::printable;

/// A pod that is there.
pub struct Found {
    /// What its shim wrote.
    pub pod: Pod,
    /// How it started; None while its shim has not written it.
    pub timeline: Option<Timeline>,
}

/// All pods, oldest first.
///
/// # Errors
/// Where the state directory or a file in it can't be read or parsed.
pub fn all(root: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for directory in entries(root)? {
        if directory.file_name().is_some_and(|name| name == FAILURES_DIR) {
            continue;
        }
        // A pod may go away while we look, and its directory is there before its file.
        if let Some(pod) = read::<Pod>(&directory.join(POD_FILE))? {
            found.push(Found {
                pod,
                timeline: read(&directory.join(TIMELINE_FILE))?,
            });
        }
    }
    found.sort_by(|a, b| (a.pod.created, &a.pod.id).cmp(&(b.pod.created, &b.pod.id)));
    Ok(found)
}

/// All failure records, newest first.
///
/// # Errors
/// As [`all`].
pub fn failures(root: &Path) -> Result<Vec<Failure>> {
    let mut found = Vec::new();
    for file in entries(&root.join(FAILURES_DIR))? {
        // Anything else is a record that a shim is about to rename into place.
        if file.extension().is_some_and(|extension| extension == "json") {
            found.extend(read::<Failure>(&file)?);
        }
    }
    found.sort_by(|a, b| (b.time, &a.id).cmp(&(a.time, &b.id)));
    Ok(found)
}

/// Picks by `namespace`, where given, and by the id or a prefix of it that no other has.
///
/// # Errors
/// Where none or several match, with what to do.
pub fn choose<'a>(
    known: impl Iterator<Item = (&'a str, &'a str)>,
    id: &str,
    namespace: Option<&str>,
) -> Result<(String, String)> {
    let mut matching: Vec<(&str, &str)> = known
        .filter(|(space, known)| namespace.is_none_or(|wanted| wanted == *space) && known.starts_with(id))
        .collect();
    matching.sort_unstable();
    matching.dedup();
    if matching.iter().any(|(_, known)| *known == id) {
        matching.retain(|(_, known)| *known == id);
    }
    match matching.as_slice() {
        [(space, id)] => Ok(((*space).to_owned(), (*id).to_owned())),
        [] => {
            let place = namespace
                .map(|name| format!(" in namespace {name}"))
                .unwrap_or_default();
            bail!(
                "no pod and no failure record{place} whose id starts with {id:?}; `nacre ps` and `nacre failures` list them"
            )
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|(space, id)| format!("{} (namespace {})", printable(id), printable(space)))
                .collect();
            bail!(
                "{id:?} means several pods; write more of the id or give --namespace:\n  {}",
                names.join("\n  ")
            )
        }
    }
}

/// Seconds since `time`, itself seconds since the epoch.
pub fn seconds_since(time: u64) -> u64 {
    let then = UNIX_EPOCH
        .checked_add(Duration::from_secs(time))
        .unwrap_or(UNIX_EPOCH);
    SystemTime::now()
        .duration_since(then)
        .unwrap_or_default()
        .as_secs()
}

/// What a pod's cgroup is charged with, bytes; None where there is no memory controller in the unified tree.
///
/// # Errors
/// Where the file holds no number.
pub fn memory(pod: &Pod) -> Result<Option<u64>> {
    let Some(cgroup) = &pod.cgroup else {
        return Ok(None);
    };
    let file = cgroup.join("memory.current");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(
            text.trim()
                .parse()
                .with_context(|| format!("{}: {text:?}", file.display()))?,
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// The state in words; a VMM or shim that is gone without a word counts.
pub fn state(pod: &Pod) -> String {
    let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
    if gone(pod.shim_pid) {
        return format!("{}, but its shim (pid {}) is gone", pod.state, pod.shim_pid);
    }
    match pod.vmm_pid {
        Some(pid) if pod.state == "running" && gone(pid) => {
            format!("running, but its VMM (pid {pid}) is gone")
        }
        _ => pod.state.clone(),
    }
}

/// Everything in a directory; a directory that does not exist is empty.
fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("reading {}: {error}; run as root", directory.display())
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", directory.display())),
    };
    listed.map(|entry| Ok(entry?.path())).collect()
}

/// The JSON in `file`; None where there is none.
fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{}", file.display()))
            .map(Some),
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

#[cfg(test)]
pub mod tests {
    use std::path::PathBuf;

    use nacre_protocol::state::TimelineStep;

    use super::*;

    /// A state directory with two pods and a failure.
    pub fn example() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let pod = |id: &str, namespace: &str, created| Pod {
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            containerd_address: "/run/containerd/containerd.sock".to_owned(),
            bundle: PathBuf::from("/run/bundle"),
            shim_pid: std::process::id(),
            vmm_pid: Some(std::process::id()),
            cgroup: None,
            created,
            state: "running".to_owned(),
        };
        for (key, pod) in [
            ("1", pod("web-1", "default", 20)),
            ("2", pod("web-2", "k8s.io", 10)),
        ] {
            let directory = root.path().join(key);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join(POD_FILE), serde_json::to_vec(&pod).unwrap()).unwrap();
        }
        fs::write(
            root.path().join("1").join(TIMELINE_FILE),
            serde_json::to_vec(&timeline()).unwrap(),
        )
        .unwrap();
        let failure = Failure {
            id: "dead-1".to_owned(),
            namespace: "default".to_owned(),
            time: 30,
            step: "running".to_owned(),
            reason: "the VMM was killed by SIGKILL".to_owned(),
            hint: Some("look for the OOM killer in the host's log".to_owned()),
            console: vec!["last\u{7}words".to_owned()],
            timeline: timeline(),
        };
        fs::create_dir(root.path().join(FAILURES_DIR)).unwrap();
        let file = root.path().join(FAILURES_DIR).join("3.json");
        fs::write(file, serde_json::to_vec(&failure).unwrap()).unwrap();
        root
    }

    fn timeline() -> Timeline {
        let step = |name: &str, done_us| TimelineStep {
            name: name.to_owned(),
            done_us,
        };
        Timeline {
            steps: vec![step("shim starts", 1500), step("guest boots", 61_500)],
            boot_exits: [("io_out".to_owned(), 7), ("mmio_read".to_owned(), 200)].into(),
            guest_kernel: Some("6.1.0-nacre".to_owned()),
        }
    }

    #[test]
    fn reads_pods_and_failures() {
        let root = example();
        let ids: Vec<String> = all(root.path())
            .unwrap()
            .into_iter()
            .map(|found| found.pod.id)
            .collect();
        assert_eq!(ids, ["web-2", "web-1"], "oldest first");
        assert_eq!(failures(root.path()).unwrap().len(), 1);
        assert!(all(Path::new("/no/such")).unwrap().is_empty());
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        let root = example();
        fs::write(root.path().join("1").join(POD_FILE), "{").unwrap();
        let error = format!("{:#}", all(root.path()).map(drop).unwrap_err());
        assert!(error.contains("1/pod.json"), "{error}");
    }

    #[test]
    fn chooses_by_id_prefix_and_namespace() {
        let known = [
            ("default", "web"),
            ("default", "web-1"),
            ("k8s.io", "web-1"),
            ("k8s.io", "db"),
        ];
        let pick = |id, namespace| choose(known.into_iter(), id, namespace);
        let got = |space: &str, id: &str| (space.to_owned(), id.to_owned());
        assert_eq!(
            pick("web", None).unwrap(),
            got("default", "web"),
            "an exact id wins"
        );
        assert_eq!(pick("d", None).unwrap(), got("k8s.io", "db"));
        assert_eq!(pick("web-1", Some("k8s.io")).unwrap(), got("k8s.io", "web-1"));
        let several = pick("web-1", None).unwrap_err().to_string();
        assert!(
            several.contains("--namespace") && several.contains("k8s.io"),
            "{several}"
        );
        let none = pick("x", None).unwrap_err().to_string();
        assert!(none.contains("nacre ps"), "{none}");
    }
}
