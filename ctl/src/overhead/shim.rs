//! Asks a shim for the Stats of its pod, as containerd does. For a pause container these are the sums over the
//! pod's containers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message as _;
use ttrpc::asynchronous::Client;

/// The service's name in version 2 of the shim API, which every shim of Nacre's answers to.
const SERVICE: &str = "containerd.task.v2.Task";
/// How long the shim, and the guest behind it, may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// What containers use, as their guest counts it.
pub struct Usage {
    /// Bytes.
    pub memory: u64,
    /// CPU time, microseconds.
    pub cpu_usec: u64,
}

/// The usage of the containers of pod `id`, whose shim listens at `socket`.
pub fn usage(socket: &Path, id: &str) -> Result<Usage> {
    let request = StatsRequest {
        id: id.to_owned(),
        ..StatsRequest::default()
    };
    let call = ttrpc::Request {
        service: SERVICE.to_owned(),
        method: "Stats".to_owned(),
        timeout_nano: i64::try_from(DEADLINE.as_nanos())?,
        payload: request.write_to_bytes()?,
        ..ttrpc::Request::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(async {
        let client = Client::connect(&format!("unix://{}", socket.display())).await?;
        client.request(call).await
    });
    // Don't wait for the task that reads the connection.
    runtime.shutdown_background();
    let answer = answer.with_context(|| format!("Stats of the shim at {}", socket.display()))?;
    let response = StatsResponse::parse_from_bytes(&answer.payload)?;
    let metrics = Metrics::parse_from_bytes(&response.stats.value)?;
    Ok(Usage {
        memory: metrics.memory.usage,
        cpu_usec: metrics.cpu.usage_usec,
    })
}
