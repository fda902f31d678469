//! The poststop hooks that are still due: each container that has some has a file in the pod's directory, from before
//! its first hook runs until its poststop hooks do. If the shim is killed, the command `delete` runs those that are
//! left, as `runc delete --force` does. A file is removed just before its hooks run, so they run at most once.
//! Called by the sandbox and by `clean_up`.

use std::path::{Path, PathBuf};

use crate::hooks::{Hooks, Point};
use crate::{log, state};

/// In a pod's directory: one file per container, named by its id.
const DIRECTORY: &str = "poststop";
/// Most files that are read: more than a VM has containers.
const MAX_FILES: usize = 4096;

/// The poststop hooks of one container.
#[derive(Debug, Clone)]
pub struct Poststop {
    hooks: Hooks,
    file: PathBuf,
}

impl Poststop {
    /// Those of `hooks`, of container `id` in the pod with this directory.
    #[must_use]
    pub fn new(directory: &Path, id: &str, hooks: &Hooks) -> Self {
        Self {
            hooks: hooks.only_poststop(),
            file: directory.join(DIRECTORY).join(format!("{id}.json")),
        }
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.hooks.has(Point::Poststop)
    }

    /// Records that they are due. A failure is logged: then they run unless the shim is killed.
    pub fn record(&self) {
        if self.is_empty() {
            return;
        }
        let recorded = state::make_directory(self.file.parent().unwrap_or(&self.file))
            .and_then(|()| state::write(&self.file, &self.hooks));
        if let Err(error) = recorded {
            log::error(format_args!("recording poststop hooks: {error}"));
        }
    }

    /// They are not due: no hook of the container has run.
    pub fn forget(&self) {
        if !self.is_empty()
            && let Err(error) = state::remove_file(&self.file)
        {
            log::error(format_args!("poststop hooks: {error}"));
        }
    }

    /// Runs them; failures are only logged. `pid` is the VMM's.
    pub async fn run(&self, pid: u32) {
        self.forget();
        self.hooks.run_all(Point::Poststop, pid).await;
    }
}

/// Runs the hooks that are due in the pod with this `directory`, whose shim was killed.
///
/// # Errors
/// If the runtime can't be started.
pub fn run_left(directory: &Path) -> std::io::Result<()> {
    let entries = std::fs::read_dir(directory.join(DIRECTORY));
    let files: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_FILES)
        .map(|entry| entry.path())
        .collect();
    if files.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for file in files {
        match state::read::<Hooks>(&file) {
            Ok(Some(hooks)) => runtime.block_on(Poststop { hooks, file }.run(0)),
            Ok(None) => {}
            Err(error) => log::error(format_args!("poststop hooks: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with_hooks(directory: &Path, id: &str) -> Poststop {
        let hook = |text: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", text]});
        let spec = json!({"hooks": {
            "prestart": [hook("echo prestart >> ran")],
            "poststop": [hook("cat >> ran; echo >> ran"), hook("exit 1"), hook("echo last >> ran")]
        }});
        Poststop::new(directory, id, &Hooks::parse(id, directory, &spec).unwrap())
    }

    #[test]
    fn hooks_that_are_due_run_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        with_hooks(path, "a").record();
        with_hooks(path, "b").record();
        with_hooks(path, "b").forget();
        run_left(path).unwrap();
        run_left(path).unwrap();
        let ran = std::fs::read_to_string(path.join("ran")).unwrap();
        let lines: Vec<&str> = ran.lines().collect();
        let [state, "last"] = lines.as_slice() else {
            panic!("{ran}")
        };
        assert!(
            state.contains(r#""status":"stopped""#) && state.contains(r#""id":"a""#),
            "{state}"
        );
        assert!(std::fs::read_dir(path.join(DIRECTORY)).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn hooks_that_have_run_are_not_due() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let hooks = with_hooks(path, "a");
        hooks.record();
        hooks.run(7).await;
        let ran = std::fs::read(path.join("ran")).unwrap();
        tokio::task::spawn_blocking({
            let path = path.to_owned();
            move || run_left(&path).unwrap()
        })
        .await
        .unwrap();
        assert_eq!(std::fs::read(path.join("ran")).unwrap(), ran);
        let none = Poststop::new(path, "c", &Hooks::default());
        none.record();
        assert!(none.is_empty() && std::fs::read_dir(path.join(DIRECTORY)).unwrap().next().is_none());
    }
}
