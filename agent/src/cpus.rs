//! Brings vCPUs online and offline. The kernel takes milliseconds for each and the write(2) returns when it is
//! done, so a process of its own does it: the agent's own program again, as [`PROGRAM`]. The Resize request
//! calls [`Cpus::bring`]; never used by an agent that runs standalone.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nacre_protocol::cpu_list;
use rustix::process::Pid;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::pci;
use crate::reaper::Reaper;

/// The `argv[0]` of the process that brings vCPUs online or offline.
pub const PROGRAM: &str = "nacre-cpus";
const DIRECTORY: &str = "/sys/devices/system/cpu";
/// More vCPUs than any VM has.
const MAX_CPUS: u32 = 256;

/// The guest's vCPUs.
pub struct Cpus {
    /// The agent's own program.
    pub program: PathBuf,
    /// Waits for the process that brings vCPUs online or offline.
    pub reaper: Arc<Reaper>,
}

impl Cpus {
    /// Brings vCPUs online or offline until `count` are online; 0 leaves them as they are. Returns how many
    /// are: fewer or more if the kernel has refused.
    pub async fn bring(&self, count: u32) -> Result<u32, Error> {
        let before = online()?;
        if count == 0 || count == before {
            return Ok(before);
        }
        let _bringing = pci::without_probing().await;
        #[allow(clippy::zombie_processes, reason = "the reaper waits for every child")]
        let child = Command::new(&self.program)
            .arg0(PROGRAM)
            .arg(count.to_string())
            .env_clear()
            .spawn()
            .map_err(Error::file("starting", &self.program))?;
        let (sender, exited) = oneshot::channel();
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            self.reaper.watch(pid, move |exit| {
                let _ = sender.send(exit);
            });
            // Its exit status is not needed: the count says what it has done.
            let _ = exited.await;
        }
        online()
    }
}

/// How many vCPUs are online.
fn online() -> Result<u32, Error> {
    let file = Path::new(DIRECTORY).join("online");
    let text = fs::read_to_string(&file).map_err(Error::file("reading", &file))?;
    let count = cpu_list::parse(text.trim()).map_or(0, |cpus| cpus.len());
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// What [`PROGRAM`] does: `arguments` is the number of vCPUs that shall be online. Those with the lowest
/// numbers are.
pub fn main(arguments: &[OsString]) -> io::Result<()> {
    let count = arguments
        .first()
        .and_then(|word| word.to_str()?.parse::<u32>().ok());
    let count = count.ok_or(io::ErrorKind::InvalidInput)?;
    let files = files(Path::new(DIRECTORY));
    let (wanted, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|(cpu, _)| *cpu < count);
    for (_, file) in wanted {
        fs::write(file, "1")?;
    }
    for (_, file) in others.into_iter().rev() {
        fs::write(file, "0")?;
    }
    Ok(())
}

/// The vCPUs that can be brought online or offline, by number, and the file that does it. The first cannot.
fn files(directory: &Path) -> Vec<(u32, PathBuf)> {
    (1..MAX_CPUS)
        .map(|cpu| (cpu, directory.join(format!("cpu{cpu}/online"))))
        .take_while(|(_, file)| file.exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_vcpu_has_no_file_and_the_others_follow_each_other() {
        let directory = tempfile::tempdir().unwrap();
        for cpu in [0, 1, 2, 4] {
            let directory = directory.path().join(format!("cpu{cpu}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("online"), "1").unwrap();
        }
        let found = files(directory.path());
        assert_eq!(found.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>(), [1, 2]);
    }
}
