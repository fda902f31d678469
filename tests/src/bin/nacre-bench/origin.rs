//! Where the guests of measured pods came from. All pods of a row continue from a template, or all boot, as the row
//! says: otherwise there is no row, but an error. Nothing here happens while a time is taken.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::templates::{Appears, NONE_YET, directory};

use crate::containers::{Running, id, nacre};
use crate::runtimes::{Build, MeasuredRuntimes};

/// The beginning of the origin of a guest that continued from a template; the template's key follows.
const TEMPLATE: &str = "template ";
/// The origin of a guest whose build records none.
const UNRECORDED: &str = "boot";

/// Checks where the guest of the running pod `id` came from.
///
/// # Errors
/// If it has booted and the build's pods continue from templates, or the other way round.
pub fn check(build: &Build, id: &str) -> Result<()> {
    let origin = of(build, id)?;
    check_origin(Some(&origin), build.has_templates).with_context(|| id.to_owned())
}

/// Checks the origin of a pod in its timeline.
///
/// # Errors
/// As [`check`].
pub fn check_origin(origin: Option<&str>, from_template: bool) -> Result<()> {
    let origin = origin.unwrap_or(UNRECORDED);
    let expected = if from_template { TEMPLATE } else { UNRECORDED };
    ensure!(
        origin.starts_with(expected),
        "the guest came from {origin:?}, and this row is of guests that come from a {}",
        expected.trim_end()
    );
    Ok(())
}

/// The origin of a pod's guest; older builds record none, and boot.
fn of(build: &Build, id: &str) -> Result<String> {
    let shown = nacre(build, &["inspect", id])?;
    let origin = shown["timeline"]["origin"].as_str();
    Ok(origin.unwrap_or(UNRECORDED).to_owned())
}

/// Starts `sh -c script` in a pod of the build, as [`Running::start`], and checks where its guest came from.
///
/// # Errors
/// If it does not start, or as [`check`].
pub fn start(build: &Build, id: &str, script: &str) -> Result<Running> {
    let running = Running::start(&build.shim_runtime, id, script)?;
    check(build, id)?;
    Ok(running)
}

/// What a pod has shown, and every pod of its kind must until [`Kinds::verify`].
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    /// Without the reason of a boot.
    origin: String,
    /// The inode of the template's directory. The template of a guest that could not continue is removed; one that
    /// is made instead has another inode.
    inode: Option<u64>,
}

impl Shown {
    fn new(origin: &str) -> Result<Self> {
        let Some(key) = origin.strip_prefix(TEMPLATE) else {
            return Ok(Self {
                origin: UNRECORDED.to_owned(),
                inode: None,
            });
        };
        let directory = directory().join(key);
        let metadata = fs::metadata(&directory);
        let metadata = metadata.with_context(|| format!("template {key}, which a pod has just used"))?;
        Ok(Self {
            origin: origin.to_owned(),
            inode: Some(metadata.ino()),
        })
    }
}

/// Pods of one build that `ctr run` starts with the same flags. They end before anyone can ask where they came from,
/// so pods of their kind are asked before and afterwards.
struct Kind<'a> {
    build: &'a Build,
    flags: &'a [&'a str],
    shown: Shown,
}

impl<'a> Kind<'a> {
    /// Waits until the build has the template, if it has any, which a first pod has it made.
    fn prepare(build: &'a Build, flags: &'a [&'a str]) -> Result<Self> {
        let appears = build.has_templates.then(Appears::watch).transpose()?;
        let mut origin = probe(build, flags)?;
        if let Some(appears) = appears
            && origin == NONE_YET
        {
            appears.wait()?;
            origin = probe(build, flags)?;
        }
        check_origin(Some(&origin), build.has_templates)?;
        let shown = Shown::new(&origin)?;
        Ok(Self { build, flags, shown })
    }
}

/// The origin of a pod that comes and goes.
fn probe(build: &Build, flags: &[&str]) -> Result<String> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let id = id(
        &format!("{}-probe", build.shim_runtime.name),
        NEXT.fetch_add(1, Ordering::Relaxed),
    );
    let running = Running::detached(&build.shim_runtime, flags, &id, "exec sleep 1000000")?;
    let origin = of(build, &id)?;
    running.end()?;
    Ok(origin)
}

/// The kinds of pods that a row is of, one of each build that it measures.
pub struct Kinds<'a>(Vec<Kind<'a>>);

impl<'a> Kinds<'a> {
    /// Has the templates of all `builds` made, for pods that `ctr run` starts with `flags`.
    ///
    /// # Errors
    /// If the guest of one comes from elsewhere than the build's are to.
    pub fn prepare(builds: impl IntoIterator<Item = &'a Build>, flags: &'a [&'a str]) -> Result<Self> {
        let mut kinds = Vec::new();
        for build in builds {
            let kind = Kind::prepare(build, flags);
            kinds.push(kind.with_context(|| format!("a pod of {}", build.shim_runtime.name))?);
        }
        // Making a template removes those that its build takes for stale.
        for kind in &kinds {
            let shown = Shown::new(&kind.shown.origin)?;
            ensure!(shown == kind.shown, "{:?} became {shown:?}", kind.shown);
        }
        Ok(Self(kinds))
    }

    /// Those of all builds, also with templates off.
    ///
    /// # Errors
    /// As [`Kinds::prepare`].
    pub fn of_all(runtimes: &'a MeasuredRuntimes, flags: &'a [&'a str]) -> Result<Self> {
        Self::prepare(runtimes.builds().chain([&runtimes.cold]), flags)
    }

    /// Checks that the guests of all pods since [`Kinds::prepare`] came from where the builds' are to.
    ///
    /// # Errors
    /// If one of now does not, or its template has been removed since, as the VMM's refusal of it does.
    pub fn verify(&self) -> Result<()> {
        for Kind { build, flags, shown } in &self.0 {
            let name = build.shim_runtime.name;
            let now = Shown::new(&probe(build, flags)?).with_context(|| format!("a pod of {name}"))?;
            ensure!(
                now == *shown,
                "not all guests of {name} came from the same: before {shown:?}, afterwards {now:?}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_of_templates_or_of_boots() {
        for boots in [
            UNRECORDED,
            NONE_YET,
            "boot: template 12 can't be used: another host",
        ] {
            check_origin(Some(boots), false).unwrap();
            let error = check_origin(Some(boots), true).unwrap_err().to_string();
            assert!(
                error.contains(boots) && error.ends_with("from a template"),
                "{error}"
            );
            assert_eq!(Shown::new(boots).unwrap(), Shown::new(UNRECORDED).unwrap());
        }
        check_origin(Some("template 0123456789abcdef"), true).unwrap();
        assert!(check_origin(Some("template 0123456789abcdef"), false).is_err());
    }

    #[test]
    fn a_template_that_is_gone_is_noticed() {
        let error = Shown::new("template of-no-pod").unwrap_err().to_string();
        assert!(error.contains("of-no-pod"), "{error}");
    }
}
