//! Reads what shims leave in the state directory: pods and failure records. Called by the commands that show
//! them; never writes.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nacre_protocol::state::{
    FAILURES_DIR, Failure, POD_FILE, Pod, PodState, TEMPLATES_DIR, TIMELINE_FILE, Timeline,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::text::printable;

/// A pod that has a directory.
pub struct Found {
    /// The content of pod.json.
    pub pod: Pod,
    /// The content of timeline.json; None if it does not exist yet or can't be read.
    pub timeline: Option<Timeline>,
}

/// The entries of a directory. One file that can't be read does not hide the others.
pub struct Listing<T> {
    /// What could be read.
    pub entries: Vec<T>,
    /// The files that could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// A file that exists but can't be read or parsed.
#[derive(Debug, Serialize)]
pub struct Unreadable {
    /// The file.
    pub file: PathBuf,
    /// Why, with its causes.
    pub error: String,
}

impl Unreadable {
    fn new(file: &Path, error: &impl std::fmt::Display) -> Self {
        Self {
            file: file.to_owned(),
            error: error.to_string(),
        }
    }
}

impl<T> Listing<T> {
    fn new() -> Self {
        Self {
            entries: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// The JSON in `file`; None if the file does not exist or can't be read, which is then noted in
    /// `unreadable`.
    fn read<J: DeserializeOwned>(&mut self, file: &Path) -> Option<J> {
        let parsed = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Unreadable::new(file, &error)),
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {
                return None;
            }
            Err(error) => Err(Unreadable::new(file, &error)),
        };
        match parsed {
            Ok(value) => Some(value),
            Err(unreadable) => {
                self.unreadable.push(unreadable);
                None
            }
        }
    }
}

/// All pods, oldest first.
///
/// # Errors
/// If the state directory can't be listed.
pub fn all(root: &Path) -> Result<Listing<Found>> {
    let mut listing = Listing::new();
    for directory in directory_entries(root)? {
        let is_other = |name: &OsStr| name == FAILURES_DIR || name == TEMPLATES_DIR;
        if directory.file_name().is_some_and(is_other) {
            continue;
        }
        // A pod may be deleted meanwhile, and its directory is created before pod.json.
        if let Some(pod) = listing.read(&directory.join(POD_FILE)) {
            let timeline = listing.read(&directory.join(TIMELINE_FILE));
            listing.entries.push(Found { pod, timeline });
        }
    }
    listing
        .entries
        .sort_by(|a, b| (a.pod.created, &a.pod.id).cmp(&(b.pod.created, &b.pod.id)));
    Ok(listing)
}

/// All failure records, newest first.
///
/// # Errors
/// If the directory of failure records can't be listed.
pub fn failures(root: &Path) -> Result<Listing<Failure>> {
    let mut listing = Listing::new();
    for file in directory_entries(&root.join(FAILURES_DIR))? {
        // Files with another extension are records that a shim is about to rename.
        if file.extension().is_some_and(|extension| extension == "json") {
            let failure = listing.read(&file);
            listing.entries.extend(failure);
        }
    }
    listing
        .entries
        .sort_by(|a: &Failure, b| (b.time, &a.id).cmp(&(a.time, &b.id)));
    Ok(listing)
}

/// Chooses from `known` pairs of namespace and id the one whose id is `id`, or else starts with it, in
/// `namespace` if it is given.
///
/// # Errors
/// If no pair or more than one matches.
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
            let within = namespace
                .map(|name| format!(" in namespace {name:?}"))
                .unwrap_or_default();
            bail!(
                "no pod or failure record{within} has an id that starts with {id:?}; \
                 list them with `nacre ps` and `nacre failures`"
            )
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|(space, id)| format!("{} (namespace {})", printable(id), printable(space)))
                .collect();
            bail!(
                "{id:?} matches {} pods; give more of the id, or --namespace:\n  {}",
                names.len(),
                names.join("\n  ")
            )
        }
    }
}

/// Seconds since `time`, which is in seconds since the epoch; 0 if `time` is in the future.
pub fn seconds_since(time: u64) -> u64 {
    let then = UNIX_EPOCH
        .checked_add(Duration::from_secs(time))
        .unwrap_or(UNIX_EPOCH);
    SystemTime::now()
        .duration_since(then)
        .unwrap_or_default()
        .as_secs()
}

