//! The containers in which `nacre-files` runs: one for each runtime and place.

use anyhow::{Context as _, Result, ensure};
use nacre_tests::container_program::Program;
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::{Run, fresh_id};
use nacre_tests::posix::Behaviour;
use nacre_tests::posix::exercise::{SUMS, checksums};
use nacre_tests::posix::root::{Place, Volume};

/// Files of the exerciser.
const FILES: usize = 3;
/// After so many operations a line shows that a long run goes on.
const PROGRESS: u64 = 100_000;
/// What the container prints last: the exit code of `nacre-files`.
const END: &str = "exit code ";

/// Starts the containers. All of them share the program.
pub struct Containers {
    program: Program,
}

impl Containers {
    /// Prepares the program.
    ///
    /// # Errors
    /// If it can't be copied.
    pub fn new() -> Result<Self> {
        Ok(Self {
            program: Program::new("nacre-files")?,
        })
    }

    /// What each of `chosen` shows at `place`, None for those that the program did not reach.
    ///
    /// # Errors
    /// If the container can't be run.
    pub fn observe(
        &self,
        runtime: Runtime,
        place: Place,
        chosen: &[&'static Behaviour],
    ) -> Result<Vec<Option<String>>> {
        let volume = Volume::new()?;
        let names = chosen.iter().map(|behaviour| behaviour.name.to_owned());
        let arguments = ["behaviours".to_owned(), place.directory().to_owned()];
        let lines = self.run(runtime, &volume, arguments.into_iter().chain(names).collect())?;
        let observed = |behaviour: &Behaviour| {
            let prefix = format!("{}: ", behaviour.name);
            let line = lines.iter().find_map(|line| line.strip_prefix(&prefix));
            line.map(str::to_owned)
        };
        Ok(chosen.iter().map(|behaviour| observed(behaviour)).collect())
    }

    /// Exercises files under Nacre and, on a volume, compares them with what the host sees afterwards.
    /// Returns the report's lines.
    ///
    /// # Errors
    /// If an operation went wrong.
    pub fn exercise(&self, place: Place, seed: u64, operations: u64) -> Result<Vec<String>> {
        let volume = Volume::new()?;
        let arguments = format!(
            "exercise {} --seed {seed} --operations {operations} --files {FILES}",
            place.directory()
        );
        let lines = self.run(
            Runtime::Nacre,
            &volume,
            arguments.split(' ').map(str::to_owned).collect(),
        )?;
        let text = lines.join("\n");
        ensure!(
            lines.last().is_some_and(|last| *last == format!("{END}0")),
            "{text}"
        );
        if place == Place::Volume {
            let expected = lines.iter().find_map(|line| line.strip_prefix(SUMS));
            let found = checksums(&volume.path(), FILES)?;
            ensure!(
                expected == Some(&found),
                "the host sees other files than the container: {found}\n{text}"
            );
        }
        let report = lines
            .into_iter()
            .filter(|line| !line.starts_with(END) && !line.ends_with(" operations"));
        Ok(report.collect())
    }

    /// Runs `nacre-files` to its end; returns its output's lines. Each may take as long as one command of
    /// ctr.
    fn run(&self, runtime: Runtime, volume: &Volume, arguments: Vec<String>) -> Result<Vec<String>> {
        let script = format!("mkdir {}; \"$@\" 2>&1; echo {END}$?", Place::Rootfs.directory());
        let program = self.program.command();
        let words = ["sh", "-c", &script, "sh"];
        let command: Vec<&str> = words
            .into_iter()
            .chain(program.iter().chain(&arguments).map(String::as_str))
            .collect();
        let (program, volume) = (self.program.mount(), volume.mount());
        let run = Run {
            flags: &["--mount", &program, "--mount", &volume],
            command: &command,
            runtime,
            ..Run::default()
        };
        let mut running = run.spawn(&fresh_id("posix"))?;
        let mut lines = Vec::new();
        loop {
            let line = running
                .line()
                .with_context(|| format!("after {:?}", lines.last()))?;
            let end = line.starts_with(END);
            if let Some(count) = line
                .strip_suffix(" operations")
                .and_then(|count| count.parse::<u64>().ok())
                && count % PROGRESS == 0
            {
                println!("           {count} operations");
            }
            lines.push(line);
            if end {
                running.wait_with_output()?;
                return Ok(lines);
            }
        }
    }
}
