//! What `nacre-posix`, `nacre-bench` and an end-to-end test run in containers: it observes behaviours of the file system of
//! a directory, exercises the contents of files there, makes commits, or takes the time of operations. It needs nothing of
//! Nacre and runs on any directory of any Linux: `nacre-files behaviours DIRECTORY [NAME…]`, `nacre-files exercise
//! DIRECTORY`, `nacre-files commits PLACE…`, `nacre-files times DIRECTORY`. Never judges a behaviour.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use nacre_tests::commits::{self, Writer};
use nacre_tests::file_times;
use nacre_tests::posix::{self, exercise};

/// Observes the file system of a directory.
#[derive(Parser)]
enum Arguments {
    /// Print a line `name: observation` for each behaviour.
    Behaviours {
        /// An empty directory.
        directory: PathBuf,
        /// Only these behaviours.
        names: Vec<String>,
    },
    /// Make random operations on files and compare their contents with a model.
    Exercise(exercise::Options),
    /// Make one commit after the other, at all places in turn, and print a line `PLACE COUNT` after each: the
    /// index of the place, and how many commits are durable there.
    Commits {
        /// Only write, so that no commit is durable.
        #[arg(long)]
        unsynced: bool,
        /// Directories, which are created, and block devices.
        #[arg(required = true)]
        places: Vec<PathBuf>,
    },
    /// Print how long operations on files take, in one line.
    Times {
        /// An empty directory.
        directory: PathBuf,
    },
    /// Print a line `PLACE COUNT` for each place: how many commits are whole there.
    Count {
        /// Directories with commits.
        places: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments {
        Arguments::Behaviours { directory, names } => {
            std::env::set_current_dir(&directory)?;
            for (number, behaviour) in posix::behaviours().into_iter().enumerate() {
                if names.is_empty() || names.iter().any(|name| name == behaviour.name) {
                    println!("{}: {}", behaviour.name, posix::observe(behaviour, number));
                }
            }
        }
        Arguments::Exercise(options) => {
            ensure!(
                options.directory.is_dir(),
                "{} is not a directory",
                options.directory.display()
            );
            let report = exercise::run(&options, |number| println!("{number} operations"))?;
            print!("{report}");
        }
        Arguments::Commits { unsynced, places } => {
            let writers = places.iter().map(|place| Writer::new(place, !unsynced));
            let mut writers = writers.collect::<Result<Vec<Writer>>>()?;
            for number in 0..commits::MAX_COMMITS {
                for (index, writer) in writers.iter_mut().enumerate() {
                    writer.commit(number)?;
                    println!("{index} {}", number + 1);
                }
            }
        }
        Arguments::Times { directory } => {
            // Of a container's cache only the host could drop anything.
            let times = file_times::run(&directory, || Ok(()))?;
            println!("{}", file_times::line(&times));
        }
        Arguments::Count { places } => {
            for (index, place) in places.iter().enumerate() {
                println!("{index} {}", commits::count(place)?);
            }
        }
    }
    Ok(())
}
