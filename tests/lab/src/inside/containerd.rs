//! Starts a private containerd, waits for its readiness notification (sd_notify) and imports the images.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{cri, snapshotter};
use crate::wire::Job;

/// Files of the lab's containerd.
pub const DIRECTORY: &str = "/run/containerd/lab";
/// containerd's output, which includes the logs of the shims.
pub const LOG: &str = "/run/containerd/lab/containerd.log";
/// Bound for containerd's start, which takes 2 to 4 s under emulation.
const DEADLINE: Duration = Duration::from_secs(90);

/// CRI is disabled unless it is wanted, because it slows the start. The plugins have different names in
/// containerd 1.x and 2.x; unknown names are ignored.
const CRI_PLUGINS: &str = r#"
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox","#;

/// Unused snapshotters and others, disabled for the same reason.
const UNUSED_PLUGINS: &str = r#"
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart",
"#;

/// Starts containerd and imports the image. containerd is a child of PID 1 of the run and ends with it.
pub fn start(job: &Job, environment: &[(OsString, OsString)]) -> Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let config = Path::new(DIRECTORY).join("config.toml");
    fs::write(&config, configuration(job))?;
    snapshotter::prepare(job.snapshotter)?;
    if !job.pod_images.is_empty() {
        cri::network()?;
    }
    let notify = Path::new(DIRECTORY).join("notify");
    let socket = UnixDatagram::bind(&notify)?;
    let log = File::create(LOG)?;
    let child = Command::new(job.containerd.join("containerd"))
        .arg("--config")
        .arg(&config)
        .env_clear()
        .envs(environment.iter().cloned())
        .env("NOTIFY_SOCKET", &notify)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", job.containerd.join("containerd").display()))?;
    wait_ready(&socket, &child)
        .with_context(|| format!("the last lines of containerd's log:\n{}", log_tail()))?;
    import(job, environment, "default", &job.image)?;
    for images in &job.pod_images {
        import(job, environment, "k8s.io", images)?;
    }
    Ok(())
}

fn configuration(job: &Job) -> String {
    let unused = format!("{UNUSED_PLUGINS}{}", snapshotter::unused_plugins(job.snapshotter));
    if job.pod_images.is_empty() {
        let ours = snapshotter::configuration(job.snapshotter);
        format!("version = 2\ndisabled_plugins = [{CRI_PLUGINS}{unused}]\n{ours}")
    } else {
        cri::configuration(&job.containerd_version, &unused)
    }
}

/// Waits for READY=1; fails if containerd exits first.
fn wait_ready(socket: &UnixDatagram, child: &Child) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("pid 0")?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let until = Instant::now() + DEADLINE;
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
        ];
        ensure!(
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? > 0,
            "containerd did not become ready within {} s",
            DEADLINE.as_secs()
        );
        if fds[0].any() == Some(true) {
            let length = socket.recv(&mut buffer)?;
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        } else {
            bail!("containerd exited during its start");
        }
    }
}

fn import(job: &Job, environment: &[(OsString, OsString)], namespace: &str, archive: &Path) -> Result<()> {
    let output = Command::new(job.containerd.join("ctr"))
        .args(["--namespace", namespace, "image", "import"])
        .arg(archive)
        .env_clear()
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .output()
        .context("starting ctr")?;
    ensure!(
        output.status.success(),
        "importing {} failed: {}{}",
        archive.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The last lines of containerd's log.
fn log_tail() -> String {
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Copies the log to `target/lab/containerd.log` (`containerd-NAME.log` in a named lab), where it outlives
/// the lab.
pub fn keep_log(job: &Job) -> Result<()> {
    let directory = job.target.join("lab");
    fs::create_dir_all(&directory)?;
    let file = match &job.name {
        Some(name) => format!("containerd-{name}.log"),
        None => "containerd.log".to_owned(),
    };
    fs::copy(LOG, directory.join(file)).context("copying containerd's log")?;
    Ok(())
}
