//! The containerd that the tests run on: its version, socket and process.

use anyhow::{Context as _, Result};
use nacre_tests::containerd::ctr::ctr;
pub use nacre_tests::containerd::restart::{containerd_address, containerd_pid, restart_containerd};

/// The server's version in the output of `ctr version`.
pub fn containerd_version() -> Result<String> {
    let text = ctr(["version"])?.success()?;
    let server = text
        .split("Server:")
        .nth(1)
        .context("ctr version prints no server")?;
    let version = server
        .lines()
        .find_map(|line| line.trim().strip_prefix("Version:"));
    Ok(version
        .context("ctr version prints no server version")?
        .trim()
        .to_owned())
}
