//! Files that are open and have no name any more.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, fallocate, fchmod, fstat, linkat, rmdir, unlink,
};

use super::super::Behaviour;
use super::super::mapping::{Access, Mapping, Sharing};
use super::super::process::{Child, in_child};
use super::sys::{create, execute, list, mkdir, must, open, put, put_program, said, shown, words, yes};

/// A file with this content that is open and has no name.
fn unlinked(content: &[u8]) -> anyhow::Result<File> {
    put("f", content)?;
    let file = open("f", OFlags::RDWR)?;
    unlink("f")?;
    Ok(file)
}

fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn whole(file: &mut File) -> anyhow::Result<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

pub const BEHAVIOURS: &[Behaviour] = &[
    must("an unlinked file is read and written", "abcdef", || {
        let mut file = unlinked(b"abc")?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(b"def")?;
        whole(&mut file)
    }),
    must("fstat of an unlinked file", "0 3 7", || {
        let mut file = unlinked(b"abc")?;
        let before = fstat(&file)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(b"more")?;
        words([
            before.st_nlink.to_string(),
            before.st_size.to_string(),
            fstat(&file)?.st_size.to_string(),
        ])
    }),
    must(
        "ftruncate, fchmod and fsync of an unlinked file",
        "ok ok ok 100 600",
        || {
            let file = unlinked(b"abc")?;
            let results = [
                said(file.set_len(100)),
                said(fchmod(&file, Mode::from_raw_mode(0o600))),
                said(file.sync_all()),
            ];
            let stat = fstat(&file)?;
            words([
                results.join(" "),
                stat.st_size.to_string(),
                format!("{:o}", stat.st_mode & 0o7777),
            ])
        },
    ),
    must("an unlinked file is allocated and mapped", "ok x 4096", || {
        let mut file = unlinked(b"")?;
        let allocated = said(fallocate(&file, FallocateFlags::empty(), 0, 4096));
        Mapping::new(&file, 0, 4096, Sharing::Shared, Access::Write)?.write(0, b"x");
        let text = whole(&mut file)?;
        words([
            allocated,
            text.trim_end_matches('\0').to_owned(),
            text.len().to_string(),
        ])
    }),
    must("the path of an unlinked file in /proc", "yes", || {
        let file = unlinked(b"")?;
        let path = std::fs::read_link(path_of(&file))?;
        Ok(yes(path.to_string_lossy().ends_with("/f (deleted)")))
    }),
    must("an unlinked file is opened again by /proc", "abc ok abcx", || {
        let mut file = unlinked(b"abc")?;
        let mut again = File::open(path_of(&file))?;
        let read = whole(&mut again)?;
        let writer = File::options().append(true).open(path_of(&file));
        let wrote = said(writer.and_then(|mut writer| writer.write_all(b"x")));
        words([read, wrote, whole(&mut file)?])
    }),
    must("an unlinked file gets no name", "ENOENT", || {
        let file = unlinked(b"abc")?;
        let link = linkat(CWD, path_of(&file), CWD, "g", AtFlags::SYMLINK_FOLLOW);
        Ok(said(link))
    }),
    must("an unlinked file and a new one of its name", "old new", || {
        let mut file = unlinked(b"old")?;
        put("f", b"new")?;
        words([whole(&mut file)?, shown(std::fs::read_to_string("f"))])
    }),
    must("an unlinked file is shared with a child", "abcx", || {
        let mut file = unlinked(b"abc")?;
        in_child(|| {
            file.seek(SeekFrom::End(0))?;
            file.write_all(b"x")?;
            Ok(String::new())
        })?;
        whole(&mut file)
    }),
    must("a file that another process unlinks", "abc 0", || {
        put("f", b"abc")?;
        let mut file = open("f", OFlags::RDWR)?;
        in_child(|| Ok(said(unlink("f"))))?;
        words([whole(&mut file)?, fstat(&file)?.st_nlink.to_string()])
    }),
    must("a file that only another process has open", "late", || {
        put("f", b"late")?;
        let (gate, opener) = std::io::pipe()?;
        let mut opener = Some(opener);
        let (mut opened, ready) = std::io::pipe()?;
        let mut file = None;
        let child = Child::start(|| {
            let file = file.insert(open("f", OFlags::RDONLY)?);
            opener.take();
            (&ready).write_all(b"r")?;
            // Ends when the parent has unlinked the file.
            (&gate).read_to_end(&mut Vec::new())?;
            whole(file)
        })?;
        drop(ready);
        opened.read_exact(&mut [0])?;
        unlink("f")?;
        opener.take();
        child.finish()
    }),
    must(
        "a mapping of an unlinked file outlives its descriptor",
        "abc",
        || {
            let file = unlinked(b"abc")?;
            let mapping = Mapping::new(&file, 0, 3, Sharing::Shared, Access::Read)?;
            drop(file);
            let mut bytes = [0; 3];
            mapping.read(0, &mut bytes);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        },
    ),
    must("an unlinked program is executed", "exited 42", || {
        put_program("f")?;
        let file = open("f", OFlags::PATH)?;
        unlink("f")?;
        Ok(execute(&path_of(&file)))
    }),
    must("an open directory that was removed", "0 ENOENT ENOENT", || {
        mkdir("d", 0o755)?;
        let held = open("d", OFlags::RDONLY | OFlags::DIRECTORY)?;
        rmdir("d")?;
        let made = rustix::fs::openat(
            &held,
            "f",
            OFlags::CREATE | OFlags::RDWR,
            Mode::from_raw_mode(0o644),
        );
        // Some file systems keep "." and "..", which read_dir leaves out.
        let names = rustix::fs::Dir::read_from(&held).map(|entries| {
            let names = entries
                .flatten()
                .filter(|entry| !entry.file_name().to_bytes().starts_with(b"."));
            names.count()
        });
        Ok(format!("{} {} {}", names.unwrap_or(0), said(made), list("d")))
    }),
    must("many unlinked files", "32 right", || {
        let mut files = Vec::new();
        for number in 0..32_u8 {
            let mut file = create("f", 0o644)?;
            file.write_all(&[number])?;
            unlink("f")?;
            files.push(file);
        }
        let mut right = 0;
        for (number, file) in files.iter_mut().enumerate() {
            let mut byte = [0];
            file.seek(SeekFrom::Start(0))?;
            file.read_exact(&mut byte)?;
            right += usize::from(usize::from(byte[0]) == number);
        }
        Ok(format!("{right} right"))
    }),
];
