//! Checks of containerd: whether it runs, its version, and whether it finds the shim. Called by `nacre
//! doctor`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Check;
use super::install::{SHIM, prefix};

const SHIM_LOOKUP: &str = "shim lookup";
/// Directory that containerd searches for shims after its PATH and its own directory.
const OPT: &str = "/opt/containerd/bin";

/// The group's checks.
pub fn checks(address: &Path) -> Vec<Check> {
    let pid = match server(address) {
        Ok(pid) => pid,
        Err(error) => {
            let fix = "start containerd (apt-get install containerd; systemctl start containerd),\n\
                       or give the path of its socket by --address or CONTAINERD_ADDRESS";
            return vec![
                Check::failed(
                    "running",
                    format!("connecting to {}: {error}", address.display()),
                    fix,
                ),
                Check::skipped("version", "containerd is not running"),
                Check::skipped(SHIM_LOOKUP, "containerd is not running"),
            ];
        }
    };
    let running = Check::ok("running", format!("pid {pid} at {}", address.display()));
    vec![running, version(pid), finds_shim(pid)]
}

/// The pid of the process that listens at `address` (SO_PEERCRED).
fn server(address: &Path) -> std::io::Result<i32> {
    let stream = UnixStream::connect(address)?;
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(peer.pid())
}

fn version(pid: i32) -> Check {
    const OLD: &str = "Nacre is tested with containerd 1.6, 1.7 and 2.x: apt-get install containerd";
    let output = match Command::new(format!("/proc/{pid}/exe")).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            return Check::warning(
                "version",
                format!("running /proc/{pid}/exe --version: {error}"),
                "run nacre as root",
            );
        }
    };
    match number(&output) {
        Some((text, found)) if found >= (1, 6) => Check::ok("version", text),
        Some((text, _)) => Check::failed("version", text, OLD),
        None => Check::warning(
            "version",
            format!("no version in the output of --version: {:?}", output.trim()),
            OLD,
        ),
    }
}

/// The first word that is a version, such as `1.6.20~ds1` or `v2.1.3`, with its major and minor number.
fn number(text: &str) -> Option<(&str, (u32, u32))> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').splitn(3, '.');
        Some((word, (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?)))
    })
}

fn finds_shim(pid: i32) -> Check {
    let (environment, program) = match (
        fs::read(format!("/proc/{pid}/environ")),
        fs::read_link(format!("/proc/{pid}/exe")),
    ) {
        (Ok(environment), Ok(program)) => (environment, program),
        (Err(error), _) | (_, Err(error)) => {
            return Check::warning(
                SHIM_LOOKUP,
                format!("reading environment and program of process {pid} in /proc: {error}"),
                "run nacre as root",
            );
        }
    };
    let directories = shim_search_path(&environment, &program);
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = |directory: &Path| {
        root.join(directory.strip_prefix("/").unwrap_or(directory))
            .join(SHIM)
    };
    let Some(found) = directories.iter().find(|directory| inside(directory).exists()) else {
        let searched: Vec<String> = directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        let own = prefix().map_or_else(|_| "PREFIX".to_owned(), |prefix| prefix.display().to_string());
        return Check::failed(
            SHIM_LOOKUP,
            format!("{SHIM} is in none of the directories {}", searched.join(":")),
            format!(
                "ln -s {own}/bin/{SHIM} {OPT}/, or add {own}/bin to containerd's PATH and restart containerd"
            ),
        );
    };
    let shim = found.join(SHIM);
    match (
        fs::canonicalize(inside(found)),
        prefix().and_then(|own| fs::canonicalize(own.join("bin").join(SHIM))),
    ) {
        (Ok(theirs), Ok(own)) if same_file(&theirs, &own) => {
            Check::ok(SHIM_LOOKUP, shim.display().to_string())
        }
        _ => Check::warning(
            SHIM_LOOKUP,
            format!("{}, which is not the shim of this installation", shim.display()),
            "this host has two installations: remove one, or run the nacre of the other",
        ),
    }
}

/// The directories in which a containerd with this environment and this executable looks for shims, in order.
fn shim_search_path(environment: &[u8], program: &Path) -> Vec<PathBuf> {
    let path = environment
        .split(|byte| *byte == 0)
        .find_map(|pair| pair.strip_prefix(b"PATH="));
    let mut directories: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(OsStr::from_bytes(path)).collect())
        .unwrap_or_default();
    directories.extend(program.parent().map(Path::to_owned));
    directories.push(PathBuf::from(OPT));
    directories
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn versions_of_all_builds_are_parsed() {
        assert_eq!(
            number("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1")
                .unwrap()
                .1,
            (1, 6)
        );
        assert_eq!(
            number("containerd github.com/containerd/containerd/v2 v2.1.3 abc")
                .unwrap()
                .1,
            (2, 1)
        );
        assert!(number("nothing here").is_none());
    }

    #[test]
    fn the_search_path_is_path_then_program_then_opt() {
        let found = shim_search_path(b"A=b\0PATH=/x/bin:/y\0", Path::new("/usr/bin/containerd"));
        let names: Vec<_> = found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["/x/bin", "/y", "/usr/bin", OPT]);
    }

    #[test]
    fn a_missing_containerd_fails_and_skips_the_rest() {
        let checks = checks(Path::new("/no/such.sock"));
        let statuses: Vec<_> = checks.iter().map(|check| check.status).collect();
        assert_eq!(statuses, [Status::Failed, Status::Skipped, Status::Skipped]);
        assert!(checks[0].found.contains("/no/such.sock"));
    }

    #[test]
    fn the_pid_of_the_server_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().join("sock");
        let _listener = std::os::unix::net::UnixListener::bind(&address).unwrap();
        assert_eq!(
            u32::try_from(server(&address).unwrap()).unwrap(),
            std::process::id()
        );
    }
}
