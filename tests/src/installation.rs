//! Where Nacre is installed: the prefix of the shim in PATH, as `tests/lab/run` sets it. Used by the tests
//! and the benchmark.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

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

/// The config.toml of an installation under which every guest boots, such as that of `tests/all templates-off`.
pub const TEMPLATES_OFF: &str = "templates = false\n";

/// Whether pods of the installation may continue from templates: all may, but for those of `tests/all templates-off`.
///
/// # Errors
/// If there is no installation, or its config.toml can't be read.
pub fn has_templates() -> Result<bool> {
    Ok(config_text(&config_file()?)?.as_deref() != Some(TEMPLATES_OFF))
}

/// The file that the shim reads first.
fn config_file() -> Result<PathBuf> {
    Ok(prefix()?.join("etc/nacre/config.toml"))
}

/// The text of the config.toml `file`; None if there is none.
///
/// # Errors
/// If it can't be read.
pub fn config_text(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Nacre's config.toml below the prefix, which on drop is again as it was.
pub struct Config {
    file: PathBuf,
    before: Option<String>,
}

impl Config {
    /// Writes `toml` to the path that the shim reads first. Templates stay off if they are.
    ///
    /// # Errors
    /// If there is another config.toml, or it can't be written.
    pub fn with(toml: &str) -> Result<Self> {
        let file = config_file()?;
        let before = config_text(&file)?;
        ensure!(
            before.as_deref().is_none_or(|text| text == TEMPLATES_OFF),
            "{} exists; remove it, since the tests create and delete it",
            file.display()
        );
        fs::create_dir_all(file.parent().context("config.toml has no parent directory")?)?;
        let text = before.clone().unwrap_or_default() + toml;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        Ok(Self { file, before })
    }

    fn restore(&self) -> std::io::Result<()> {
        match &self.before {
            Some(text) => fs::write(&self.file, text),
            None => fs::remove_file(&self.file),
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("restoring {}: {error}", self.file.display());
        }
    }
}
