//! Volumes that change, laid out and updated as kubelet does it: ConfigMaps, Secrets, projected volumes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::plain_pod;
use crate::cri::pod::{Container, Pod, this_program};
use crate::cri::{Case, PodKind, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("kubelet's volumes");

pub const CASES: &[Case] = &[
    in_pod("volume: updates of a ConfigMap are inotify events", &POD, updates),
    in_pod(
        "volume: large files and many files of a projected volume",
        &POD,
        large_and_many,
    ),
    in_pod(
        "volume: two containers share a Secret, and one is replaced",
        &POD,
        shared,
    ),
    in_pod("volume: a ConfigMap that is too large or unusual", &POD, unusual),
];

/// Updates that are waited for one by one, and then as many in a row.
const UPDATES: u32 = 50;
/// The longest time from an update to its event (issue 12 of the project's goals).
const MOST: Duration = Duration::from_secs(1);

/// A volume in a directory like kubelet's.
struct Volume {
    _directory: TempDir,
    path: PathBuf,
}

/// The watcher's line about a new version.
const MOVED: &str = "moved ..data\n";
/// The name and content of a file.
type Key<'a> = (&'a str, &'a [u8]);

impl Volume {
    fn new(plugin: &str, keys: &[Key<'_>]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory
            .path()
            .join("pods/u/volumes")
            .join(format!("kubernetes.io~{plugin}/config"));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2777))?;
        chown(&path, None, Some(1000))?;
        let volume = Self {
            _directory: directory,
            path,
        };
        volume.update(0, keys)?;
        Ok(volume)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces the volume's content by version `number`; returns when `..data` was moved.
    fn update(&self, number: u32, keys: &[Key<'_>]) -> Result<Instant> {
        let old = fs::read_link(self.at("..data")).ok();
        let version = format!("..v{number}");
        let directory = self.at(&version);
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o2755))?;
        for (name, content) in keys {
            let file = directory.join(name);
            fs::write(&file, content)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
            chown(&file, None, Some(1000))?;
        }
        symlink(&version, self.at("..data_tmp"))?;
        fs::rename(self.at("..data_tmp"), self.at("..data"))?;
        let moved = Instant::now();
        for (name, _) in keys {
            let link = self.at(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(name), link)?;
            }
        }
        if let Some(old) = old {
            self.remove_stale_links(&old, keys)?;
            fs::remove_dir_all(self.path.join(old))?;
        }
        Ok(moved)
    }

    fn remove_stale_links(&self, old: &Path, keys: &[Key<'_>]) -> Result<()> {
        for entry in fs::read_dir(self.path.join(old))? {
            let name = entry?.file_name();
            if !keys.iter().any(|(key, _)| name == *key) {
                fs::remove_file(self.path.join(name))?;
            }
        }
        Ok(())
    }

    /// Its mount at `/volume` of a container.
    fn mount(&self) -> Value {
        json!({"container_path": "/volume", "host_path": self.path, "readonly": true})
    }

    /// Starts a container that prints the events of the volume; it watches when this returns.
    fn watcher<'p>(&self, pod: &'p Pod<'_>) -> Result<Container<'p>> {
        let mut watcher = this_program(&["--watch", "/volume"])?;
        if let Some(mounts) = watcher["mounts"].as_array_mut() {
            mounts.push(self.mount());
        }
        let container = pod.start("", watcher)?;
        container.prints("watching\n")?;
        Ok(container)
    }

    /// Returns when `container`, which watches the volume, has everything that the host has now.
    fn settle(&self, container: &Container<'_>) -> Result<()> {
        symlink("nowhere", self.at("marker"))?;
        container.prints("created marker\n")?;
        fs::remove_file(self.at("marker"))?;
        container.prints("deleted marker\n")
    }
}

/// Prints the changes of the names in `directory`, for ever. A container's command.
///
/// # Errors
/// If it can't be watched.
pub fn print_changes(directory: &Path) -> Result<()> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let changes = [
        (AddWatchFlags::IN_CREATE, "created"),
        (AddWatchFlags::IN_MOVED_TO, "moved"),
        (AddWatchFlags::IN_DELETE, "deleted"),
    ];
    let all = changes
        .iter()
        .fold(AddWatchFlags::empty(), |all, (flag, _)| all | *flag);
    watch.add_watch(directory, all)?;
    println!("watching");
    loop {
        for event in watch.read_events()? {
            let change = changes.iter().find(|(flag, _)| event.mask.contains(*flag));
            let name = event.name.unwrap_or_default();
            println!("{} {}", change.map_or("other", |(_, word)| word), name.display());
        }
    }
}

/// What a reader sees of the volume.
const CONTENT: &str = "cd /volume; ls -lnA | awk '{print $1, $3, $4, $9, $10, $11}'; ls -ln ..data/ | awk '{print $1, $3, $4, $5, $9}'
    cat key; readlink ..data; touch new 2>&1; echo x 2>&1 >key; rm -f ..data 2>&1; stat -c '%a %u %g' .";

