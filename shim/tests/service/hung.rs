//! Guests that hang, and a containerd that is restarted while a container is being created or deleted: everything
//! can still be ended.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{ConnectRequest, DeleteRequest};
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::Code;
use ttrpc::asynchronous::Client;

use crate::Case;
use crate::cases;
use crate::lives::printed;
use crate::pod::{Pod, pidfd, programs, refused, soon, wait_end, write_config};
use crate::pods::{annotate, create_inner};
use crate::remote::Remote;

cases![
    sigkill_ends_a_guest_that_does_not_react,
    a_guest_that_stands_still_is_reported_and_sigkill_ends_it,
    delete_cancels_a_create_that_hangs,
    delete_after_a_cancelled_create_leaves_the_id_free,
    a_second_delete_takes_over_from_a_caller_that_left,
    a_pod_whose_create_failed_ends_without_containerd,
    a_daemon_whose_start_was_killed_ends,
];

/// Longest time from SIGKILL to the exit of a process in a guest that hangs.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// Longest time from when a guest stands still to its report.
const REPORT_LIMIT: Duration = Duration::from_secs(30);

async fn sigkill_ends_a_guest_that_does_not_react() -> Result<()> {
    let (pod, client) = Pod::start("deaf", "kernel_params = \"fake=deaf\"\n", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    let begun = Instant::now();
    // The agent never answers this call; the VM's end does.
    let killing = pod.kill(&client, libc::SIGKILL);
    let (killed, exit) = tokio::join!(killing, pod.wait(&client));
    killed?;
    ensure!(exit?.exit_status == 137);
    ensure!(begun.elapsed() < KILL_LIMIT, "took {:?}", begun.elapsed());
    let failure = pod.failure()?;
    ensure!(
        failure.step == "kill" && failure.reason.contains("SIGKILL"),
        "{failure:?}"
    );
    ensure!(pod.delete(&client).await?.exit_status == 137);
    pod.finish(client).await
}

/// As a guest whose kernel hangs: the agent answers neither a ping nor Kill. The pod has two containers, so that
/// SIGKILL of one ends the VM only because the agent is silent.
async fn a_guest_that_stands_still_is_reported_and_sigkill_ends_it() -> Result<()> {
    let config = "kernel_params = \"fake=wedged\"\n";
    let mut pod = Pod::prepare("wedged", config, |spec| annotate(spec, "sandbox", "wedged")).await?;
    let client = pod.run_start().await?;
    let pid = client.create(soon(), &pod.creation()).await?.pid;
    Remote::init(&client, "wedged").start().await?;
    create_inner(&pod, &client, pid, |_| {}).await?;
    let inner = Remote::init(&client, "inner");
    inner.start().await?;
    let begun = Instant::now();
    let recorded = pod.until_recorded(REPORT_LIMIT, |pod| pod.silent_since.is_some());
    recorded.await.context("the silent guest is not reported")?;
    // 10 s until the first ping, then two windows of 8 s.
    ensure!(begun.elapsed() > Duration::from_secs(20), "{:?}", begun.elapsed());
    ensure!(
        inner.state().await?.status.value() == 2,
        "the report ends nothing"
    );
    let begun = Instant::now();
    let (killed, exit) = tokio::join!(inner.kill(9), inner.wait());
    killed?;
    ensure!(exit?.exit_status == 137);
    ensure!(begun.elapsed() < KILL_LIMIT, "took {:?}", begun.elapsed());
    ensure!(pod.failure()?.step == "kill");
    ensure!(pod.recorded()?.silent_since.is_none());
    inner.delete().await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}

/// What containerd does when it finds a shim after its own restart: Connect, Pids, and, without processes,
/// Delete.
async fn delete_cancels_a_create_that_hangs() -> Result<()> {
    let (pod, client) = Pod::start("cancel", "kernel_params = \"fake=silent\"\n", &["sleep"]).await?;
    let creation = pod.creation();
    let creating = client.create(soon(), &creation);
    let cancelling = async {
        let again = pod.connect().await?;
        let request = ConnectRequest {
            id: pod.id.clone(),
            ..Default::default()
        };
        again.connect(soon(), &request).await?;
        let pids = pod.pids(&again).await?;
        ensure!(pids.is_empty(), "{pids:?}");
        let begun = Instant::now();
        pod.delete(&again).await?;
        ensure!(
            begun.elapsed() < Duration::from_secs(5),
            "took {:?}",
            begun.elapsed()
        );
        Ok(again)
    };
    let (created, cancelled) = tokio::join!(creating, cancelling);
    let again = cancelled?;
    let (_, message) = refused(created)?;
    ensure!(message.contains("cancelled by Delete"), "{message}");
    ensure!(refused(pod.state(&again).await)?.0 == Code::NOT_FOUND);
    pod.finish(again).await
}

async fn delete_after_a_cancelled_create_leaves_the_id_free() -> Result<()> {
    let (mut pod, client) = Pod::start("reuse", "kernel_params = \"fake=silent\"\n", &["sleep"]).await?;
    let creation = pod.creation();
    let deleting = async {
        // The calls are handled in order: Create is under way by now.
        pod.state(&client).await?;
        pod.delete(&client).await
    };
    let (created, deleted) = tokio::join!(client.create(soon(), &creation), deleting);
    refused(created)?;
    deleted?;
    pod.finish(client).await?;
    write_config(pod.path(), "")?;
    let client = pod.run_start().await?;
    client.create(soon(), &pod.creation()).await?;
    ensure!(pod.delete(&client).await?.exit_status == 137);
    pod.finish(client).await
}

/// containerd is restarted while Delete waits for the reader of the output: its new process calls Delete, too.
async fn a_second_delete_takes_over_from_a_caller_that_left() -> Result<()> {
    let (pod, client, _reader) = printed("takeover").await?;
    let exit = pod.wait(&client).await?;
    let address = pod.address.clone();
    let request = DeleteRequest {
        id: pod.id.clone(),
        ..Default::default()
    };
    let leave = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let first = TaskClient::new(Client::connect(&address).await?);
            // The shim refuses one of the two because the other is under way.
            let refusal = tokio::select! {
                answer = first.delete(soon(), &request) => answer,
                answer = first.delete(soon(), &request) => answer,
            };
            refused(refusal)
        })
        // The end of the runtime closes the connection.
    };
    let (code, message) = tokio::task::spawn_blocking(leave).await??;
    ensure!(code == Code::FAILED_PRECONDITION, "{code:?} {message}");
    let deleted = pod.delete(&client).await?;
    ensure!(
        deleted.exit_status == exit.exit_status && deleted.exited_at == exit.exited_at,
        "{deleted:?} after {exit:?}"
    );
    pod.finish(client).await
}

