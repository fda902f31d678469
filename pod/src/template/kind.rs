//! What a template is of. Pods whose kinds are equal continue from the same template.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nacre_protocol::config::Config;
use nacre_protocol::state::hashed_name;
use serde::{Deserialize, Serialize};

use crate::size::{Host, Limits, VmSize};

/// Everything that decides what a guest is once it has booted, except the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// [`nacre_protocol::BUILD_ID`].
    pub build: String,
    /// The VMM's program.
    pub vmm: Version,
    /// The guest kernel.
    pub kernel: Version,
    /// The guest image.
    pub initrd: Version,
    /// Appended to the kernel's command line.
    pub kernel_params: String,
    /// Memory at boot, MiB.
    pub memory_mib: u32,
    /// vCPUs that are online at boot.
    pub vcpus: u8,
    /// The most vCPUs.
    pub max_vcpus: u8,
}

/// A file, and what changes when it is written or replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Where it is.
    pub path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// The change time in seconds, and nanoseconds.
    changed: (i64, i64),
}

impl Version {
    /// The file that is at `path` now.
    ///
    /// # Errors
    /// As stat(2), with the path.
    fn of(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = fs::metadata(path).map_err(named)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether the file is still the same.
    fn is_current(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

impl Kind {
    /// The kind of a guest that boots with `size`.
    ///
    /// # Errors
    /// If a file of the installation is missing; the error names it.
    pub fn of(config: &Config, size: VmSize) -> io::Result<Self> {
        Ok(Self {
            build: nacre_protocol::BUILD_ID.to_owned(),
            vmm: Version::of(&config.vmm)?,
            kernel: Version::of(&config.kernel)?,
            initrd: Version::of(&config.initrd)?,
            kernel_params: config.kernel_params.clone(),
            memory_mib: size.boot_mib,
            vcpus: size.vcpus,
            max_vcpus: size.max_vcpus,
        })
    }

    /// The kind of a pod without limits on this host, which most pods have.
    ///
    /// # Errors
    /// As [`Kind::of`].
    pub fn usual(config: &Config) -> io::Result<Self> {
        let host = Host::read(&[]);
        let size = VmSize::plan(&Limits::default(), config, host);
        Self::of(config, size.in_template(config, host).unwrap_or(size))
    }

    /// The name of the template's directory: 16 hex digits.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn key(&self) -> io::Result<String> {
        Ok(hashed_name(&[&serde_json::to_string(self)?]))
    }

    /// Whether the files that it is of are still the same.
    #[must_use]
    pub fn is_current(&self) -> bool {
        [&self.vmm, &self.kernel, &self.initrd]
            .into_iter()
            .all(Version::is_current)
    }
}
