//! Templates that are damaged, half written, in the way or removed: each pod starts, at worst by a boot, and its
//! timeline has the reason. What the formats refuse bit by bit is tested where they are (vmm/src/snapshot), and what
//! the store refuses in pod/src/template/tests.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::state::{STATE_ROOT, TEMPLATES_DIR};
use nacre_tests::containerd::ctr::ctr;
use nacre_tests::installation::Config;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::fs::{FlockOperation, flock};

use super::{NONE_YET, Pod, key_of, origin_of_one, own_kind};
use crate::operator::nacre;

/// MiB at boot of the pods here, so that they have a kind of their own.
const MEMORY_MIB: u32 = 352;
/// What a way leaves in place of the template in a directory, and what the pod's origin then contains.
type Way = (&'static str, fn(&Path) -> Result<()>, &'static str);

/// Not more, since each is a pod that boots: all take less than a minute in the lab.
const WAYS: [Way; 6] = [
    (
        "a truncated state",
        |template| Ok(open(template, "state")?.set_len(1000)?),
        "truncated",
    ),
    (
        "a FIFO in place of the state",
        |template| {
            fs::remove_file(template.join("state"))?;
            Ok(mkfifo(&template.join("state"), Mode::S_IRUSR)?)
        },
        "must be a regular file",
    ),
    (
        "a symbolic link in place of the directory",
        |template| {
            let elsewhere = template.with_extension("elsewhere");
            fs::rename(template, &elsewhere)?;
            Ok(symlink(elsewhere, template)?)
        },
        "must be a directory",
    ),
    (
        "no memory",
        |template| Ok(fs::remove_file(template.join("memory"))?),
        NONE_YET,
    ),
    (
        "truncated memory",
        |template| {
            let bytes = open(template, "memory")?.metadata()?.len();
            fs::remove_file(template.join("memory"))?;
            Ok(create(template, "memory")?.set_len(bytes - 4096)?)
        },
        "bytes instead of",
    ),
    // The last one: its memory is that of all templates here.
    (
        "a bit of memory that has flipped",
        |template| {
            let memory = open(template, "memory")?;
            let mut byte = [0];
            memory.read_exact_at(&mut byte, 20 << 20)?;
            Ok(memory.write_all_at(&[byte[0] ^ 1], 20 << 20)?)
        },
        "the memory of the snapshot: the content differs",
    ),
];

fn open(template: &Path, name: &str) -> Result<File> {
    Ok(File::options().read(true).write(true).open(template.join(name))?)
}

fn create(template: &Path, name: &str) -> Result<File> {
    let file = File::create(template.join(name))?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// A template, and a copy of it. No pod makes another one meanwhile.
struct Original {
    key: String,
    copy: PathBuf,
    template: PathBuf,
    building: PathBuf,
    _lock: File,
    config: Config,
}

impl Original {
    fn make() -> Result<Self> {
        let config = own_kind(MEMORY_MIB)?;
        nacre(&["template", "build"])?;
        let key = key_of(MEMORY_MIB)?;
        let store = Path::new(STATE_ROOT).join(TEMPLATES_DIR);
        let building = store.join(format!("{key}.building"));
        fs::create_dir(&building)?;
        let lock = File::open(&building)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let (template, copy) = (store.join(&key), building.join("original"));
        fs::rename(&template, &copy)?;
        Ok(Self {
            key,
            copy,
            template,
            building,
            _lock: lock,
            config,
        })
    }

    /// Puts the template into its place again.
    fn put(&self) -> Result<()> {
        let store = fs::read_dir(self.template.parent().context("no store")?)?;
        for entry in store {
            let path = entry?.path();
            let is_own = path.file_stem() == self.template.file_name() && path != self.building;
            if is_own && path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path)?;
            } else if is_own {
                fs::remove_file(path)?;
            }
        }
        fs::create_dir(&self.template)?;
        fs::set_permissions(&self.template, Permissions::from_mode(0o700))?;
        for name in ["state", "kind.json"] {
            fs::copy(self.copy.join(name), self.template.join(name))?;
        }
        // Its sum is then compared, since this is a change of the inode.
        Ok(fs::hard_link(
            self.copy.join("memory"),
            self.template.join("memory"),
        )?)
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.building)?;
        drop(self.config);
        nacre(&["template", "gc"]).map(drop)
    }
}

pub fn ways() -> Result<()> {
    let original = Original::make()?;
    let result = try_ways(&original);
    original.remove()?;
    result
}

fn try_ways(original: &Original) -> Result<()> {
    original.put()?;
    let origin = origin_of_one("poisoned-not")?;
    ensure!(origin == format!("template {}", original.key), "a copy: {origin}");
    for (what, spoil, expected) in WAYS {
        original.put()?;
        spoil(&original.template).context(what)?;
        let origin = origin_of_one("poisoned").context(what)?;
        ensure!(
            origin.starts_with("boot: ") && origin.contains(expected),
            "{what}: {origin}"
        );
    }
    Ok(())
}

pub fn removed_in_use() -> Result<()> {
    let config = own_kind(MEMORY_MIB)?;
    nacre(&["template", "build"])?;
    let key = key_of(MEMORY_MIB)?;
    let pod = Pod::start("template-removed")?;
    let used = || -> Result<()> {
        let origin = pod.origin()?;
        ensure!(origin == format!("template {key}"), "{origin}");
        fs::remove_dir_all(Path::new(STATE_ROOT).join(TEMPLATES_DIR).join(&key))?;
        // The guest's kernel uses pages that it has not used before.
        let script = "cat /bin/busybox | md5sum && awk 'BEGIN { for (i = 0; i < 100000; i++) a[i] = i }'";
        ctr(["task", "exec", "--exec-id", "use", &pod.0, "sh", "-c", script])?
            .success()
            .map(drop)
    };
    let used = used();
    pod.remove()?;
    drop(config);
    used
}

/// A small file system in place of the store.
struct SmallStore(PathBuf);

impl SmallStore {
    fn mount() -> Result<Self> {
        let store = Path::new(STATE_ROOT).join(TEMPLATES_DIR);
        let options = "size=4m,mode=0700";
        mount(
            Some("none"),
            &store,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )?;
        Ok(Self(store))
    }
}

impl Drop for SmallStore {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

pub fn full_disk() -> Result<()> {
    let store = SmallStore::mount()?;
    let Err(error) = nacre(&["template", "build"]) else {
        anyhow::bail!("a template of 4 MiB");
    };
    let text = format!("{error:#}");
    ensure!(text.contains("No space left on device"), "{text}");
    let left: Vec<_> = fs::read_dir(&store.0)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    let [record] = &left[..] else {
        anyhow::bail!("left in the store: {left:?}");
    };
    ensure!(record.to_string_lossy().ends_with(".failed"), "{record:?}");
    let origin = origin_of_one("template-full")?;
    ensure!(
        origin.starts_with("boot: no template could be made for this kind of pod: ")
            && origin.contains("No space left on device"),
        "{origin}"
    );
    Ok(())
}
