//! The guest's wall clock: it follows the host's while a container runs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use nacre_tests::containerd::bundle::Bundle;
use serde_json::{Value, json};

use crate::{Test, test};

pub const TESTS: &[Test] = &[test(
    "a guest whose clock is behind catches up with the host's",
    catches_up,
)];

/// How far the container sets the clock back, in seconds: much longer than it may take to catch up.
const BEHIND: u64 = 1000;
/// Longest time that the container may run: three times as long as the agent's interval, and its boot.
const LIMIT: Duration = Duration::from_secs(90);

/// The container needs CAP_SYS_TIME, and sets the clock of its guest, as far as it reaches.
fn may_set_the_clock(spec: &mut Value) {
    for set in ["bounding", "effective", "permitted"] {
        if let Some(capabilities) = spec["process"]["capabilities"][set].as_array_mut() {
            capabilities.push(json!("CAP_SYS_TIME"));
        }
    }
}

fn catches_up() -> Result<()> {
    let begun = Instant::now();
    let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let script = format!(
        "date -s @{} >/dev/null && while [ $(date +%s) -lt {host} ]; do usleep 200000; done; date +%s",
        host - BEHIND
    );
    let output = Bundle::new(&["sh", "-c", &script], may_set_the_clock)?.output("clock")?;
    let took = begun.elapsed();
    let guest: u64 = output.success()?.trim().parse()?;
    let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(took < LIMIT, "the clock was behind for {took:?}");
    ensure!(
        guest <= host,
        "the guest's clock is at {guest}, the host's at {host}"
    );
    Ok(())
}
