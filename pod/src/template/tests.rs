//! The store beside other processes: a lock by another open file is as good as one by another process. The VMM
//! is a program of the test's.

mod poisoned;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nacre_protocol::config::Config;

use super::maker::{self, Made};
use super::*;
use crate::size::VmSize;

const SIZE: VmSize = VmSize {
    boot_mib: 512,
    max_mib: 1024,
    vcpus: 1,
    most_vcpus: 2,
    max_vcpus: 2,
};
const DEADLINE: Duration = Duration::from_secs(60);

/// An installation whose VMM is a shell script, and a store.
struct Host {
    directory: tempfile::TempDir,
    config: Config,
    store: Store,
}

impl Host {
    fn new(vmm: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["kernel", "initrd"] {
            fs::write(path(name), name).unwrap();
        }
        fs::write(path("vmm"), format!("#!/bin/sh\n{vmm}\n")).unwrap();
        fs::set_permissions(path("vmm"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = Config {
            kernel: path("kernel"),
            initrd: path("initrd"),
            vmm: path("vmm"),
            kernel_params: "a=1 b".to_owned(),
            ..crate::size::tests::config(75, None)
        };
        let store = Store::at(directory.path());
        Self {
            directory,
            config,
            store,
        }
    }

    /// One whose VMM saves what it is called with.
    fn that_saves() -> Self {
        Self::new(
            r#"for word; do [ "$last" = --save ] && saved=$word; last=$word; done
umask 022; mkdir "$saved" && echo "$@" >"$saved/state" && echo memory >"$saved/memory""#,
        )
    }

    fn kind(&self) -> Kind {
        Kind::of(&self.config, SIZE).unwrap()
    }

    fn key(&self) -> String {
        self.kind().key().unwrap()
    }

    fn make(&self) -> Result<Made, Error> {
        maker::make(&self.store, &self.kind(), DEADLINE)
    }

    /// The names in the store.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("templates")).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }
}

fn set_age(path: &Path, age: Duration) {
    let file = fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn a_template_is_made_and_opened() {
    let host = Host::that_saves();
    let key = host.key();
    assert_eq!(host.store.open(&key).unwrap_err(), Absent::None);
    assert_eq!(host.make().unwrap(), Made::Now);
    assert_eq!(host.make().unwrap(), Made::Before);
    assert_eq!(host.names(), std::slice::from_ref(&key));
    let template = host.store.open(&key).unwrap();
    let arguments = std::io::read_to_string(template.state).unwrap();
    let path = |name| host.directory.path().join(name).display().to_string();
    for word in [
        &format!("--kernel {}", path("kernel")),
        &format!("--initrd {}", path("initrd")),
        "--cmdline=a=1 b",
        "--memory-mib=512",
        "--vcpus=1 --max-vcpus=2",
    ] {
        assert!(arguments.contains(word), "{word}: {arguments}");
    }
    assert_eq!(std::io::read_to_string(template.memory).unwrap(), "memory\n");
    let [entry] = &host.store.list().unwrap()[..] else {
        panic!("one template");
    };
    assert_eq!((&entry.key, entry.kind.as_ref()), (&key, Some(&host.kind())));
    assert!(entry.bytes > 0);
    assert_eq!(host.store.find(&key).unwrap().key, key);
    host.store.remove(&key).unwrap();
    host.store.remove(&key).unwrap();
    assert_eq!(host.store.open(&key).unwrap_err(), Absent::None);
}

#[test]
fn every_part_of_a_kind_is_in_its_key() {
    let host = Host::that_saves();
    let (kind, key) = (host.kind(), host.key());
    let mut others = vec![
        Kind {
            build: "other".to_owned(),
            ..kind.clone()
        },
        Kind {
            kernel_params: String::new(),
            ..kind.clone()
        },
        Kind {
            memory_mib: 256,
            ..kind.clone()
        },
        Kind {
            vcpus: 2,
            ..kind.clone()
        },
        Kind {
            max_vcpus: 3,
            ..kind.clone()
        },
    ];
    for file in ["vmm", "kernel", "initrd"] {
        let path = host.directory.path().join(file);
        let copy = path.with_extension("new");
        fs::copy(&path, &copy).unwrap();
        fs::rename(&copy, &path).unwrap();
        assert!(!kind.is_current(), "{file}");
        others.push(host.kind());
    }
    let mut keys: Vec<String> = others.iter().map(|kind| kind.key().unwrap()).collect();
    keys.push(key);
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    fs::remove_file(&host.config.kernel).unwrap();
    let error = Kind::of(&host.config, SIZE).unwrap_err().to_string();
    assert!(error.contains("/kernel: "), "{error}");
}

#[test]
fn only_one_process_makes_a_template() {
    let host = Host::that_saves();
    let Begun::Making(making) = host.store.begin(&host.key()).unwrap() else {
        panic!("nobody else makes it");
    };
    assert_eq!(host.make().unwrap(), Made::Elsewhere);
    assert_eq!(host.store.collect().unwrap(), Collected::default());
    // It fails, and what it has written is removed.
    fs::create_dir(making.files()).unwrap();
    drop(making);
    assert!(host.names().is_empty());
    // The next one was killed.
    fs::create_dir_all(
        host.directory
            .path()
            .join(format!("templates/{}.building/new/x", host.key())),
    )
    .unwrap();
    assert_eq!(host.make().unwrap(), Made::Now);
    assert_eq!(host.names(), [host.key()]);
}

#[test]
fn a_failure_is_recorded_with_the_vmm_s_last_words() {
    let host = Host::new("echo one >&2; echo 'nacre-vmm: no \x1b KVM' >&2; exit 1");
    let error = host.make().unwrap_err().to_string();
    assert!(
        error.starts_with("one; nacre-vmm: no ") && !error.contains('\x1b'),
        "{error}"
    );
    let key = host.key();
    let recorded = Absent::Failed(format!("no template could be made for this kind of pod: {error}"));
    assert_eq!(host.store.find(&key).unwrap_err(), recorded);
    assert_eq!(host.store.open(&key).unwrap_err(), recorded);
    let record = format!("{key}.failed");
    assert_eq!(host.names(), std::slice::from_ref(&record));
    let path = host.directory.path().join("templates").join(&record);
    set_age(&path, Duration::from_secs(3600));
    assert_eq!(host.store.open(&key).unwrap_err(), Absent::None);
    assert_eq!(host.store.collect().unwrap().removed, [record]);
    assert!(host.names().is_empty());
}

#[test]
fn a_vmm_that_is_killed_or_missing_or_hangs_is_named() {
    let killed = Host::new("kill -9 $$").make().unwrap_err().to_string();
    assert!(killed.starts_with("the VMM was killed by signal 9"), "{killed}");
    let missing = Host::new("");
    let mut kind = missing.kind();
    kind.vmm.path = "/nowhere/vmm".into();
    let error = maker::make(&missing.store, &kind, DEADLINE).unwrap_err();
    assert!(matches!(error, Error::NotMade(_)), "{error}");
}

#[test]
fn stale_templates_are_collected() {
    let host = Host::that_saves();
    host.make().unwrap();
    assert_eq!(host.store.collect().unwrap(), Collected::default());
    fs::write(&host.config.kernel, "another kernel").unwrap();
    let key = host.store.list().unwrap().remove(0).key;
    let left = format!("{}.building", host.key());
    fs::create_dir(host.directory.path().join("templates").join(&left)).unwrap();
    let mut removed = host.store.collect().unwrap().removed;
    removed.sort();
    let mut expected = [key, left];
    expected.sort();
    assert_eq!(removed, expected);
    assert!(host.names().is_empty());
}

#[test]
fn the_least_recently_used_template_makes_room() {
    let mut host = Host::that_saves();
    let make = |host: &mut Host, memory_mib: u32| {
        let kind = Kind {
            memory_mib,
            ..host.kind()
        };
        (kind.key().unwrap(), maker::make(&host.store, &kind, DEADLINE))
    };
    let (first, _) = make(&mut host, 1);
    for memory_mib in 2..=4 {
        make(&mut host, memory_mib).1.unwrap();
    }
    let (fifth, made) = make(&mut host, 5);
    assert!(matches!(made, Err(Error::Full)), "{made:?}");
    let directory = host.directory.path().join("templates").join(&first);
    set_age(&directory, Duration::from_secs(7200));
    host.store.open(&first).unwrap();
    assert!(
        matches!(make(&mut host, 5).1, Err(Error::Full)),
        "it was used now"
    );
    set_age(&directory, Duration::from_secs(7200));
    make(&mut host, 5).1.unwrap();
    let keys: Vec<String> = host
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    assert!(
        !keys.contains(&first) && keys.contains(&fifth) && keys.len() == 4,
        "{keys:?}"
    );
}

#[test]
fn a_process_of_its_own_makes_a_template_when_the_pod_has_started() {
    let host = Host::that_saves();
    let waiting = maker::prepare(&host.store, &host.kind(), DEADLINE).unwrap();
    assert!(host.store.list().unwrap().is_empty());
    let directory = host.directory.path().join("templates");
    crate::state::make_directory(&directory).unwrap();
    let inotify = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).unwrap();
    inotify
        .add_watch(&directory, nix::sys::inotify::AddWatchFlags::IN_MOVED_TO)
        .unwrap();
    drop(waiting);
    // It is renamed when it is complete.
    inotify.read_events().unwrap();
    host.store.open(&host.key()).unwrap();
}
