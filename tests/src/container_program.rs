//! A program of this crate as containers get it: a host directory with the program, the dynamic loader and
//! the libraries that it needs, mounted read-only. An image needs nothing for it. Called by `nacre-posix`,
//! `nacre-bench` and `nacre-e2e`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::elf;
use crate::guests::initramfs::{LOADER, loaded_libraries};

/// Where the directory is mounted in a container.
const MOUNTED: &str = "/nacre-program";

/// The directory on the host, removed on drop.
pub struct Program {
    name: &'static str,
    directory: TempDir,
}

impl Program {
    /// Copies the program called `name`, which is beside this one, and this process's libraries, which it
    /// needs, too.
    ///
    /// # Errors
    /// If it is not there or can't be copied.
    pub fn new(name: &'static str) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let program = std::env::current_exe()?.with_file_name(name);
        let copy = |file: &Path| -> Result<()> {
            let file_name = file.file_name().context("a library without a name")?;
            let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            let target = directory.path().join(file_name);
            fs::write(&target, elf::loaded_part(&bytes)?)?;
            Ok(fs::set_permissions(target, fs::Permissions::from_mode(0o755))?)
        };
        copy(&program)?;
        loaded_libraries()?.iter().try_for_each(|file| copy(file))?;
        Ok(Self { name, directory })
    }

    /// The flag of `ctr run --mount` that makes it visible.
    pub fn mount(&self) -> String {
        format!(
            "type=bind,src={},dst={MOUNTED},options=rbind:ro",
            self.directory.path().display()
        )
    }

    /// The words of a command line that runs it.
    pub fn command(&self) -> [String; 4] {
        let loader = Path::new(LOADER)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        [
            format!("{MOUNTED}/{loader}"),
            "--library-path".to_owned(),
            MOUNTED.to_owned(),
            format!("{MOUNTED}/{}", self.name),
        ]
    }
}
