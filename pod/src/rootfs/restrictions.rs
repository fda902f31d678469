//! What the host's mounts do not allow in files that a container sees: noexec, nosuid, nodev and nosymfollow. The
//! guest's kernel executes and opens them, so it must know. Read from /proc/self/mountinfo, and never from the file
//! system itself, which may hang. Called by [`super::detach`] before it changes a clone's attributes.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::sources;

/// The options that are passed on.
const OPTIONS: [&str; 4] = ["noexec", "nosuid", "nodev", "nosymfollow"];

/// A mount with such options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restriction {
    /// Where it is: below the source of a bind mount as [`Mounts::below`] returns it, in the tree that the guest sees
    /// as [`super::detach`] does.
    pub path: PathBuf,
    /// Its options.
    pub options: Vec<&'static str>,
}

/// The mounts of this process's namespace, as they were when it was made.
pub struct Mounts(Vec<Line>);

impl Mounts {
    /// Reads them.
    ///
    /// # Errors
    /// That of reading /proc/self/mountinfo.
    pub fn read() -> io::Result<Self> {
        let text = std::fs::read("/proc/self/mountinfo")?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// Those that `mountinfo` lists.
    pub(super) fn parse(mountinfo: &str) -> Self {
        Self(mountinfo.lines().filter_map(Line::parse).collect())
    }

    /// The mount points of file systems whose server may not respond.
    pub(super) fn served(&self) -> impl Iterator<Item = &Path> {
        let served = self.0.iter().filter(|line| line.is_served);
        served.map(|line| line.mount_point.as_path())
    }

    /// The restricted mounts of `source`, a descriptor of a file or directory: the one that it is in, and those below
    /// it if `recursive`.
    ///
    /// # Errors
    /// If /proc does not show the descriptor.
    pub fn below(&self, source: impl AsFd, recursive: bool) -> io::Result<Vec<Restriction>> {
        let number = source.as_fd().as_raw_fd();
        let path = std::fs::read_link(format!("/proc/self/fd/{number}"))?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let id = id
            .map(str::trim)
            .ok_or_else(|| io::Error::other("no mnt_id in fdinfo"))?;
        Ok(restrictions(&self.0, id, &path, recursive))
    }
}

/// One line of mountinfo.
struct Line {
    id: String,
    parent: String,
    mount_point: PathBuf,
    /// Those of [`OPTIONS`] that it has.
    options: Vec<&'static str>,
    is_served: bool,
}

impl Line {
    /// The fields: ID, parent, device, root, mount point, options, some more, " - ", the file system's type and more.
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').take(6).collect();
        let [id, parent, _, _, mount_point, options] = fields[..] else {
            return None;
        };
        let has = |option: &&str| options.split(',').any(|of_mount| of_mount == *option);
        Some(Self {
            id: id.to_owned(),
            parent: parent.to_owned(),
            mount_point: unescaped(mount_point),
            options: OPTIONS.into_iter().filter(has).collect(),
            is_served: sources::is_served(file_system.split(' ').next()?),
        })
    }

    fn restriction(&self, path: PathBuf) -> Option<Restriction> {
        (!self.options.is_empty()).then(|| Restriction {
            path,
            options: self.options.clone(),
        })
    }
}

/// Those of the mount `id`, which has `source`, and of the mounts that are below it. A mount that another one hides
/// may be among them.
fn restrictions(lines: &[Line], id: &str, source: &Path, recursive: bool) -> Vec<Restriction> {
    let mut tree = vec![id];
    let mut found = Vec::new();
    // A mount is listed after the one that it is on, unless that was moved.
    for line in lines {
        if line.id == id {
            found.extend(line.restriction(PathBuf::new()));
        } else if recursive
            && tree.contains(&line.parent.as_str())
            && let Ok(path) = line.mount_point.strip_prefix(source)
        {
            tree.push(&line.id);
            let path = path.to_owned();
            // The last of several at one path is the one that is seen.
            found.retain(|other: &Restriction| other.path != path || path.as_os_str().is_empty());
            found.extend(line.restriction(path));
        }
    }
    found
}

/// A mount point as mountinfo has it, with `\040` for a space.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = text.as_bytes().iter();
    let mut path = Vec::new();
    while let Some(byte) = bytes.next() {
        let rest = bytes.as_slice();
        let code = rest.get(..3).filter(|_| *byte == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                path.push(code);
                bytes.nth(2);
            }
            None => path.push(*byte),
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        20 1 0:20 / /data rw,nosuid,nodev,noexec,noatime shared:2 - tmpfs tmpfs rw\n\
        21 20 0:21 / /data/my\\040s rw,nodev - tmpfs tmpfs rw\n\
        22 20 0:22 / /data/plain rw - tmpfs tmpfs rw\n\
        23 22 0:23 / /data/plain/below rw,noexec - tmpfs tmpfs rw\n\
        24 1 0:24 / /database rw,noexec - tmpfs tmpfs rw\n\
        25 1 0:25 / /over rw,noexec - tmpfs tmpfs rw\n\
        26 25 0:26 / /over rw - tmpfs tmpfs rw\n";

    fn found(id: &str, source: &str, recursive: bool) -> String {
        let found = restrictions(&Mounts::parse(MOUNTS).0, id, Path::new(source), recursive);
        let text = |one: &Restriction| format!("{}:{}", one.path.display(), one.options.join("+"));
        found.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_mount_and_those_below_it_are_found() {
        let all = ":noexec+nosuid+nodev my s:nodev plain/below:noexec";
        assert_eq!(found("20", "/data", true), all);
        assert_eq!(found("20", "/data", false), ":noexec+nosuid+nodev");
        assert_eq!(found("20", "/data/file", true), ":noexec+nosuid+nodev");
        assert_eq!(found("22", "/data/plain", true), "below:noexec");
        assert_eq!(found("1", "/data", false), "");
        assert_eq!(found("1", "/etc", true), "");
        assert_eq!(found("26", "/over", true), "");
    }

    #[test]
    fn the_mounts_of_this_process_are_read() {
        let root = std::fs::File::open("/proc").unwrap();
        let mounts = Mounts::read().unwrap();
        let of_proc = mounts.below(&root, false).unwrap();
        let line = mounts
            .0
            .iter()
            .rfind(|line| line.mount_point == Path::new("/proc"));
        let noexec = line.is_some_and(|line| line.options.contains(&"noexec"));
        assert_eq!(of_proc.iter().any(|one| one.options.contains(&"noexec")), noexec);
    }
}
