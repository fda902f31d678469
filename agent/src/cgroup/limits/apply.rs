//! Writes settings to the files of a cgroup. Called through [`super::Setting`] lists only; never decides what
//! to write.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use super::{Change, Setting};
use crate::cgroup::writer;
use crate::error::Error;

/// Files for which the kernel reclaims memory before write(2) returns, if the processes use more.
const RECLAIMING: [&str; 3] = ["memory.high", "memory.max", "memory.reclaim"];

/// As [`apply`] for a cgroup that processes run in: what reclaims their memory does not block the event loop.
pub async fn update(directory: &Path, settings: &[Setting]) -> Result<(), Error> {
    for setting in settings {
        if let Change::Set(text) = &setting.change
            && RECLAIMING.contains(&&*setting.file)
            && text.lines().count() == 1
        {
            let written = writer::write(&directory.join(&setting.file), text).await;
            written.map_err(|error| failure(directory, setting, &error))?;
        } else {
            apply(directory, std::slice::from_ref(setting))?;
        }
    }
    Ok(())
}

/// Applies `settings` to the cgroup in `directory`, in order, up to the first that fails.
///
/// # Errors
/// [`Error::BadSpec`] with the setting's field if the kernel refuses the value or has no such file.
pub fn apply(directory: &Path, settings: &[Setting]) -> Result<(), Error> {
    settings.iter().try_for_each(|setting| {
        let file = directory.join(&setting.file);
        let written = match &setting.change {
            Change::Set(text) => write_lines(&file, text),
            Change::SetIfPresent(text) => match write_lines(&file, text) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && directory.exists() => Ok(()),
                written => written,
            },
            Change::SetSecondField(second) => fs::read_to_string(&file).and_then(|text| {
                let first = text.split_whitespace().next().unwrap_or("max");
                write_lines(&file, &format!("{first} {second}"))
            }),
            Change::RequireAtMost(most) => return require_at_most(&file, setting.field, *most),
        };
        written.map_err(|error| failure(directory, setting, &error))
    })
}

/// Writes each line of `text` by a write(2) of its own: cgroup files take one setting per write.
fn write_lines(file: &Path, text: &str) -> io::Result<()> {
    let mut opened = fs::File::options().write(true).open(file)?;
    if text.is_empty() {
        return opened.write_all(b"\n");
    }
    text.lines()
        .try_for_each(|line| opened.write_all(line.as_bytes()))
}

fn require_at_most(file: &Path, field: &'static str, most: i64) -> Result<(), Error> {
    let text = fs::read_to_string(file).map_err(Error::file("reading", file))?;
    match text.trim().parse::<i64>() {
        Ok(used) if used <= most => Ok(()),
        _ => Err(Error::bad_spec(
            field,
            format!("{} bytes are in use, more than {most}", text.trim()),
        )),
    }
}

fn failure(directory: &Path, setting: &Setting, error: &io::Error) -> Error {
    let file = &setting.file;
    if error.kind() == io::ErrorKind::NotFound && directory.exists() {
        return Error::bad_spec(
            setting.field,
            format!("the guest's kernel has no cgroup file {file}"),
        );
    }
    let value = match &setting.change {
        Change::Set(text) | Change::SetIfPresent(text) => text.chars().take(64).collect(),
        Change::SetSecondField(second) => format!("… {second}"),
        Change::RequireAtMost(most) => format!("<= {most}"),
    };
    Error::bad_spec(setting.field, format!("writing {value:?} to {file}: {error}"))
}
