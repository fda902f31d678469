//! The size of a pod's VM: the order in which VM and limits change, what is refused, and a guest that wants
//! ever more memory.

use anyhow::{Result, ensure};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message as _;
use nacre_protocol::state::PodSize;
use serde_json::json;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, refused, soon};
use crate::tasks::{stats, update};

cases![
    the_vm_grows_before_a_limit_and_shrinks_after_it,
    a_limit_beyond_the_maximum_changes_nothing,
    a_greedy_guest_gets_the_maximum_and_is_not_asked_again,
    a_guest_that_has_refused_is_asked_again,
];

fn size(pod: &Pod) -> Result<PodSize> {
    let size = pod.recorded()?.size;
    size.ok_or_else(|| anyhow::anyhow!("pod.json has no size"))
}

/// The fakes refuse a wrong order.
async fn the_vm_grows_before_a_limit_and_shrinks_after_it() -> Result<()> {
    let mut pod = Pod::prepare("grows", "max_vcpus = 4\n", |spec| {
        spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 100_000}});
    })
    .await?;
    let client = pod.run_start().await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    let boot = size(&pod)?;
    ensure!(
        (boot.boot_mib, boot.memory_mib, boot.vcpus) == (193, 193, 1),
        "{boot:?}"
    );
    for (mib, cpus) in [(512_u64, 4_u8), (64, 1), (256, 2)] {
        let limits = json!({"memory": {"limit": mib << 20}, "cpu": {"quota": 100_000 * u32::from(cpus)}});
        update(&client, &pod.id, &limits).await?;
        let now = size(&pod)?;
        ensure!(
            now.vcpus == cpus && u64::from(now.memory_mib) > mib,
            "{limits}: {now:?}"
        );
    }
    pod.kill(&client, libc::SIGKILL).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn a_limit_beyond_the_maximum_changes_nothing() -> Result<()> {
    let config = "max_memory_percent = 1\nmemory_mib = 64\n";
    let (pod, client) = Pod::start("beyond", config, &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    let before = size(&pod)?;
    let limit = (u64::from(before.max_mib) + 1) << 20;
    let (code, message) = refused(update(&client, &pod.id, &json!({"memory": {"limit": limit}})).await)?;
    ensure!(
        code == Code::INVALID_ARGUMENT
            && message.contains("memory.limit")
            && message.contains("max_memory_percent"),
        "{code:?}: {message}"
    );
    ensure!(size(&pod)? == before);
    pod.kill(&client, libc::SIGKILL).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn a_greedy_guest_gets_the_maximum_and_is_not_asked_again() -> Result<()> {
    let config = "kernel_params = \"fake=greedy\"\n";
    let (pod, client) = Pod::start("greedy", config, &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    // Each call is behind the events that the guest has caused so far.
    let mut asked = 0;
    for _ in 0..200 {
        asked = Metrics::parse_from_bytes(&stats(&client, &pod.id).await?.value)?
            .pids
            .current;
    }
    let grown = size(&pod)?;
    ensure!(
        grown.max_mib > grown.boot_mib && grown.memory_mib == grown.max_mib,
        "{grown:?}"
    );
    ensure!((1..=3).contains(&asked), "the guest was asked {asked} times");
    pod.kill(&client, libc::SIGKILL).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn a_guest_that_has_refused_is_asked_again() -> Result<()> {
    let config = "kernel_params = \"fake=refuses-once\"\n";
    let (pod, client) = Pod::start("refuses", config, &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    // Each call lets a moment pass; the test has a deadline.
    loop {
        pod.state(&client).await?;
        let grown = size(&pod)?;
        if grown.memory_mib == grown.max_mib {
            break;
        }
    }
    pod.kill(&client, libc::SIGKILL).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}
