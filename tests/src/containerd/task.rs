//! Calls a shim's Task service directly, for what `ctr` does not offer: Update, and the codes of errors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use containerd_shim_protos::protobuf::Message;
use serde_json::Value;
use ttrpc::asynchronous::Client;

use super::ctr::DEADLINE;

/// containerd's bundle directories of the namespace `default`.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// The service's name in version 2 of the shim API.
const V2: &str = "containerd.task.v2.Task";

/// Calls the shim of task `id`; returns its response or the error status that it returned.
///
/// # Errors
/// If the shim can't be reached or its response can't be parsed.
pub fn call<A: Message>(id: &str, method: &str, message: &impl Message) -> Result<Result<A, ttrpc::Status>> {
    let (address, service) = shim_address(id)?;
    request(&address, service, method, message).with_context(|| format!("{method} of {id}"))
}

/// Calls the shim that listens at `address` by the version 2 name of the service, which every shim accepts.
///
/// # Errors
/// As [`call`].
pub fn call_at<A: Message>(
    address: &str,
    method: &str,
    message: &impl Message,
) -> Result<Result<A, ttrpc::Status>> {
    request(address, V2, method, message).with_context(|| format!("{method} at {address}"))
}

fn request<A: Message>(
    address: &str,
    service: &str,
    method: &str,
    message: &impl Message,
) -> Result<Result<A, ttrpc::Status>> {
    let call = ttrpc::Request {
        service: service.to_owned(),
        method: method.to_owned(),
        timeout_nano: i64::try_from(DEADLINE.as_nanos())?,
        payload: message.write_to_bytes()?,
        ..ttrpc::Request::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let response = runtime.block_on(async {
        let client = Client::connect(address).await?;
        client.request(call).await
    });
    // Don't wait for the task that reads the connection: it may still be blocked.
    runtime.shutdown_timeout(Duration::ZERO);
    match response {
        Ok(response) => Ok(Ok(A::parse_from_bytes(&response.payload)?)),
        Err(ttrpc::Error::RpcStatus(status)) => Ok(Err(status)),
        Err(error) => Err(anyhow!(error)),
    }
}

/// The address of the shim of task `id`, and the name of its service: version 3 if bootstrap.json says so.
fn shim_address(id: &str) -> Result<(String, &'static str)> {
    let bundle = Path::new(BUNDLES).join(id);
    if let Ok(text) = fs::read_to_string(bundle.join("bootstrap.json")) {
        let parameters: Value = serde_json::from_str(&text).context("bootstrap.json")?;
        let address = parameters["address"]
            .as_str()
            .context("bootstrap.json has no address")?;
        let version = parameters["version"].as_u64();
        let service = if version == Some(3) {
            "containerd.task.v3.Task"
        } else {
            V2
        };
        return Ok((address.to_owned(), service));
    }
    let address = fs::read_to_string(bundle.join("address"))
        .with_context(|| format!("reading the address of {id}'s shim"))?;
    Ok((address.trim().to_owned(), V2))
}