/// memory.current of the pod's cgroup, bytes; None if the pod has no cgroup (any more), or the host's cgroup2
/// tree has no memory controller.
///
/// # Errors
/// If the file can't be read or has no number.
pub fn memory(pod: &Pod) -> Result<Option<u64>, Unreadable> {
    let Some(cgroup) = &pod.cgroup else {
        return Ok(None);
    };
    let file = cgroup.join("memory.current");
    match fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(Unreadable::new(&file, &error)),
        },
        // ENODEV: the cgroup was removed after the file was opened.
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            Ok(None)
        }
        Err(error) => Err(Unreadable::new(&file, &error)),
    }
}

/// The state in pod.json, with a note if the shim or the VMM has exited without updating the file.
pub fn state(pod: &Pod) -> String {
    let has_exited = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
    if !pod.is_shim_running() {
        return format!("{}, but its shim (pid {}) has exited", pod.state, pod.shim_pid);
    }
    match pod.vmm_pid {
        Some(pid) if pod.state == PodState::Running && has_exited(pid) => {
            format!("running, but its VMM (pid {pid}) has exited")
        }
        _ if pod.silent_since.is_some() => format!("{}, but its guest does not answer", pod.state),
        _ => pod.state.to_string(),
    }
}

/// The paths of a directory's entries; none if it does not exist.
fn directory_entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("listing {}", directory.display());
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{}: {error}; run nacre as root", context())
        }
        Err(error) => return Err(error).with_context(context),
    };
    listed
        .map(|entry| Ok(entry.with_context(context)?.path()))
        .collect()
}

#[cfg(test)]
pub mod tests {
    use nacre_protocol::state::{PodSize, TimelineStep, process_start_time};

    use super::*;

    /// A state directory with two running pods and one failure record.
    pub fn example() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let pod = |id: &str, namespace: &str, created| Pod {
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            containerd_address: "/run/containerd/containerd.sock".to_owned(),
            bundle: PathBuf::from("/run/bundle"),
            shim_pid: std::process::id(),
            shim_start_time: process_start_time(std::process::id()),
            vmm_pid: Some(std::process::id()),
            cgroup: None,
            network: None,
            size: Some(PodSize {
                vcpus: 2,
                max_vcpus: 8,
                boot_mib: 512,
                memory_mib: 768,
                max_mib: 12288,
            }),
            silent_since: None,
            created,
            state: PodState::Running,
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
            origin: Some("template 0123456789abcdef".to_owned()),
        }
    }

    #[test]
    fn reads_pods_and_failures() {
        let root = example();
        let pods = all(root.path()).unwrap();
        assert!(pods.unreadable.is_empty(), "{:?}", pods.unreadable);
        let ids: Vec<String> = pods.entries.into_iter().map(|found| found.pod.id).collect();
        assert_eq!(ids, ["web-2", "web-1"], "oldest first");
        assert_eq!(failures(root.path()).unwrap().entries.len(), 1);
        assert!(all(Path::new("/no/such")).unwrap().entries.is_empty());
    }

    #[test]
    fn unreadable_files_hide_no_other_pod_or_failure() {
        let root = example();
        let pod_file = root.path().join("1").join(POD_FILE);
        fs::write(&pod_file, "{").unwrap();
        let pods = all(root.path()).unwrap();
        assert_eq!(pods.entries.len(), 1);
        assert_eq!(pods.unreadable.len(), 1);
        assert_eq!(pods.unreadable[0].file, pod_file);
        assert!(
            pods.unreadable[0].error.contains("line 1"),
            "{:?}",
            pods.unreadable
        );

        fs::write(root.path().join("2").join(TIMELINE_FILE), "[]").unwrap();
        let pods = all(root.path()).unwrap();
        assert_eq!((pods.entries.len(), pods.unreadable.len()), (1, 2));

        fs::write(root.path().join(FAILURES_DIR).join("4.json"), "").unwrap();
        let failures = failures(root.path()).unwrap();
        assert_eq!((failures.entries.len(), failures.unreadable.len()), (1, 1));
    }

    #[test]
    fn memory_is_missing_without_a_controller_and_an_error_if_it_is_not_a_number() {
        let cgroup = tempfile::tempdir().unwrap();
        let mut pod = all(example().path()).unwrap().entries.remove(0).pod;
        pod.cgroup = Some(cgroup.path().to_owned());
        assert_eq!(memory(&pod).unwrap(), None);
        fs::write(cgroup.path().join("memory.current"), "4096\n").unwrap();
        assert_eq!(memory(&pod).unwrap(), Some(4096));
        fs::write(cgroup.path().join("memory.current"), "x\n").unwrap();
        assert_eq!(
            memory(&pod).unwrap_err().file,
            cgroup.path().join("memory.current")
        );
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
