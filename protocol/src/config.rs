//! The configuration file, read by the shim when it starts and by `nacre doctor`. It is
//! `PREFIX/etc/nacre/config.toml`, where `PREFIX/bin` contains the running program. If that file does not
//! exist, it is `/etc/nacre/config.toml`. If that does not exist either, the defaults apply.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Least memory of a guest, MiB: its kernel and image do not fit into less.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Most memory of a guest at boot, MiB.
pub const MAX_MEMORY_MIB: u32 = 1024 * 1024;
/// Most vCPUs of a guest.
pub const MAX_VCPUS: u8 = 32;
/// Most vCPUs of a pod without a CPU quota, unless `max_vcpus` is set: on a host with many CPUs, each that is
/// never used costs 364 KiB.
pub const DEFAULT_MAX_VCPUS: u8 = 16;
const DEFAULT_MAX_MEMORY_PERCENT: u8 = 75;
const MAX_BOOT_DEADLINE_S: u32 = 600;

/// The configuration of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from; None for the defaults.
    pub file: Option<PathBuf>,
    /// The guest kernel, an uncompressed ELF file (vmlinux).
    pub kernel: PathBuf,
    /// The guest image, an initramfs.
    pub initrd: PathBuf,
    /// The VMM's executable.
    pub vmm: PathBuf,
    /// Memory at boot of a guest whose pod has no memory limit, MiB. It grows on demand.
    pub memory_mib: u32,
    /// The share of the host's memory that a pod without a memory limit may grow to, and any pod by an update
    /// of its limits, 1..=100.
    pub max_memory_percent: u8,
    /// vCPUs that are online at boot in a guest whose pod has no CPU quota, 1..=32.
    pub vcpus: u8,
    /// vCPUs of a pod without a CPU quota, and the most that a pod can get by an update of its limits, 1..=32.
    /// None: as many as the host has CPUs, [`DEFAULT_MAX_VCPUS`] at most.
    pub max_vcpus: Option<u8>,
    /// Appended to the guest's kernel command line.
    pub kernel_params: String,
    /// Whether the guest's console is also copied to the shim's log.
    pub console_to_log: bool,
    /// How long a guest may take from its start until its agent is ready, 1 to 600 seconds.
    pub boot_deadline: Duration,
    /// An ext4 image with the directories `upper` and `work`. A container whose root file system is an overlay gets
    /// a copy of it, a disk, for its writable layer. None: the host writes the layer, by virtio-fs.
    pub writable_layer: Option<PathBuf>,
    /// The same for a root file system whose layers are disks, if `writable_layer` is None. Not in the file.
    pub layer_template: PathBuf,
    /// Whether VMs continue from a snapshot of a booted guest, where there is one for their kind, and the first
    /// pod of a kind has one made.
    pub templates: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    vmm: Option<PathBuf>,
    memory_mib: Option<u32>,
    max_memory_percent: Option<u8>,
    vcpus: Option<u8>,
    max_vcpus: Option<u8>,
    kernel_params: Option<String>,
    console_to_log: Option<bool>,
    boot_deadline_s: Option<u32>,
    writable_layer: Option<PathBuf>,
    templates: Option<bool>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of the running program cannot be read.
    #[error("finding this program's own file: {0}")]
    Program(#[source] std::io::Error),
    /// The file exists and cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{file}: {reason}")]
    Parse {
        /// The file.
        file: PathBuf,
        /// The error, with its line.
        reason: String,
    },
    /// A value is out of its range.
    #[error("{file}: {key} = {value}: {reason}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The key of the value.
        key: &'static str,
        /// The value.
        value: String,
        /// What is expected.
        reason: String,
    },
}

/// Reads the configuration of the installation that contains the running program.
///
/// # Errors
/// [`Error`], which names the file and the key.
pub fn load() -> Result<Config, Error> {
    let program = std::fs::read_link("/proc/self/exe").map_err(Error::Program)?;
    let prefix = program
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/"))
        .to_owned();
    for file in [
        prefix.join("etc/nacre/config.toml"),
        PathBuf::from("/etc/nacre/config.toml"),
    ] {
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let config = parse(&text, &file, &prefix)?;
                return Ok(Config {
                    file: Some(file),
                    ..config
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { file, source }),
        }
    }
    parse("", Path::new("config.toml"), &prefix)
}

