//! The initramfs of a guest with a workload: `nacre-guest-workload` as /init, with the libraries that it
//! needs. Called by [`super::Build`]. The program is linked dynamically like every test program, so `cargo
//! build -p nacre-tests` builds it, without another target and other flags.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::elf;

/// Where the System V ABI of x86-64 has the dynamic loader.
pub const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// A directory that the loader searches by default.
const LIBRARIES: &str = "lib";
/// Mount points and directories, in the order of the archive: a parent before its children.
const DIRECTORIES: [&str; 6] = ["dev", "lib", "lib64", "proc", "shared", "sys"];
/// Major and minor number of /dev/console. The kernel opens it before it executes /init.
const CONSOLE: (u32, u32) = (5, 1);

/// An archive with `program` as /init. It must need the same libraries as this process.
///
/// # Errors
/// If a file can't be read.
pub fn pack(program: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.entry(directory, ModeFileType::Directory, 0o755, b"")?;
    }
    archive.console()?;
    archive.program("init", program)?;
    let libraries = loaded_libraries()?;
    let loader = file_name(Path::new(LOADER));
    ensure!(
        libraries.iter().any(|file| file_name(file) == loader),
        "this program has no dynamic loader {loader} among {libraries:?}"
    );
    for file in &libraries {
        let name = file_name(file);
        if name == loader {
            archive.program(LOADER, file)?;
        } else {
            archive.program(&format!("{LIBRARIES}/{name}"), file)?;
        }
    }
    archive.finish()
}

/// The files of the dynamic loader and the libraries of this process: all other files of which it has
/// executable mappings.
pub fn loaded_libraries() -> Result<BTreeSet<PathBuf>> {
    let own = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    Ok(maps
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|access| access.contains('x')))
        .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
        .filter(|file| *file != own)
        .collect())
}

fn file_name(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// An archive in the kernel's cpio format "newc" that is being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let builder = Builder::new(name)
            .ino(self.entries)
            .mode(mode)
            .set_mode_file_type(kind);
        let mut file = builder.write(&mut self.bytes, u32::try_from(content.len())?);
        file.write_all(content)?;
        file.finish()?;
        Ok(())
    }

    fn program(&mut self, name: &str, file: &Path) -> Result<()> {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let loaded = elf::loaded_part(&bytes).with_context(|| file.display().to_string())?;
        self.entry(name, ModeFileType::Regular, 0o755, loaded)
    }

    fn console(&mut self) -> Result<()> {
        self.entries += 1;
        let builder = Builder::new("dev/console")
            .ino(self.entries)
            .mode(0o600)
            .set_mode_file_type(ModeFileType::Char)
            .rdev_major(CONSOLE.0)
            .rdev_minor(CONSOLE.1);
        builder.write(&mut self.bytes, 0).finish()?;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_program_its_loader_and_its_libraries() {
        let own = std::env::current_exe().unwrap();
        let archive = pack(&own).unwrap();
        let mut names = Vec::new();
        let mut rest = archive.as_slice();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            names.push((entry.name().to_owned(), entry.file_size()));
            rest = reader.finish().unwrap();
        }
        for wanted in ["init", LOADER, "lib/libc.so.6", "dev/console"] {
            assert!(names.iter().any(|(name, _)| name == wanted), "{names:?}");
        }
        let init = names.iter().find(|(name, _)| name == "init").unwrap();
        assert!(u64::from(init.1) < fs::metadata(own).unwrap().len());
    }
}
