//! How a process's command is found and executed: by runc's rules, with runc's words where it fails. Called in the
//! process that becomes the command, inside the container's root, as its user; never before that, so that no path of
//! the container means anything outside.

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

/// Device number of /dev/null (Documentation/admin-guide/devices.txt).
const NULL: (u32, u32) = (1, 3);
/// Most of /etc/passwd that is read, bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// All that execve takes.
#[derive(Clone)]
pub struct Command {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Command {
    /// Finds the command of `process`; `find_home`: its HOME is a placeholder for what the container's /etc/passwd says.
    ///
    /// # Errors
    /// What runc says where it can't be executed.
    pub fn find(process: &Process, find_home: bool) -> Result<Self, String> {
        let arguments = process.args().clone().unwrap_or_default();
        let mut environment = process.env().clone().unwrap_or_default();
        if find_home {
            let home = home_of(process.user().uid());
            environment.retain(|variable| !variable.starts_with("HOME="));
            environment.push(format!("HOME={home}"));
        }
        let name = arguments.first().map(String::as_str).unwrap_or_default();
        let failed = |reason: String| format!("exec: {name:?}: {reason}");
        let path = find(name, &environment).map_err(failed)?;
        // Rust's own start-up ignores it, and what is ignored stays so in the command.
        signal::reset_pipe().map_err(|error| failed(error.to_string()))?;
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

    /// Where it is in the container.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.path.as_bytes()))
    }

    /// Becomes the command: nothing but execve is left to be done.
    pub fn execute(&self) -> Result<Infallible, Errno> {
        execve(&self.path, &self.arguments, &self.environment)
    }
}

/// Puts the container's /dev/null in the place of the guest's, for reading and writing, where that is a standard
/// stream. What the container has at that path counts only if it is that device.
pub fn reopen_null() -> std::io::Result<()> {
    let Some(null) = open_own("/dev/null", OFlags::RDWR).filter(is_null) else {
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

fn is_null(file: &impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == libc::makedev(NULL.0, NULL.1)
    })
}

/// Opens a file of the container's: never one that only a link of /proc leads to, which may be outside, and never
/// waiting for whoever is at its other end.
pub fn open_own(path: &str, access: OFlags) -> Option<File> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .ok()
        .map(File::from)
}

/// The home directory of `uid` in the container.
fn home_of(uid: u32) -> String {
    plain_file("/etc/passwd")
        .and_then(|passwd| home(passwd, uid))
        .unwrap_or_else(|| "/".to_owned())
}

/// The beginning of a file of the container's; None where it is none, such as a FIFO that nobody ever writes to.
fn plain_file(path: &str) -> Option<impl std::io::BufRead> {
    let file = open_own(path, OFlags::RDONLY)?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file.then(|| BufReader::new(file.take(MAX_PASSWD)))
}

/// The home directory of `uid`, in the format of passwd(5).
fn home(passwd: impl std::io::BufRead, uid: u32) -> Option<String> {
    passwd.lines().map_while(Result::ok).find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2).map(str::to_owned))?
    })
}

/// Where `name` is executed from. The error is the end of a sentence.
fn find(name: &str, environment: &[String]) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
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
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| "executable file not found in $PATH".to_owned())
}

fn executable(path: &Path) -> Result<(), Errno> {
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
    fn home_directories() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad line\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(home(passwd.as_bytes(), 0).as_deref(), Some("/root"));
        assert_eq!(home(passwd.as_bytes(), 1000).as_deref(), Some("/home/u"));
        assert_eq!(home(passwd.as_bytes(), 7), None);
    }

    #[test]
    fn only_a_plain_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        nix::unistd::mkfifo(path("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(path("file"), "u:x:7:7::/home/u:\n").unwrap();
        assert!(plain_file(&path("fifo")).is_none());
        assert!(plain_file(&path("missing")).is_none());
        assert_eq!(
            home(plain_file(&path("file")).unwrap(), 7).as_deref(),
            Some("/home/u")
        );
    }

    #[test]
    fn finds_as_a_shell_does() {
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
    fn without_a_path_nothing_is_found() {
        assert_eq!(
            find("true", &[]).unwrap_err(),
            "executable file not found in $PATH"
        );
    }
}