fn parse(text: &str, file: &Path, prefix: &Path) -> Result<Config, Error> {
    let read: File = toml::from_str(text).map_err(|error| Error::Parse {
        file: file.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })?;
    let config = Config {
        file: None,
        kernel: read.kernel.unwrap_or_else(|| prefix.join("share/nacre/vmlinux")),
        initrd: read
            .initrd
            .unwrap_or_else(|| prefix.join("share/nacre/initramfs.cpio")),
        vmm: read.vmm.unwrap_or_else(|| prefix.join("bin/nacre-vmm")),
        memory_mib: read.memory_mib.unwrap_or(512),
        max_memory_percent: read.max_memory_percent.unwrap_or(DEFAULT_MAX_MEMORY_PERCENT),
        vcpus: read.vcpus.unwrap_or(1),
        max_vcpus: read.max_vcpus,
        kernel_params: read.kernel_params.unwrap_or_default(),
        console_to_log: read.console_to_log.unwrap_or(false),
        boot_deadline: Duration::from_secs(read.boot_deadline_s.unwrap_or(30).into()),
        writable_layer: read.writable_layer,
        layer_template: prefix.join("share/nacre/writable-layer.ext4"),
        templates: read.templates.unwrap_or(true),
    };
    check(&config).map_err(|wrong| Error::Value {
        file: file.to_owned(),
        key: wrong.key,
        value: wrong.value.to_string(),
        reason: wrong.reason,
    })?;
    Ok(config)
}

/// A value that is out of its range.
struct Wrong {
    key: &'static str,
    value: u64,
    reason: String,
}

/// Checks that each value is in its range.
fn check(config: &Config) -> Result<(), Wrong> {
    let in_range = |key, value: u64, range: RangeInclusive<u64>, of: &str| {
        if range.contains(&value) {
            return Ok(());
        }
        let reason = format!("expected {of} in {}..={}", range.start(), range.end());
        Err(Wrong { key, value, reason })
    };
    if config.memory_mib < MIN_MEMORY_MIB {
        return Err(Wrong {
            key: "memory_mib",
            value: config.memory_mib.into(),
            reason: format!("expected at least {MIN_MEMORY_MIB}, which the guest's kernel and image need"),
        });
    }
    let (number, most) = ("a number", u64::from(MAX_VCPUS));
    in_range(
        "memory_mib",
        config.memory_mib.into(),
        0..=MAX_MEMORY_MIB.into(),
        number,
    )?;
    in_range(
        "max_memory_percent",
        config.max_memory_percent.into(),
        1..=100,
        "a percentage",
    )?;
    in_range("vcpus", config.vcpus.into(), 1..=most, number)?;
    if let Some(max) = config.max_vcpus {
        in_range("max_vcpus", max.into(), 1..=most, number)?;
    }
    let longest = u64::from(MAX_BOOT_DEADLINE_S);
    in_range(
        "boot_deadline_s",
        config.boot_deadline.as_secs(),
        1..=longest,
        "a number of seconds",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Error> {
        parse(text, Path::new("/p/etc/nacre/config.toml"), Path::new("/p"))
    }

    #[test]
    fn the_defaults_are_paths_of_the_installation() {
        let config = read("").unwrap();
        assert_eq!(config.kernel, Path::new("/p/share/nacre/vmlinux"));
        assert_eq!(config.vmm, Path::new("/p/bin/nacre-vmm"));
        assert_eq!((config.memory_mib, config.vcpus), (512, 1));
        assert_eq!(config.boot_deadline, Duration::from_secs(30));
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        for (text, words) in [
            (
                "memory_mb = 512\n",
                &["config.toml", "memory_mb", "line 1"] as &[&str],
            ),
            ("memory_mib = 8\n", &["config.toml", "memory_mib", "8", "64"]),
            ("vcpus = 0\n", &["config.toml", "vcpus = 0"]),
            ("max_vcpus = 33\n", &["config.toml", "max_vcpus = 33", "1..=32"]),
            (
                "max_memory_percent = 101\n",
                &["config.toml", "max_memory_percent = 101", "1..=100"],
            ),
            ("vcpus = 'two'\n", &["config.toml", "vcpus"]),
            ("boot_deadline_s = 0\n", &["config.toml", "boot_deadline_s"]),
        ] {
            let error = read(text).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text:?}: {error}");
            }
        }
    }
}
