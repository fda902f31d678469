//! Which tests a run of a test program executes: those named on the command line, and, if
//! several runs share a queue directory, of these only the ones that no other run has taken. `tests/all`
//! starts one run per lab.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Command-line arguments of the test programs.
#[derive(Debug, Default, clap::Args)]
pub struct Selection {
    /// Run only the tests that no other run with the same directory has taken.
    #[arg(long, value_name = "DIRECTORY")]
    queue: Option<PathBuf>,
    /// Number of this run, written into the queue's file of each test that it takes.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    worker: u32,
    /// Of the selected tests run only this one, which failed before. May be given several times.
    #[arg(long, value_name = "NAME")]
    again: Vec<String>,
    /// Run only the tests with these names; a name that is not a test's selects all tests whose names contain
    /// it.
    names: Vec<String>,
}

impl Selection {
    /// Whether the command line selects the test `name`, which is one of `all`.
    pub fn selects(&self, name: &str, all: &[&str]) -> bool {
        let selected = |wanted: &String| {
            if all.contains(&wanted.as_str()) {
                name == wanted
            } else {
                name.contains(wanted.as_str())
            }
        };
        (self.names.is_empty() || self.names.iter().any(selected))
            && (self.again.is_empty() || self.again.iter().any(|again| again == name))
    }

    /// Whether the command line has the whole name `name`.
    pub fn names_one(&self, name: &str) -> bool {
        self.names.iter().any(|wanted| wanted == name)
    }

    /// Takes test number `number` from the queue; false if another run has it. Without a queue, always true.
    ///
    /// # Errors
    /// If the file in the queue directory cannot be written.
    pub fn take(&self, number: usize) -> Result<bool> {
        let Some(queue) = &self.queue else {
            return Ok(true);
        };
        let path = queue.join(number.to_string());
        match File::create_new(&path) {
            Ok(mut file) => {
                writeln!(file, "{}", self.worker).with_context(|| format!("writing {}", path.display()))?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).with_context(|| format!("creating {}", path.display())),
        }
    }
}

/// Options that a test needs besides containerd's version and the snapshotter; each ends in a space.
#[derive(Debug, Default)]
pub struct Options {
    /// Of the lab.
    pub lab: String,
    /// Of the test program.
    pub program: String,
}

/// The command that runs the test `name` of this program alone, under the same containerd.
pub fn command_for(name: &str) -> String {
    command_with(&Options::default(), name)
}

/// The same, with `options`.
pub fn command_with(options: &Options, name: &str) -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let directory = std::env::current_dir().unwrap_or_default();
    let version = std::env::var("NACRE_LAB_CONTAINERD").ok();
    command_line(
        version.as_deref(),
        std::env::var("CONTAINERD_SNAPSHOTTER").ok().as_deref(),
        program.strip_prefix(&directory).unwrap_or(&program),
        options,
        name,
    )
}

fn command_line(
    version: Option<&str>,
    snapshotter: Option<&str>,
    program: &Path,
    options: &Options,
    name: &str,
) -> String {
    let snapshotter = snapshotter.map_or_else(String::new, |name| format!("--snapshotter {name} "));
    let environment = if program.file_name() == Some("nacre-faults".as_ref()) {
        "NACRE_PREFIX=nacre-faults "
    } else {
        ""
    };
    let version = match version {
        None | Some("1.6") => String::new(),
        Some(version) => format!("--containerd {version} "),
    };
    let name = name.replace('\'', r"'\''");
    format!(
        "{environment}tests/lab/run {version}{snapshotter}{}-- {} {}'{name}'",
        options.lab,
        program.display(),
        options.program
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(names: &[&str], queue: Option<&Path>, worker: u32) -> Selection {
        Selection {
            queue: queue.map(Path::to_owned),
            worker,
            again: Vec::new(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_whole_name_selects_one_test_and_a_part_all_that_contain_it() {
        let all = ["exec", "exec: a user", "run"];
        let selected = |names: &[&str]| -> Vec<&str> {
            let selection = selection(names, None, 1);
            all.into_iter()
                .filter(|name| selection.selects(name, &all))
                .collect()
        };
        assert_eq!(selected(&[]), all);
        assert_eq!(selected(&["exec"]), ["exec"]);
        assert_eq!(selected(&["xe", "run"]), all);
        assert_eq!(selected(&["none"]), [""; 0]);
    }

    #[test]
    fn a_repeated_test_is_one_of_the_selected() {
        let all = ["exec", "exec: a user", "run"];
        let mut selection = selection(&["exec:"], None, 1);
        selection.again = vec!["exec: a user".to_owned(), "run".to_owned()];
        let selected = all.map(|name| selection.selects(name, &all));
        assert_eq!(selected, [false, true, false]);
    }

    #[test]
    fn each_test_of_a_queue_is_taken_once() {
        let queue = tempfile::tempdir().unwrap();
        let (first, second) = (
            selection(&[], Some(queue.path()), 1),
            selection(&[], Some(queue.path()), 2),
        );
        assert!(first.take(0).unwrap() && second.take(1).unwrap());
        assert!(!second.take(0).unwrap() && !first.take(1).unwrap());
        assert_eq!(std::fs::read_to_string(queue.path().join("1")).unwrap(), "2\n");
        let missing = selection(&[], Some(&queue.path().join("missing")), 1);
        assert!(missing.take(0).is_err());
        assert!(selection(&[], None, 1).take(0).unwrap());
    }

    #[test]
    fn the_command_names_the_containerd_and_quotes_the_test() {
        let program = Path::new("target/debug/nacre-e2e");
        let none = Options::default();
        assert_eq!(
            command_line(Some("2.1"), None, program, &none, "a pod's end"),
            r"tests/lab/run --containerd 2.1 -- target/debug/nacre-e2e 'a pod'\''s end'"
        );
        let options = Options {
            lab: "--cri ".to_owned(),
            program: "--handler nacre-sandbox ".to_owned(),
        };
        assert_eq!(
            command_line(
                Some("2.1"),
                None,
                Path::new("target/debug/nacre-cri"),
                &options,
                "x"
            ),
            "tests/lab/run --containerd 2.1 --cri -- target/debug/nacre-cri --handler nacre-sandbox 'x'"
        );
        assert_eq!(
            command_line(Some("1.6"), None, program, &none, "x"),
            "tests/lab/run -- target/debug/nacre-e2e 'x'"
        );
        assert_eq!(
            command_line(Some("2.1"), Some("erofs"), program, &none, "x"),
            "tests/lab/run --containerd 2.1 --snapshotter erofs -- target/debug/nacre-e2e 'x'"
        );
        assert_eq!(
            command_line(None, None, Path::new("target/debug/nacre-faults"), &none, "x"),
            "NACRE_PREFIX=nacre-faults tests/lab/run -- target/debug/nacre-faults 'x'"
        );
    }
}
