//! The configuration file, read by the shim when it starts and by `nacre doctor`. It is
//! `PREFIX/etc/nacre/config.toml`, where `PREFIX/bin` contains the running program. If that file does not
//! exist, it is `/etc/nacre/config.toml`. If that does not exist either, the defaults apply.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Least memory of a guest, MiB: its kernel and image do not fit into less.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Memory for the guest's kernel and agent, MiB, added to the memory limit of a pod.
pub const GUEST_MIB: u32 = 128;
const MAX_MEMORY_MIB: u32 = 1024 * 1024;
const MAX_VCPUS: u8 = 32;
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
    /// Memory of a guest whose pod has no memory limit, MiB.
    pub memory_mib: u32,
    /// vCPUs of a guest whose pod has no CPU quota, 1..=32.
    pub vcpus: u8,
    /// Appended to the guest's kernel command line.
    pub kernel_params: String,
    /// Whether the guest's console is also copied to the shim's log.
    pub console_to_log: bool,
    /// How long a guest may take from its start until its agent is ready, 1 to 600 seconds.
    pub boot_deadline: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    vmm: Option<PathBuf>,
    memory_mib: Option<u32>,
    vcpus: Option<u8>,
    kernel_params: Option<String>,
    console_to_log: Option<bool>,
    boot_deadline_s: Option<u32>,
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
        vcpus: read.vcpus.unwrap_or(1),
        kernel_params: read.kernel_params.unwrap_or_default(),
        console_to_log: read.console_to_log.unwrap_or(false),
        boot_deadline: Duration::from_secs(read.boot_deadline_s.unwrap_or(30).into()),
    };
    let refuse = |key, value: u64, reason: String| {
        Err(Error::Value {
            file: file.to_owned(),
            key,
            value: value.to_string(),
            reason,
        })
    };
    if config.memory_mib < MIN_MEMORY_MIB {
        let reason = format!("expected at least {MIN_MEMORY_MIB}, which the guest's kernel and image need");
        return refuse("memory_mib", config.memory_mib.into(), reason);
    }
    if config.memory_mib > MAX_MEMORY_MIB {
        return refuse(
            "memory_mib",
            config.memory_mib.into(),
            format!("expected at most {MAX_MEMORY_MIB}"),
        );
    }
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return refuse(
            "vcpus",
            config.vcpus.into(),
            format!("expected a number in 1..={MAX_VCPUS}"),
        );
    }
    let deadline = config.boot_deadline.as_secs();
    if !(1..=u64::from(MAX_BOOT_DEADLINE_S)).contains(&deadline) {
        return refuse(
            "boot_deadline_s",
            deadline,
            format!("expected a number of seconds in 1..={MAX_BOOT_DEADLINE_S}"),
        );
    }
    Ok(config)
}

/// A VM's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u8,
}

impl Config {
    /// The size of a pod's VM: its memory limit (bytes) plus [`GUEST_MIB`], and as many vCPUs as its CPU
    /// quota needs; the configured size for a limit that is not set.
    #[must_use]
    pub fn size(&self, memory_limit: Option<i64>, cpu_quota: Option<i64>, cpu_period: Option<u64>) -> Size {
        let memory_mib = memory_limit
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0)
            .map(|bytes| bytes.div_ceil(1024 * 1024).saturating_add(GUEST_MIB.into()))
            .map_or(self.memory_mib, |mib| {
                u32::try_from(mib).unwrap_or(u32::MAX).min(MAX_MEMORY_MIB)
            });
        let vcpus = match (
            cpu_quota.and_then(|quota| u64::try_from(quota).ok()),
            cpu_period.unwrap_or(100_000),
        ) {
            (Some(quota), period) if quota > 0 && period > 0 => u8::try_from(quota.div_ceil(period))
                .unwrap_or(MAX_VCPUS)
                .clamp(1, MAX_VCPUS),
            _ => self.vcpus,
        };
        Size { memory_mib, vcpus }
    }
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
            ("vcpus = 'two'\n", &["config.toml", "vcpus"]),
            ("boot_deadline_s = 0\n", &["config.toml", "boot_deadline_s"]),
        ] {
            let error = read(text).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text:?}: {error}");
            }
        }
    }

    #[test]
    fn limits_decide_the_size() {
        let config = read("").unwrap();
        assert_eq!(
            config.size(None, None, None),
            Size {
                memory_mib: 512,
                vcpus: 1
            }
        );
        assert_eq!(
            config.size(Some(64 << 20), Some(50_000), Some(100_000)),
            Size {
                memory_mib: 192,
                vcpus: 1
            }
        );
        assert_eq!(
            config.size(Some(1), Some(250_000), None),
            Size {
                memory_mib: 129,
                vcpus: 3
            }
        );
        assert_eq!(
            config.size(Some(-1), Some(-1), Some(0)),
            Size {
                memory_mib: 512,
                vcpus: 1
            }
        );
        assert_eq!(config.size(Some(i64::MAX), Some(i64::MAX), Some(1)).vcpus, 32);
    }
}
