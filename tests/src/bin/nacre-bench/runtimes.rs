//! What the benchmark compares: the installed build of Nacre, runc, the null shim, and with `--other` a
//! second build.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::installation::{self, SHIM};

/// A runtime as `ctr` calls it.
#[derive(Debug, Clone)]
pub struct MeasuredRuntime {
    /// Its name in the output and in ids of containers.
    pub name: &'static str,
    /// Value of `ctr run --runtime`: a name, or an absolute path.
    pub runtime: String,
    /// False for the null shim, whose containers print nothing and have no process.
    pub runs_processes: bool,
}

/// An installed build of Nacre.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its shim.
    pub shim_runtime: MeasuredRuntime,
    /// Directory with its `bin`, `share/nacre` and `etc/nacre`.
    pub prefix: PathBuf,
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
        Ok(Self {
            nacre: Build {
                shim_runtime: shim_runtime("nacre", Runtime::Nacre.name()),
                prefix: installation::prefix()?,
            },
            runc: shim_runtime("runc", Runtime::Runc.name()),
            floor: MeasuredRuntime {
                runs_processes: false,
                ..shim_runtime("floor", &null_shim.to_string_lossy())
            },
            other: other.map(other_build).transpose()?,
        })
    }

    /// The builds of Nacre: the installed one, then the other.
    pub fn builds(&self) -> impl Iterator<Item = &Build> {
        std::iter::once(&self.nacre).chain(&self.other)
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
        runs_processes: true,
    }
}

fn other_build(prefix: &Path) -> Result<Build> {
    let prefix = fs::canonicalize(prefix).with_context(|| format!("the build at {}", prefix.display()))?;
    let shim = prefix.join(SHIM);
    ensure!(shim.exists(), "{} does not exist", shim.display());
    Ok(Build {
        shim_runtime: shim_runtime("other", &shim.to_string_lossy()),
        prefix,
    })
}
