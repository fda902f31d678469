//! A shim asked by its own socket, for what `ctr` has no words: Update, and the codes of errors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use containerd_shim_protos::protobuf::Message;
use serde_json::Value;
use ttrpc::asynchronous::Client;

use super::ctr::DEADLINE;

/// Where containerd keeps its bundles of namespace `default`.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

const V2: &str = "containerd.task.v2.Task";

/// Makes a call of the shim of task `id`: the answer, or the error that the shim gave.
///
/// # Errors
/// Where the shim can't be reached or answers with something else.
pub fn call<A: Message>(id: &str, method: &str, request: &impl Message) -> Result<Result<A, ttrpc::Status>> {
    let (address, service) = shim(id)?;
    request_of(&address, service, method, request).with_context(|| format!("{method} of {id}"))
}

/// Makes a call of the shim that listens at `address`, by the name that all versions answer to.
///
/// # Errors
/// As [`call`].
pub fn call_at<A: Message>(
    address: &str,
    method: &str,
    request: &impl Message,
) -> Result<Result<A, ttrpc::Status>> {
    request_of(address, V2, method, request).with_context(|| format!("{method} at {address}"))
}

fn request_of<A: Message>(
    address: &str,
    service: &str,
    method: &str,
    request: &impl Message,
) -> Result<Result<A, ttrpc::Status>> {
    let call = ttrpc::Request {
        service: service.to_owned(),
        method: method.to_owned(),
        timeout_nano: i64::try_from(DEADLINE.as_nanos())?,
        payload: request.write_to_bytes()?,
        ..ttrpc::Request::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(async {
        let client = Client::connect(address).await?;
        client.request(call).await
    });
    // Its connection's reader may be waiting still.
    runtime.shutdown_timeout(Duration::ZERO);
    match answer {
        Ok(response) => Ok(Ok(A::parse_from_bytes(&response.payload)?)),
        Err(ttrpc::Error::RpcStatus(status)) => Ok(Err(status)),
        Err(error) => Err(anyhow!(error)),
    }
}

/// The socket of a shim, and the name of its service: version 3 where containerd agreed on that.
fn shim(id: &str) -> Result<(String, &'static str)> {
    let bundle = Path::new(BUNDLES).join(id);
    if let Ok(text) = fs::read_to_string(bundle.join("bootstrap.json")) {
        let parameters: Value = serde_json::from_str(&text).context("bootstrap.json")?;
        let address = parameters["address"].as_str().context("no address")?;
        let version = parameters["version"].as_u64();
        let service = if version == Some(3) {
            "containerd.task.v3.Task"
        } else {
            V2
        };
        return Ok((address.to_owned(), service));
    }
    let address = fs::read_to_string(bundle.join("address")).with_context(|| format!("the shim of {id}"))?;
    Ok((address.trim().to_owned(), V2))
}
