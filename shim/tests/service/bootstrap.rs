//! containerd's bootstrap message, which containerd 2.3 and later write to `start`.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::asynchronous::Client;

use crate::Case;
use crate::cases;
use crate::logs::Log;
use crate::pod::{Pod, soon};

cases![start_reads_and_answers_the_bootstrap_message];

async fn start_reads_and_answers_the_bootstrap_message() -> Result<()> {
    let pod = Pod::prepare("bootstrap", "", |_| {}).await?;
    let mut log = Log::new(&pod)?;
    let sockets = pod.path().join("sockets");
    let params = BootstrapParams {
        instance_id: pod.id.clone(),
        namespace: "test".into(),
        log_level: LogLevel::LOG_LEVEL_DEBUG.into(),
        socket_dir: Some(sockets.display().to_string()),
        ..Default::default()
    };
    let mut child = pod
        .command(&["start"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(&params.write_to_bytes()?)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    let result = BootstrapResult::parse_from_bytes(&output.stdout)?;
    ensure!(result.version == 3 && result.protocol == "ttrpc", "{result}");
    let socket = result.address.strip_prefix("unix://").context("no unix://")?;
    ensure!(
        std::path::Path::new(socket).parent() == Some(sockets.as_path()),
        "{socket}"
    );
    let tasks = TaskClient::new(Client::connect(&result.address).await?);
    tasks.create(soon(), &pod.creation()).await?;
    pod.delete(&tasks).await?;
    pod.finish(tasks).await?;
    ensure!(
        std::fs::read_dir(&sockets)?.next().is_none(),
        "the socket is left"
    );
    let lines = log.lines()?;
    ensure!(
        lines.iter().any(|line| line.contains("level=debug")),
        "{lines:#?}"
    );
    Ok(())
}
