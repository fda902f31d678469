//! The life of containers: states, ends, restarts.

use anyhow::Result;
use serde_json::json;

use crate::cri::node::Node;
use crate::cri::{Case, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[calls("container: states", states)];

fn states(node: &Node) -> Result<Outcome> {
    let pod = node.pod(json!({}))?;
    let mut seen = Vec::new();
    let container = pod.create("exit 5", json!({}))?;
    seen.push(container.status()?["state"].clone());
    container.start()?;
    let status = container.wait(|status| status["state"] == "CONTAINER_EXITED")?;
    seen.push(json!([status["state"], status["exit_code"], status["reason"]]));
    pod.remove()?;
    Ok(Outcome::text(json!(seen).to_string()))
}
