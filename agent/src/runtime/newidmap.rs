//! newuidmap(1) and newgidmap(1). libcontainer runs them, from its PATH, to write the id maps of a user
//! namespace that have more than one range. In a guest both are links to the agent's own program.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use oci_spec::runtime::Spec;

/// The helper's PATH: the directory of the two links.
pub const DIRECTORY: &str = "/run/nacre/ids";
/// The programs, each with the file in `/proc/<pid>` that it writes.
const PROGRAMS: [(&str, &str); 2] = [("newuidmap", "uid_map"), ("newgidmap", "gid_map")];

/// Creates the links if `spec` has id maps of more than one range; `program` is the agent's own program.
pub fn install(spec: &Spec, program: &Path) -> io::Result<()> {
    let linux = spec.linux().as_ref();
    let ranges = linux.map_or(0, |linux| {
        let count = |mappings: &Option<Vec<_>>| mappings.as_ref().map_or(0, Vec::len);
        count(linux.uid_mappings()).max(count(linux.gid_mappings()))
    });
    if ranges < 2 {
        return Ok(());
    }
    std::fs::create_dir_all(DIRECTORY)?;
    for (name, _) in PROGRAMS {
        match symlink(program, Path::new(DIRECTORY).join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The file in `/proc/<pid>` that a program of this name writes; None for any other name.
pub fn file(name: &OsStr) -> Option<&'static str> {
    let name = Path::new(name).file_name()?;
    let (_, file) = PROGRAMS.iter().find(|(program, _)| name == *program)?;
    Some(file)
}

/// Writes `file` of a process. The arguments are its pid and, for each range: the first id inside the
/// namespace, the first id outside, the number of ids.
pub fn write(file: &str, arguments: &[OsString]) -> io::Result<()> {
    let numbers: Option<Vec<u32>> = arguments
        .iter()
        .map(|argument| argument.to_str()?.parse().ok())
        .collect();
    let numbers = numbers.unwrap_or_default();
    let (pid, ranges) = numbers.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::write(format!("/proc/{pid}/{file}"), lines(ranges))
}

fn lines(ranges: &[u32]) -> String {
    let line = |range: &[u32]| {
        let numbers: Vec<String> = range.iter().map(u32::to_string).collect();
        format!("{}\n", numbers.join(" "))
    };
    ranges.chunks(3).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_a_line() {
        assert_eq!(lines(&[0, 1000, 1, 1, 5000, 10]), "0 1000 1\n1 5000 10\n");
        assert_eq!(file(OsStr::new("/run/nacre/ids/newuidmap")), Some("uid_map"));
        assert_eq!(file(OsStr::new("newgidmap")), Some("gid_map"));
        assert_eq!(file(OsStr::new("nacre-helper")), None);
        for wrong in [&[][..], &["x"], &["-1", "0"]] {
            let arguments: Vec<OsString> = wrong.iter().map(OsString::from).collect();
            assert!(write("uid_map", &arguments).is_err());
        }
    }
}