fn updates(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let volume = Volume::new("configmap", &[("key", b"0\n"), ("gone", b"")])?;
    let container = volume.watcher(pod)?;
    let mut latencies = Vec::new();
    for number in 1..=UPDATES {
        let value = format!("{number}\n");
        let moved = volume.update(number, &[("key", value.as_bytes())])?;
        container.prints_times(MOVED, number as usize)?;
        latencies.push(moved.elapsed());
    }
    volume.settle(&container)?;
    let mut seen = container.output(CONTENT)?;
    for number in UPDATES + 1..=UPDATES * 2 {
        let value = format!("{number}\n");
        volume.update(number, &[("key", value.as_bytes()), ("other", b"too\n")])?;
    }
    volume.settle(&container)?;
    seen.push_str(&container.output(CONTENT)?);
    latencies.sort();
    let at = |percent: usize| latencies[(latencies.len() * percent).div_ceil(100) - 1];
    node.figure(&format!(
        "from kubelet's rename to the event in the container's log: p50 {:.1} ms, p99 {:.1} ms",
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3
    ));
    // One of them may have waited for a busy host.
    ensure!(at(98) < MOST, "events came after {:?} and {:?}", at(98), at(99));
    Ok(Outcome::text(seen))
}

fn large_and_many(pod: &Pod<'_>) -> Result<Outcome> {
    const COUNT: u32 = 500;
    let names: Vec<String> = (0..COUNT).map(|number| format!("file-{number}")).collect();
    let content = |salt: u32, length: u32| -> Vec<u8> {
        let byte = |at: u32| at.wrapping_mul(2_654_435_761).wrapping_add(salt).to_le_bytes()[3];
        (0..length).map(byte).collect()
    };
    let small: Vec<Vec<u8>> = (0..COUNT).map(|number| content(number, number % 300)).collect();
    let large = [content(1, (5 << 20) + 1), content(2, 3 << 20)];
    let mut keys: Vec<Key<'_>> = names
        .iter()
        .map(String::as_str)
        .zip(small.iter().map(Vec::as_slice))
        .collect();
    keys.push(("large", &large[0]));
    let volume = Volume::new("projected", &keys)?;
    let container = volume.watcher(pod)?;
    let script =
        "cd /volume; ls | wc -l; md5sum <large; cat file-* | md5sum; ls -A | md5sum; ls -ln ..data/ | md5sum";
    // The first line of `ls -l` and the times differ from run to run.
    let script = script.replace(
        "ls -ln ..data/",
        "ls -ln ..data/ | awk '{print $1, $3, $4, $5, $9}' | tail -n +2",
    );
    let mut seen = container.output(&script)?;
    keys.truncate(10);
    keys.push(("large", &large[1]));
    volume.update(1, &keys)?;
    volume.settle(&container)?;
    seen.push_str(&container.output(&script)?);
    Ok(Outcome::text(seen))
}

fn shared(pod: &Pod<'_>) -> Result<Outcome> {
    let volume = Volume::new("secret", &[("key", b"first\n")])?;
    let first = volume.watcher(pod)?;
    let second = volume.watcher(pod)?;
    volume.update(1, &[("key", b"second\n")])?;
    for container in [&first, &second] {
        container.prints(MOVED)?;
    }
    first.stop(0)?;
    first.remove()?;
    volume.update(2, &[("key", b"third\n")])?;
    second.prints_times(MOVED, 2)?;
    let mut seen = second.output("cat /volume/key")?;
    second.stop(0)?;
    second.remove()?;
    // Nobody uses it now. What changes meanwhile is there when it is used again.
    volume.update(3, &[("key", b"fourth\n")])?;
    let third = volume.watcher(pod)?;
    seen.push_str(&third.output("cat /volume/key; ls -A /volume")?);
    volume.update(4, &[("key", b"fifth\n")])?;
    volume.settle(&third)?;
    seen.push_str(&third.output("cat /volume/key; ls -A /volume")?);
    Ok(Outcome::text(seen))
}

/// These have no inotify under Nacre, and are as the host's otherwise.
fn unusual(pod: &Pod<'_>) -> Result<Outcome> {
    let large = Volume::new("configmap", &[("key", b"")])?;
    fs::File::create(large.at("..v0/key"))?.set_len((64 << 20) + 1)?;
    let plain = Volume::new("configmap", &[("key", b"value\n")])?;
    fs::remove_file(plain.at("..data"))?;
    fs::rename(plain.at("..v0"), plain.at("..data"))?;
    let mut seen = String::new();
    for volume in [&large, &plain] {
        let script =
            "stat -L -c %s /volume/key; head -c 10 /volume/key; ls -A /volume; touch /volume/new 2>&1";
        seen.push_str(&pod.run(script, json!({"mounts": [volume.mount()]}))?.stdout);
    }
    // One that can be written: what is written reaches the host.
    let written = Volume::new("configmap", &[("key", b"value\n")])?;
    let mut mount = written.mount();
    mount["readonly"] = json!(false);
    let write = pod.run("echo new >/volume/key", json!({"mounts": [mount]}))?;
    seen.push_str(&write.to_string());
    seen.push_str(&fs::read_to_string(written.at("key"))?);
    Ok(Outcome::text(seen))
}
