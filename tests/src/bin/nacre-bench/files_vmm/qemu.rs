//! QEMU's microvm machine as a peer, with virtiofsd or with a disk of virtio-blk. The guest has nacre-vmm's kernel and
//! workload, and QEMU's file or virtiofsd's directory is in the same file system of the host.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nacre_protocol::guest::SHARED_TAG;
use nacre_tests::file_times::Times;
use nacre_tests::guests::file_times::{Place, Source, run_under};
use nacre_tests::guests::{Build, OtherVmm};
use tempfile::TempDir;

use crate::restore::{MEMORY_MIB, PARAMETERS, microvm};

/// Where Debian has virtiofsd: in QEMU's package (bookworm), and in its own package (later releases).
const FILE_SERVERS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// QEMU and virtiofsd.
#[derive(Debug, Clone)]
pub struct Programs {
    qemu: PathBuf,
    virtiofsd: Option<PathBuf>,
}

impl Programs {
    /// QEMU, and virtiofsd, which is looked for if it is not given.
    pub fn new(qemu: &Path, virtiofsd: Option<&Path>) -> Self {
        let installed = || FILE_SERVERS.iter().map(Path::new).find(|path| path.exists());
        Self {
            qemu: qemu.to_owned(),
            virtiofsd: virtiofsd.or_else(installed).map(Path::to_owned),
        }
    }

    /// The times in a guest whose files are in `storage`.
    ///
    /// # Errors
    /// If a program is not there, or the guest fails.
    pub fn run(&self, build: &Build, place: Place, storage: &Path) -> Result<Times> {
        let mut server = None;
        let times = run_under(build, place, storage, |vmm, source| match source {
            Source::Disk(file) => Ok(self.with_disk(vmm, file)),
            Source::Shared(directory) => {
                let server = server.insert(self.serve(cache(place), directory)?);
                Ok(self.with_files(vmm, server))
            }
        });
        match &server {
            Some(server) => times.with_context(|| server.log()),
            None => times,
        }
    }

    fn with_disk(&self, vmm: &OtherVmm<'_>, file: &Path) -> Command {
        let mut command = self.boot_command(vmm, "");
        command
            .arg("-drive")
            .arg(format!(
                "file={},if=none,id=disk,format=raw,cache=writeback,aio=io_uring,discard=unmap",
                file.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk"]);
        command
    }

    fn with_files(&self, vmm: &OtherVmm<'_>, server: &FileServer) -> Command {
        // The server has the guest's memory, too.
        let mut command = self.boot_command(vmm, ",memory-backend=memory");
        command
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"
            ))
            .arg("-chardev")
            .arg(format!("socket,id=files,path={}", server.socket().display()))
            .arg("-device")
            .arg(format!("vhost-user-fs-pci,chardev=files,tag={SHARED_TAG}"));
        command
    }

    fn boot_command(&self, vmm: &OtherVmm<'_>, options: &str) -> Command {
        let mut command = microvm(&self.qemu, options);
        command
            .arg("-kernel")
            .arg(vmm.kernel)
            .arg("-initrd")
            .arg(vmm.initramfs)
            .arg("-append")
            .arg(format!("{PARAMETERS} {}", vmm.parameters))
            .args(["-serial", "file:/proc/self/fd/2"]);
        command
    }

    /// Executes virtiofsd for `directory`.
    fn serve(&self, cache: &str, directory: &Path) -> Result<FileServer> {
        let program = self.virtiofsd.as_ref().context("virtiofsd is not installed")?;
        let sockets = tempfile::tempdir()?;
        // It inherits the socket as its standard input, so nobody waits until it has made one.
        let listener = UnixListener::bind(FileServer::socket_in(&sockets))?;
        let log = File::create(FileServer::log_in(&sockets))?;
        let mut command = Command::new(program);
        command
            .args(["--fd=0", "-f", "-o"])
            .arg(format!(
                "source={},cache={cache},sandbox=chroot",
                directory.display()
            ))
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("executing {}", program.display()))?;
        Ok(FileServer { child, sockets })
    }
}

/// What virtiofsd lets the guest cache: of a root file system, all for as long as it likes; of a volume, for a second.
fn cache(place: Place) -> &'static str {
    match place {
        Place::Rootfs | Place::Disk => "always",
        Place::Volume => "auto",
    }
}

/// A running virtiofsd; ends when dropped.
struct FileServer {
    child: Child,
    sockets: TempDir,
}

impl FileServer {
    fn socket_in(directory: &TempDir) -> PathBuf {
        directory.path().join("socket")
    }

    fn socket(&self) -> PathBuf {
        Self::socket_in(&self.sockets)
    }

    fn log_in(directory: &TempDir) -> PathBuf {
        directory.path().join("log")
    }

    /// What it has printed so far.
    fn log(&self) -> String {
        let text = fs::read_to_string(Self::log_in(&self.sockets));
        format!("virtiofsd: {}", text.unwrap_or_default())
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // Errors mean that it has ended, as it does when QEMU has.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
