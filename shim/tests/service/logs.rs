//! What the shim logs: it goes to the FIFO `log` in the bundle, in containerd's format, and nobody can make
//! it grow without a limit.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, refused, soon};
use crate::remote::Remote;

cases![
    debug_lines_follow_containerd_s_level,
    events_that_can_t_be_delivered_are_logged_a_few_times,
];

/// The shim's log, as containerd reads it.
pub struct Log(File);

impl Log {
    /// Makes the FIFO of `pod`, whose shim must not run yet.
    pub fn new(pod: &Pod) -> Result<Self> {
        let path = pod.fifo("bundle/log")?;
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        Ok(Self(options.open(path)?))
    }

    /// The lines so far.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            ended => drop(ended?),
        }
        Ok(String::from_utf8(bytes)?.lines().map(str::to_owned).collect())
    }
}

/// The lines of a pod whose `start` has `flags`. It gets a message of an unknown type, is created, asked for a
/// process that it does not have, and ended.
async fn log_of(id: &str, flags: &[&str]) -> Result<Vec<String>> {
    let mut pod = Pod::prepare(id, "", |spec| spec["process"]["args"] = json!(["exit", "0"])).await?;
    let mut log = Log::new(&pod)?;
    pod.address = String::from_utf8(pod.shim(&[flags, &["start"]].concat())?.stdout)?;
    // Length, stream, type and flags.
    let unknown = [0, 0, 0, 0, 0, 0, 0, 1, 7, 0];
    let socket = pod.address.strip_prefix("unix://").context("no unix://")?;
    let mut stranger = UnixStream::connect(socket)?;
    stranger.write_all(&unknown)?;
    let client = pod.connect().await?;
    client.create(soon(), &pod.creation()).await?;
    let missing = Remote::exec(&client, id, "missing");
    ensure!(refused(missing.start().await)?.0 == Code::NOT_FOUND);
    pod.start_task(&client).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await?;
    log.lines()
}

async fn debug_lines_follow_containerd_s_level() -> Result<()> {
    let lines = log_of("plain-log", &[]).await?;
    ensure!(
        !lines.iter().any(|line| line.contains("level=debug")),
        "{lines:#?}"
    );
    ensure!(
        lines
            .iter()
            .any(|line| line.contains("level=info") && line.contains("plain-log exited with 0")),
        "{lines:#?}"
    );
    let logged = |lines: &[String], level: &str, text: &str| {
        lines
            .iter()
            .any(|line| line.contains(level) && line.contains(text))
    };
    // The library's own.
    let unknown = "ttrpc: Unknown message type";
    ensure!(logged(&lines, "level=warning", unknown), "{lines:#?}");
    let lines = log_of("debug-log", &["-debug"]).await?;
    for text in [
        "Create debug-log: done after",
        "Start process missing of task debug-log: no process missing of task debug-log after",
    ] {
        ensure!(logged(&lines, "level=debug", text), "no {text:?} in {lines:#?}");
    }
    Ok(())
}

async fn events_that_can_t_be_delivered_are_logged_a_few_times() -> Result<()> {
    const EXECS: usize = 100;
    let mut pod = Pod::prepare("silent", "", |_| {}).await?;
    let mut log = Log::new(&pod)?;
    let started = pod.command(&["start"]).env_remove("TTRPC_ADDRESS").output()?;
    ensure!(started.status.success(), "{started:?}");
    pod.address = String::from_utf8(started.stdout)?;
    let client = pod.connect().await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    for number in 0..EXECS {
        let exec = Remote::exec(&client, "silent", &number.to_string());
        exec.add(&exec.request(&["sleep"])).await?;
    }
    let lines = log.lines()?;
    let dropped = lines
        .iter()
        .filter(|line| line.contains("TTRPC_ADDRESS is not set"))
        .count();
    ensure!((1..=64).contains(&dropped), "{dropped} lines");
    ensure!(
        lines
            .iter()
            .any(|line| line.contains("more lines like this are left out")),
        "{lines:#?}"
    );
    pod.kill(&client, 9).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}
