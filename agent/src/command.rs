//! Finds a process's command and executes it, by runc's rules and with runc's error texts. Called in the
//! process that becomes the command, inside the container's root and as its user; never earlier, so that a
//! path of the container is never resolved outside of it.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve};
use oci_spec::runtime::Process;
use rustix::fs::{Access, CWD, FileType, Mode, OFlags, ResolveFlags, access, openat2};

use crate::signal;
use crate::spec::set_variable;

/// Device number of /dev/null (Documentation/admin-guide/devices.txt).
const NULL: (u32, u32) = (1, 3);
/// Most bytes of /etc/passwd that are read.
const MAX_PASSWD: u64 = 1 << 20;

/// The arguments of execve(2).
#[derive(Clone)]
pub struct Command {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Command {
    /// Finds the command of `process` in the container. If `find_home` is set, HOME in the process object is
    /// a placeholder, and the user's home directory in the container's /etc/passwd replaces it.
    ///
    /// # Errors
    /// runc's text for a command that is missing or can't be executed.
    pub fn find(process: &Process, find_home: bool) -> Result<Self, String> {
        let arguments = process.args().clone().unwrap_or_default();
        let mut environment = process.env().clone().unwrap_or_default();
        if find_home {
            let home = home_of(process.user().uid());
            set_variable(&mut environment, format!("HOME={home}"));
        }
        let name = arguments.first().map(String::as_str).unwrap_or_default();
        let failed = |reason: String| format!("exec: {name:?}: {reason}");
        let path = find(name, &environment).map_err(failed)?;
        signal::restore_default_sigpipe().map_err(|error| failed(error.to_string()))?;
        let string = |bytes: &[u8]| CString::new(bytes).map_err(|error| failed(error.to_string()));
        let strings = |strings: &[String]| -> Result<Vec<CString>, String> {
            strings.iter().map(|text| string(text.as_bytes())).collect()
        };
        Ok(Self {
            path: string(path.as_os_str().as_encoded_bytes())?,
            arguments: strings(&arguments)?,
            environment: strings(&environment)?,
        })
    }

    /// The path of the executable in the container.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.path.as_bytes()))
    }

    /// The environment, each variable as NAME=VALUE.
    pub fn environment(&self) -> Vec<String> {
        let text = |variable: &CString| variable.to_string_lossy().into_owned();
        self.environment.iter().map(text).collect()
    }

    /// Calls execve(2), and nothing else: a seccomp filter may already be loaded. Returns only its error.
    pub fn execute(&self) -> Result<Infallible, Errno> {
        execve(&self.path, &self.arguments, &self.environment)
    }
}

/// Replaces each standard stream that is the guest's /dev/null by the container's, opened for reading and
/// writing. Does nothing if the container's /dev/null is not the null device.
pub fn reopen_null() -> std::io::Result<()> {
    let Some(null) = open_in_container("/dev/null", OFlags::RDWR).filter(is_null) else {
        return Ok(());
    };
    if is_null(&std::io::stdin()) {
        dup2_stdin(&null)?;
    }
    if is_null(&std::io::stdout()) {
        dup2_stdout(&null)?;
    }
    if is_null(&std::io::stderr()) {
        dup2_stderr(&null)?;
    }
    Ok(())
}

/// Whether `file` is the null device.
pub fn is_null(file: &impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == libc::makedev(NULL.0, NULL.1)
    })
}

/// Opens a file in the container's root. Magic links in /proc are not followed, because they may lead outside
/// of the container (RESOLVE_NO_MAGICLINKS), and opening a FIFO does not block (O_NONBLOCK).
pub fn open_in_container(path: &str, access: OFlags) -> Option<File> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .ok()
        .map(File::from)
}

/// The home directory of `uid` in the container's /etc/passwd; `/` if the file has no entry for it.
fn home_of(uid: u32) -> String {
    open_regular_file("/etc/passwd")
        .and_then(|passwd| home_in(passwd, uid))
        .unwrap_or_else(|| "/".to_owned())
}

/// The first [`MAX_PASSWD`] bytes of a regular file; None for anything else, such as a FIFO without a writer.
fn open_regular_file(path: &str) -> Option<impl std::io::BufRead> {
    let file = open_in_container(path, OFlags::RDONLY)?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file.then(|| BufReader::new(file.take(MAX_PASSWD)))
}

/// The home directory of `uid` in a file in the format of passwd(5).
fn home_in(passwd: impl std::io::BufRead, uid: u32) -> Option<String> {
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2).map(str::to_owned))?
    })
}

/// The path that `name` is executed from: `name` itself if it has a slash, else the first match in PATH. The
/// error is runc's text after `exec: "name": `.
fn find(name: &str, environment: &[String]) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match check_executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::EACCES) => Err("permission denied".to_owned()),
            Err(Errno::EISDIR) => Err("is a directory".to_owned()),
            Err(reason) => Err(format!("stat {name}: {}", reason.desc().to_lowercase())),
        };
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or_default();
    path.split(':')
        .filter(|_| !path.is_empty())
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|candidate| check_executable(candidate).is_ok())
        .ok_or_else(|| "executable file not found in $PATH".to_owned())
}

fn check_executable(path: &Path) -> Result<(), Errno> {
    let raw = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    if std::fs::metadata(path).map_err(raw)?.is_dir() {
        return Err(Errno::EISDIR);
    }
    access(path, Access::EXEC_OK).map_err(|error| Errno::from_raw(error.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn home_is_read_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad line\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(home_in(passwd.as_bytes(), 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd.as_bytes(), 1000).as_deref(), Some("/home/u"));
        assert_eq!(home_in(passwd.as_bytes(), 7), None);
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        nix::unistd::mkfifo(path("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(path("file"), "u:x:7:7::/home/u:\n").unwrap();
        assert!(open_regular_file(&path("fifo")).is_none());
        assert!(open_regular_file(&path("missing")).is_none());
        assert_eq!(
            home_in(open_regular_file(&path("file")).unwrap(), 7).as_deref(),
            Some("/home/u")
        );
    }

    #[test]
    fn a_command_is_found_by_path_or_refused_with_runcs_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let command = file("command", 0o755);
        let text = file("text", 0o644);
        let path = format!("PATH=/no/such:{}", directory.path().display());
        let find = |name: &str| find(name, &["A=b".to_owned(), path.clone()]);
        assert_eq!(find("command").unwrap(), command);
        assert_eq!(find(command.to_str().unwrap()).unwrap(), command);
        assert_eq!(find("missing").unwrap_err(), "executable file not found in $PATH");
        assert_eq!(find("text").unwrap_err(), "executable file not found in $PATH");
        assert_eq!(find(text.to_str().unwrap()).unwrap_err(), "permission denied");
        assert_eq!(
            find("/no/such").unwrap_err(),
            "stat /no/such: no such file or directory"
        );
        assert_eq!(
            find(directory.path().to_str().unwrap()).unwrap_err(),
            "is a directory"
        );
    }

    #[test]
    fn an_empty_path_variable_finds_nothing() {
        assert_eq!(
            find("true", &[]).unwrap_err(),
            "executable file not found in $PATH"
        );
    }
}
