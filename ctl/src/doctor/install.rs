//! Checks of the installation that this `nacre` belongs to: its files, and whether they are of the same
//! build. Called by `nacre doctor`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_pod::template::{Absent, Kind, Store};
use nacre_protocol::config::Config;
use nacre_protocol::{BUILD_ID, config};

use super::Check;
use crate::text;

/// File name of the shim.
pub const SHIM: &str = "containerd-shim-nacre-v2";
const REINSTALL: &str = "install all files of one build (make, then copy target/nacre)";
const TEMPLATE: &str = "template";
const NEEDS_CONFIG: &str = "config.toml may set its path";

/// The group's checks. Kernel, image and VMM are looked up by config.toml, as the shim does it.
pub fn checks() -> Vec<Check> {
    const CONFIG: &str = "config.toml";
    let prefix = match prefix() {
        Ok(prefix) => prefix,
        Err(error) => {
            return vec![Check::failed(
                "prefix",
                format!("resolving /proc/self/exe: {error}"),
                REINSTALL,
            )];
        }
    };
    let shim = prefix.join("bin").join(SHIM);
    let mut checks = vec![Check::ok("prefix", prefix.display().to_string())];
    match config::load() {
        Ok(config) => {
            let size = format!(
                "{} MiB at boot, up to {} % of this host's memory, if a pod sets no limits",
                config.memory_mib, config.max_memory_percent
            );
            let file = config
                .file
                .as_ref()
                .map_or("no file, defaults apply".to_owned(), |file| {
                    file.display().to_string()
                });
            checks.extend([
                Check::ok(CONFIG, format!("{file}: {size}")),
                kernel(&config.kernel),
                image(&config.initrd),
                program("VMM", &config.vmm, "--version"),
                template(&config),
            ]);
        }
        Err(error) => checks.extend([
            Check::failed(
                CONFIG,
                one_line(&error.to_string()),
                "correct the file, or remove it to use the defaults",
            ),
            Check::skipped("guest kernel", NEEDS_CONFIG),
            Check::skipped("guest image", NEEDS_CONFIG),
            Check::skipped("VMM", NEEDS_CONFIG),
            Check::skipped(TEMPLATE, NEEDS_CONFIG),
        ]),
    }
    checks.push(program("shim", &shim, "-v"));
    checks
}

/// Whether pods without limits continue from a template.
fn template(config: &Config) -> Check {
    if !config.templates {
        return Check::ok(TEMPLATE, "off in config.toml: every guest boots");
    }
    let found = Kind::usual(config).and_then(|kind| kind.key());
    let key = match found {
        Ok(key) => key,
        Err(error) => return Check::failed(TEMPLATE, error.to_string(), REINSTALL),
    };
    match Store::default().find(&key) {
        Ok(entry) => Check::ok(TEMPLATE, format!("{key}, {}", text::bytes(entry.bytes))),
        Err(Absent::None) => Check::ok(
            TEMPLATE,
            "none yet: the first pod has one made, or `nacre template build`",
        ),
        Err(absent) => Check::warning(
            TEMPLATE,
            format!("{absent}: guests boot"),
            "run `nacre template build`, which prints the reason; templates = false in config.toml turns them off",
        ),
    }
}

/// The lines of `text` that contain a letter or digit, joined by `; `.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.chars().any(char::is_alphanumeric))
        .collect();
    lines.join("; ")
}

/// The installation's prefix: the parent of the directory of this program.
///
/// # Errors
/// If /proc/self/exe can't be resolved.
pub fn prefix() -> io::Result<PathBuf> {
    let program = fs::canonicalize("/proc/self/exe")?;
    Ok(program
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/"))
        .to_owned())
}

fn kernel(file: &Path) -> Check {
    const NAME: &str = "guest kernel";
    match fs::read(file) {
        Ok(bytes) if bytes.starts_with(b"\x7fELF") => Check::ok(
            NAME,
            format!("{}, {}", file.display(), crate::text::bytes(bytes.len() as u64)),
        ),
        Ok(_) => Check::failed(NAME, format!("{} is not an ELF file", file.display()), REINSTALL),
        Err(error) => Check::failed(NAME, format!("reading {}: {error}", file.display()), REINSTALL),
    }
}

/// Looks for this build's id in the image: the agent in it contains its id as text.
fn image(file: &Path) -> Check {
    const NAME: &str = "guest image";
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return Check::failed(NAME, format!("reading {}: {error}", file.display()), REINSTALL),
    };
    if !bytes.starts_with(b"070701") {
        return Check::failed(
            NAME,
            format!("{} is not a cpio archive in newc format", file.display()),
            REINSTALL,
        );
    }
    if bytes
        .windows(BUILD_ID.len())
        .any(|window| window == BUILD_ID.as_bytes())
    {
        return Check::ok(NAME, format!("{}, build {BUILD_ID}", file.display()));
    }
    let found = format!(
        "{} has no agent of build {BUILD_ID}, the build of this nacre",
        file.display()
    );
    Check::failed(NAME, found, REINSTALL)
}

/// Runs a program of the installation with `flag`, which prints its build id, and compares that with this
/// build's.
fn program(name: &'static str, file: &Path, flag: &str) -> Check {
    let shown = file.display();
    let output = match Command::new(file).arg(flag).output() {
        Ok(output) => output,
        Err(error) => return Check::failed(name, format!("running {shown} {flag}: {error}"), REINSTALL),
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if text.contains(BUILD_ID) {
        return Check::ok(name, format!("{shown}, build {BUILD_ID}"));
    }
    let first_line = text.lines().next().unwrap_or_default();
    Check::failed(
        name,
        format!("{shown} is of another build: it printed {first_line:?}, this nacre is of build {BUILD_ID}"),
        REINSTALL,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn an_image_of_another_build_fails() {
        let good = file(format!("070701 … {BUILD_ID} …").as_bytes());
        assert_eq!(image(good.path()).status, Status::Ok);
        let other = image(file(b"070701 0.0.1+0123456789abcdef").path());
        assert!(
            other.status == Status::Failed && other.found.contains(BUILD_ID),
            "{other:?}"
        );
        assert!(image(file(b"gzip").path()).found.contains("not a cpio archive"));
        assert!(
            image(Path::new("/no/such"))
                .found
                .contains("/no/such: No such file")
        );
    }

    #[test]
    fn a_program_of_another_build_fails() {
        let other = program("VMM", Path::new("/bin/echo"), "9.9.9");
        assert!(
            other.status == Status::Failed && other.found.contains("9.9.9"),
            "{other:?}"
        );
        assert_eq!(
            program("VMM", Path::new("/bin/echo"), BUILD_ID).status,
            Status::Ok
        );
        assert_eq!(program("VMM", Path::new("/no/such"), "-v").status, Status::Failed);
    }

    #[test]
    fn a_kernel_that_is_not_elf_fails() {
        assert!(kernel(file(b"MZ").path()).found.contains("not an ELF file"));
        assert_eq!(kernel(Path::new("/proc/self/exe")).status, Status::Ok);
    }
}