/// containerd was killed while it called Create: its client has removed the FIFOs, and nobody asks for the pod's end.
async fn a_pod_whose_create_failed_ends_without_containerd() -> Result<()> {
    let (pod, client) = Pod::start("unused", "", &["sleep"]).await?;
    let mut creation = pod.creation();
    creation.stdout = pod.path().join("no-such-fifo").display().to_string();
    refused(client.create(soon(), &creation).await)?;
    let ended = pidfd(pod.recorded()?.shim_pid)?;
    let begun = Instant::now();
    wait_end(ended).await.context("the shim does not end")?;
    ensure!(begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
    pod.nothing_left()
}

/// containerd gives up a `start` that takes too long: it kills it, and knows nothing of its daemon. Here the reader of
/// its output is gone.
async fn a_daemon_whose_start_was_killed_ends() -> Result<()> {
    let pod = Pod::prepare("unknown", "", |_| {}).await?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let started = pod.command(&["start"]).stdout(writer).output()?;
    ensure!(!started.status.success(), "{started:?}");
    // The daemon, and perhaps its VMM.
    for (pid, program) in programs()? {
        if program.starts_with(pod.path())
            && let Ok(process) = pidfd(pid)
        {
            wait_end(process)
                .await
                .with_context(|| program.display().to_string())?;
        }
    }
    pod.nothing_left()
}
