//! What the benchmark compares: the installed build of Nacre, runc, the null shim, the installed build without
//! templates, and with `--other` a second build.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::installation::{self, SHIM, TEMPLATES_OFF, config_text};
use tempfile::TempDir;

/// The programs of an installed build.
const PROGRAMS: [&str; 3] = [SHIM, "bin/nacre-vmm", "bin/nacre"];

/// A runtime as `ctr` calls it.
#[derive(Debug, Clone)]
pub struct MeasuredRuntime {
    /// Its name in the output and in ids of containers.
    pub name: &'static str,
    /// Value of `ctr run --runtime`: a name, or an absolute path.
    pub runtime: String,
    /// Further arguments of `ctr run`.
    pub arguments: Vec<String>,
    /// False for the null shim, whose containers print nothing and have no process.
    pub runs_processes: bool,
    /// Left out of the rounds once it fails, where the run ends if another one does.
    pub is_optional: bool,
}

/// An installed build of Nacre.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its shim.
    pub shim_runtime: MeasuredRuntime,
    /// Directory with its `bin`, `share/nacre` and `etc/nacre`.
    pub prefix: PathBuf,
    /// Its pods' guests are to continue from templates, not to boot.
    pub has_templates: bool,
}

/// Everything that takes part in a run.
#[derive(Debug)]
pub struct MeasuredRuntimes {
    /// The build in PATH.
    pub nacre: Build,
    /// What it is compared with.
    pub runc: MeasuredRuntime,
    /// The null shim: what ctr and containerd take themselves.
    pub floor: MeasuredRuntime,
    /// The build that `--other` names.
    pub other: Option<Build>,
    /// The build in PATH with templates off.
    pub cold: Build,
    /// The prefix of `cold`.
    _cold_prefix: TempDir,
}

impl MeasuredRuntimes {
    /// Finds the installation in PATH and the null shim beside this program.
    ///
    /// # Errors
    /// If one of them, or the build at the prefix `other`, is not installed.
    pub fn find(other: Option<&Path>) -> Result<Self> {
        let this_program = std::env::current_exe().context("finding this program's own file")?;
        let null_shim = this_program.with_file_name("nacre-null-shim");
        ensure!(
            null_shim.exists(),
            "{} does not exist; run: cargo build -p nacre-tests",
            null_shim.display()
        );
        let prefix = installation::prefix()?;
        let (cold, cold_prefix) = cold_build(&prefix).context("installing the build without templates")?;
        Ok(Self {
            nacre: Build {
                shim_runtime: shim_runtime("nacre", Runtime::Nacre.name()),
                has_templates: makes_templates(&prefix) && !turns_templates_off(&prefix)?,
                prefix,
            },
            runc: shim_runtime("runc", Runtime::Runc.name()),
            floor: MeasuredRuntime {
                runs_processes: false,
                ..shim_runtime("floor", &null_shim.to_string_lossy())
            },
            other: other.map(other_build).transpose()?,
            cold,
            _cold_prefix: cold_prefix,
        })
    }

    /// The builds of Nacre: the installed one, then the other.
    pub fn builds(&self) -> impl Iterator<Item = &Build> {
        std::iter::once(&self.nacre).chain(&self.other)
    }

    /// The build whose shim has the name `name`; none for runc and the null shim.
    pub fn build(&self, name: &str) -> Option<&Build> {
        let mut builds = self.builds().chain([&self.cold]);
        builds.find(|build| build.shim_runtime.name == name)
    }

    /// Everything that can run a container: nacre, runc, the null shim, the other build.
    pub fn all(&self) -> Vec<&MeasuredRuntime> {
        let other = self.other.as_ref().map(|build| &build.shim_runtime);
        [&self.nacre.shim_runtime, &self.runc, &self.floor]
            .into_iter()
            .chain(other)
            .collect()
    }
}

fn shim_runtime(name: &'static str, runtime: &str) -> MeasuredRuntime {
    MeasuredRuntime {
        name,
        runtime: runtime.to_owned(),
        arguments: Vec::new(),
        runs_processes: true,
        is_optional: false,
    }
}

/// The runtimes besides runc that can be peers and whose program is in PATH; prints which are not.
pub fn further_peers() -> Vec<MeasuredRuntime> {
    let mut peers = Vec::new();
    for (name, program) in [("crun", "crun"), ("kata", "containerd-shim-kata-v2")] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        match program_in(&path, program) {
            Some(file) => peers.push(further_peer(name, &file)),
            None => eprintln!("start: {name} is not measured: {program} is not in PATH"),
        }
    }
    peers
}

