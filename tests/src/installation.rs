//! Where Nacre is installed: the prefix of the shim in PATH, as `tests/lab/run` sets it. Used by the tests
//! and the benchmark.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// The shim's file below a prefix.
pub const SHIM: &str = "bin/containerd-shim-nacre-v2";

/// The prefix of the installation whose shim is in PATH: the directory with its `bin`, `share/nacre` and
/// `etc/nacre`.
///
/// # Errors
/// If no directory of PATH has the shim.
pub fn prefix() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let shim = std::env::split_paths(&path)
        .filter_map(|directory| Some(directory.parent()?.join(SHIM)))
        .find(|file| file.exists())
        .context("containerd-shim-nacre-v2 is not in PATH; use tests/lab/run")?;
    let shim = fs::canonicalize(shim)?;
    let prefix = shim.parent().and_then(std::path::Path::parent);
    Ok(prefix.context("the shim is not in a prefix's bin")?.to_owned())
}

/// Nacre's config.toml below the prefix, removed on drop.
pub struct Config(PathBuf);

impl Config {
    /// Writes `toml` to the path that the shim reads first.
    ///
    /// # Errors
    /// If there is a config.toml, or it can't be written.
    pub fn with(toml: &str) -> Result<Self> {
        let file = prefix()?.join("etc/nacre/config.toml");
        ensure!(
            !file.exists(),
            "{} exists; remove it, since the tests create and delete it",
            file.display()
        );
        fs::create_dir_all(file.parent().context("config.toml has no parent directory")?)?;
        fs::write(&file, toml).with_context(|| format!("writing {}", file.display()))?;
        Ok(Self(file))
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}
