//! Builds the archive in the kernel's cpio format "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Called by `main`; does no I/O.

use std::io::{self, Write as _};

use cpio::newc::{Builder, ModeFileType, trailer};

/// Directories, most of them mount points of the agent, in the order of the archive: a parent before its
/// children.
const DIRECTORIES: [&str; 6] = ["dev", "etc", "proc", "run", "sys", "tmp"];
/// Major and minor number of /dev/console. The kernel opens it before it runs /init, which mounts devtmpfs.
const CONSOLE: (u32, u32) = (5, 1);

/// An archive with `agent` as /init.
///
/// # Errors
/// If the agent is larger than 4 GiB, the limit of the format.
pub fn build(agent: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Vec::with_capacity(agent.len() + 4096);
    let mut inode = 0;
    let mut entry = |name: &str, kind: ModeFileType, mode: u32| {
        inode += 1;
        // Constant owner, time and inode numbers make builds reproducible.
        Builder::new(name)
            .ino(inode)
            .uid(0)
            .gid(0)
            .mtime(0)
            .mode(mode)
            .set_mode_file_type(kind)
    };
    for name in DIRECTORIES {
        let mode = if name == "tmp" { 0o1777 } else { 0o755 };
        entry(name, ModeFileType::Directory, mode)
            .nlink(2)
            .write(&mut archive, 0)
            .finish()?;
    }
    let console = entry("dev/console", ModeFileType::Char, 0o600)
        .rdev_major(CONSOLE.0)
        .rdev_minor(CONSOLE.1);
    console.write(&mut archive, 0).finish()?;
    let size = u32::try_from(agent.len()).map_err(io::Error::other)?;
    let mut file = entry("init", ModeFileType::Regular, 0o755).write(&mut archive, size);
    file.write_all(agent)?;
    file.finish()?;
    trailer(&mut archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn builds_are_reproducible() {
        let agent = b"\x7fELF and the rest";
        let first = build(agent).unwrap();
        assert_eq!(first, build(agent).unwrap());
        assert_ne!(first, build(b"another").unwrap());
    }

    #[test]
    fn the_archive_has_directories_console_and_init_only() {
        let bytes = build(b"the agent").unwrap();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            assert_eq!(
                (entry.mtime(), entry.uid(), entry.gid()),
                (0, 0, 0),
                "{}",
                entry.name()
            );
            seen.push((
                entry.name().to_owned(),
                entry.mode(),
                entry.rdev_major(),
                entry.rdev_minor(),
            ));
            if entry.name() == "init" {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).unwrap();
                assert_eq!(content, b"the agent");
            }
            rest = reader.finish().unwrap();
        }
        let mut expected: Vec<(String, u32, u32, u32)> = DIRECTORIES
            .iter()
            .map(|name| (String::from(*name), 0o40755, 0, 0))
            .collect();
        expected[5].1 = 0o41777;
        expected.push(("dev/console".to_owned(), 0o20600, 5, 1));
        expected.push(("init".to_owned(), 0o100755, 0, 0));
        assert_eq!(seen, expected);
    }
}
