//! What `nacre-posix` runs in containers: it observes behaviours of the file system of a directory, or
//! exercises the contents of files there. It needs nothing of Nacre and runs on any directory of any Linux:
//! `nacre-files behaviours DIRECTORY [NAME…]`, `nacre-files exercise DIRECTORY`. Never judges a behaviour.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
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
    }
    Ok(())
}