/// The peer whose program is `file`. The shim of runc runs crun.
fn further_peer(name: &'static str, file: &Path) -> MeasuredRuntime {
    let (runtime, arguments) = match name {
        "crun" => {
            let binary = file.to_string_lossy().into_owned();
            (Runtime::Runc.name(), vec!["--runc-binary".to_owned(), binary])
        }
        _ => ("io.containerd.kata.v2", Vec::new()),
    };
    MeasuredRuntime {
        arguments,
        is_optional: true,
        ..shim_runtime(name, runtime)
    }
}

/// The file of `program` in the first directory of `path` that has one.
fn program_in(path: &OsStr, program: &str) -> Option<PathBuf> {
    let mut files = std::env::split_paths(path).map(|directory| directory.join(program));
    files.find(|file| file.is_file())
}

fn other_build(prefix: &Path) -> Result<Build> {
    let prefix = fs::canonicalize(prefix).with_context(|| format!("the build at {}", prefix.display()))?;
    let shim = prefix.join(SHIM);
    ensure!(shim.exists(), "{} does not exist", shim.display());
    Ok(Build {
        shim_runtime: shim_runtime("other", &shim.to_string_lossy()),
        has_templates: makes_templates(&prefix),
        prefix,
    })
}

/// Whether config.toml of the build at `prefix` has the line [`TEMPLATES_OFF`].
fn turns_templates_off(prefix: &Path) -> Result<bool> {
    let text = config_text(&prefix.join("etc/nacre/config.toml"))?.unwrap_or_default();
    Ok(text.lines().any(|line| line.trim() == TEMPLATES_OFF.trim()))
}

/// Whether the build at `prefix` can start pods from templates: it has the command to make one.
fn makes_templates(prefix: &Path) -> bool {
    let mut command = Command::new(prefix.join("bin/nacre"));
    command.args(["template", "--help"]).stdin(Stdio::null());
    command.output().is_ok_and(|output| output.status.success())
}

impl Build {
    /// Makes the template from which this build's pods without limits start; nothing if it has none.
    ///
    /// # Errors
    /// If the command fails.
    pub fn make_template(&self) -> Result<()> {
        if !self.has_templates {
            return Ok(());
        }
        let mut command = Command::new(self.prefix.join("bin/nacre"));
        command.args(["template", "build"]).stdin(Stdio::null());
        let output = command
            .output()
            .with_context(|| format!("starting {command:?}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}\n{text}", output.status);
        Ok(())
    }
}

/// A copy of the build at `prefix` whose config.toml turns templates off. The programs are copies because each
/// finds its config.toml by its own path, with symbolic links resolved.
fn cold_build(prefix: &Path) -> Result<(Build, TempDir)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    for folder in ["bin", "share", "etc/nacre"] {
        fs::create_dir_all(path.join(folder))?;
    }
    for program in PROGRAMS {
        let from = prefix.join(program);
        fs::copy(&from, path.join(program)).with_context(|| format!("copying {}", from.display()))?;
    }
    symlink(prefix.join("share/nacre"), path.join("share/nacre"))?;
    let build = Build {
        shim_runtime: shim_runtime("cold", &path.join(SHIM).to_string_lossy()),
        prefix: path.to_owned(),
        has_templates: false,
    };
    let config = path.join("etc/nacre/config.toml");
    let mut text = config_text(&prefix.join("etc/nacre/config.toml"))?.unwrap_or_default();
    // A build that does not know the key refuses it, and all of its starts are cold.
    if makes_templates(prefix) {
        text = without_templates(&text);
    }
    fs::write(config, text)?;
    Ok((build, directory))
}

/// `config`, the text of a config.toml, with templates off.
fn without_templates(config: &str) -> String {
    let is_other = |line: &&str| line.split('=').next().is_none_or(|key| key.trim() != "templates");
    let kept = config.lines().filter(is_other);
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    // First, since a table would take the key that follows it.
    TEMPLATES_OFF.to_owned() + &kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_of_runc_runs_crun() {
        let crun = further_peer("crun", Path::new("/opt/crun"));
        assert_eq!(crun.runtime, Runtime::Runc.name());
        assert_eq!(crun.arguments, ["--runc-binary", "/opt/crun"]);
        let kata = further_peer("kata", Path::new("/opt/containerd-shim-kata-v2"));
        assert_eq!(kata.runtime, "io.containerd.kata.v2");
        assert!(kata.arguments.is_empty() && crun.is_optional && kata.is_optional);
    }

    #[test]
    fn a_program_is_looked_for_in_all_directories() {
        let path = OsStr::new("/nowhere:/bin:/usr/bin");
        assert_eq!(program_in(path, "sh"), Some("/bin/sh".into()));
        assert_eq!(program_in(path, "no-such-program"), None);
    }

    #[test]
    fn a_cold_configuration_keeps_the_other_keys() {
        assert_eq!(without_templates(""), "templates = false\n");
        let text = without_templates("vcpus = 2\ntemplates = true\nmemory_mib = 256");
        assert_eq!(text, "templates = false\nvcpus = 2\nmemory_mib = 256\n");
    }
}
