//! Many pods at once, and what is left of them.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cri::node::Node;
use crate::cri::{Case, calls};
use crate::growth::Census;
use crate::installation::Config;
use crate::leaks::Snapshot;
use crate::parity::Outcome;
use crate::runner::EXIT_DEADLINE;

pub const CASES: &[Case] = &[
    calls("many: 3 pods at once", |node| at_once(node, 3)),
    calls("many: 30 pods, 10 at once, and no growth", thirty).long(),
];

fn at_once(node: &Node, count: usize) -> Result<Outcome> {
    let seen: Result<Vec<String>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|_| {
                let (runtime, handler) = (node.runtime, node.handler.clone());
                scope.spawn(move || -> Result<String> {
                    let node = Node::new(runtime, &handler)?;
                    let pod = node.pod(Value::Null)?;
                    let script = "ping -c 1 10.88.0.1 >/dev/null && echo reached";
                    let outcome = pod.run(script, Value::Null)?;
                    pod.remove()?;
                    Ok(outcome.stdout)
                })
            })
            .collect();
        let ended = running
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread panicked")?);
        ended.collect()
    });
    Ok(Outcome::text(seen?.concat()))
}

/// Three rounds of 10 pods. After each nothing with a name is left, and after the last the kernel keeps no more
/// than after the first, which fills caches.
fn thirty(node: &Node) -> Result<Outcome> {
    // Ten guests that boot at once on the lab's emulated CPU need more than the deadline of one.
    let _config = Config::with("boot_deadline_s = 300\n")?;
    let before = Snapshot::take()?;
    let mut seen = String::new();
    let mut counted = Vec::new();
    for round in 1..=3 {
        seen.push_str(
            &at_once(node, 10)
                .with_context(|| format!("round {round}"))?
                .stdout,
        );
        before
            .compare(EXIT_DEADLINE)
            .with_context(|| format!("after round {round}"))?;
        counted.push(Census::take()?);
    }
    let (first, last) = (
        counted.first().context("no round")?,
        counted.last().context("no round")?,
    );
    last.has_not_grown_since(first, 20)?;
    Ok(Outcome::text(seen))
}
