//! Whole lives of containers, without failures. Each test checks that nothing is left on the host.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{CloseIORequest, ConnectRequest, StartRequest};
use containerd_shim_protos::shim_async::TaskClient;
use serde_json::json;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, anonymous_kib, refused, soon};

cases![
    a_life_and_its_events,
    both_services_answer,
    streams_are_byte_exact,
    a_slow_reader_stops_the_writer,
    an_exit_is_reported_when_the_output_is_read,
    an_exit_is_reported_though_nobody_reads,
    delete_waits_two_seconds_for_a_reader_that_does_not_read,
    a_reader_that_stops_at_the_exit_has_read_everything,
    an_exit_before_the_reply_to_start,
    signals_and_statuses,
    unknown_ids_and_invalid_calls_are_refused,
    mounts_appear_in_the_shared_tree,
    a_created_container_can_be_deleted,
    the_vmm_gets_the_spec_s_oom_score_adj,
    a_guest_without_the_host_s_clock_is_corrected,
];

/// The fake agent lets the container start once its clock was corrected by the right amount.
async fn a_guest_without_the_host_s_clock_is_corrected() -> Result<()> {
    let config = "kernel_params = \"fake=slow-clock\"\n";
    let (pod, client) = Pod::start("clock", config, &["exit", "0"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    ensure!(pod.wait(&client).await?.exit_status == 0);
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn a_life_and_its_events() -> Result<()> {
    let (mut pod, client) = Pod::start("life", "", &["exit", "7"]).await?;
    ensure!(
        pod.address.starts_with("unix:///run/nacre/") && pod.address.len() < 107 + 7,
        "{}",
        pod.address
    );
    let pid = client.create(soon(), &pod.creation()).await?.pid;
    let recorded = pod.recorded()?;
    ensure!(recorded.vmm_pid == Some(pid) && pid != 0, "{recorded:?}");
    let connect = client
        .connect(
            soon(),
            &ConnectRequest {
                id: pod.id.clone(),
                ..Default::default()
            },
        )
        .await?;
    ensure!(
        connect.shim_pid == recorded.shim_pid && connect.task_pid == pid,
        "{connect:?}"
    );
    ensure!(pod.state(&client).await?.status.value() == 1, "not created");
    let pids: Vec<u32> = pod
        .pids(&client)
        .await?
        .iter()
        .map(|process| process.pid)
        .collect();
    ensure!(pids == [pid], "{pids:?}");
    let timeline = std::fs::read_to_string(format!("/run/nacre/{}/timeline.json", pod.key()))?;
    for word in ["fake step", "agent ready", "6.1.0-nacre"] {
        ensure!(timeline.contains(word), "{word} is not in {timeline}");
    }
    ensure!(pod.start_task(&client).await? == pid);
    let exit = pod.wait(&client).await?;
    ensure!(
        exit.exit_status == 7 && exit.exited_at.seconds == 1_700_000_000,
        "{exit:?}"
    );
    let deleted = pod.delete(&client).await?;
    ensure!(deleted.exit_status == 7 && deleted.pid == pid, "{deleted:?}");
    ensure!(refused(pod.state(&client).await)?.0 == Code::NOT_FOUND);
    pod.finish(client).await?;
    let topics = pod.topics_until("/tasks/delete").await?;
    ensure!(
        topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
        "{topics:?}"
    );
    Ok(())
}

async fn both_services_answer() -> Result<()> {
    let (pod, client) = Pod::start("both", "", &["sleep"]).await?;
    let raw = ttrpc::asynchronous::Client::connect(&pod.address).await?;
    for version in ["v2", "v3"] {
        let request = ttrpc::proto::Request {
            service: format!("containerd.task.{version}.Task"),
            method: "State".into(),
            timeout_nano: 20_000_000_000,
            ..Default::default()
        };
        let (code, message) = refused(raw.request(request).await)?;
        ensure!(
            code == Code::NOT_FOUND && message.contains("no task"),
            "{version}: {message}"
        );
    }
    pod.finish(client).await
}

fn random(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

async fn streams_are_byte_exact() -> Result<()> {
    let (pod, client) = Pod::start("streams", "", &["cat"]).await?;
    let (stdin, stdout) = (pod.fifo("in")?, pod.fifo("out")?);
    let mut creation = pod.creation();
    creation.stdin = stdin.display().to_string();
    creation.stdout = stdout.display().to_string();
    let reader = std::thread::spawn(move || std::fs::read(stdout));
    client.create(soon(), &creation).await?;
    pod.start_task(&client).await?;
    let sent = random(8 << 20)?;
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || std::fs::write(stdin, bytes));
    tokio::task::spawn_blocking(move || writer.join())
        .await?
        .ok()
        .context("writer")??;
    client
        .close_io(
            soon(),
            &CloseIORequest {
                id: pod.id.clone(),
                stdin: true,
                ..Default::default()
            },
        )
        .await?;
    ensure!(pod.wait(&client).await?.exit_status == 0);
    pod.delete(&client).await?;
    let read = tokio::task::spawn_blocking(move || reader.join())
        .await?
        .ok()
        .context("reader")??;
    ensure!(read == sent, "read {} of {} bytes", read.len(), sent.len());
    pod.finish(client).await
}

async fn a_slow_reader_stops_the_writer() -> Result<()> {
    let (pod, client) = Pod::start("slow", "", &["flood"]).await?;
    let stdout = pod.fifo("out")?;
    let mut creation = pod.creation();
    creation.stdout = stdout.display().to_string();
    client.create(soon(), &creation).await?;
    let mut reader = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&stdout)?;
    pod.start_task(&client).await?;
    let waited = tokio::time::timeout(Duration::from_millis(700), pod.wait(&client)).await;
    ensure!(waited.is_err(), "64 MiB went into a FIFO that nobody reads");
    let memory = anonymous_kib(pod.recorded()?.shim_pid)?;
    ensure!(memory < 8 * 1024, "the shim holds {memory} KiB");
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
    let count = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()));
    ensure!(pod.wait(&client).await?.exit_status == 0);
    pod.delete(&client).await?;
    ensure!(count.await?? == 1024 * 65536);
    pod.finish(client).await
}

/// A task that prints a word and exits, whose reader has not read it yet.
pub async fn printed(id: &str) -> Result<(Pod, TaskClient, File)> {
    let (pod, client) = Pod::start(id, "", &["print", "word", ""]).await?;
    let stdout = pod.fifo("out")?;
    let mut creation = pod.creation();
    creation.stdout = stdout.display().to_string();
    let mut options = File::options();
    let reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&stdout)?;
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
    client.create(soon(), &creation).await?;
    pod.start_task(&client).await?;
    let waited = tokio::time::timeout(Duration::from_millis(300), pod.wait(&client)).await;
    ensure!(waited.is_err(), "the exit is reported before the output is read");
    Ok((pod, client, reader))
}

async fn an_exit_is_reported_when_the_output_is_read() -> Result<()> {
    let (mut pod, client, mut reader) = printed("read").await?;
    ensure!(pod.state(&client).await?.status.value() == 2, "not running");
    let (code, message) = refused(pod.kill(&client, libc::SIGKILL).await)?;
    ensure!(code == Code::NOT_FOUND, "{code:?} {message}");
    let mut word = [0; 4];
    reader.read_exact(&mut word)?;
    ensure!(pod.wait(&client).await?.exit_status == 0 && &word == b"word");
    ensure!(reader.read(&mut word)? == 0, "the writing end is open");
    pod.delete(&client).await?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    ensure!(events == ["create", "start", "exit 0", "delete"], "{events:?}");
    Ok(())
}

async fn an_exit_is_reported_though_nobody_reads() -> Result<()> {
    let (pod, client, mut reader) = printed("unread").await?;
    ensure!(pod.wait(&client).await?.exit_status == 0);
    ensure!(pod.state(&client).await?.status.value() == 3, "not stopped");
    let mut word = String::new();
    reader.read_to_string(&mut word)?;
    ensure!(word == "word", "{word}");
    pod.delete(&client).await?;
    pod.finish(client).await
}

/// containerd's CRI gives all that it does about an exit 10 s.
async fn delete_waits_two_seconds_for_a_reader_that_does_not_read() -> Result<()> {
    let (pod, client, mut reader) = printed("left").await?;
    ensure!(pod.wait(&client).await?.exit_status == 0);
    let begun = Instant::now();
    pod.delete(&client).await?;
    let took = begun.elapsed();
    ensure!(
        (Duration::from_secs(1)..Duration::from_secs(5)).contains(&took),
        "took {took:?}"
    );
    let mut word = String::new();
    reader.read_to_string(&mut word)?;
    ensure!(word == "word", "{word}");
    pod.finish(client).await
}

/// As containerd 1.6.20, whose reader is slower than the task and is stopped when it knows of the exit.
async fn a_reader_that_stops_at_the_exit_has_read_everything() -> Result<()> {
    let (pod, client) = Pod::start("tail", "", &["flood"]).await?;
    let stdout = pod.fifo("out")?;
    let mut creation = pod.creation();
    creation.stdout = stdout.display().to_string();
    let (exit, has_exited) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || -> std::io::Result<usize> {
        let mut reader = File::open(stdout)?;
        let mut count = 0;
        while has_exited.try_recv().is_err() {
            match reader.read(&mut [0; 4096])? {
                0 => break,
                length => count += length,
            }
        }
        Ok(count)
    });
    client.create(soon(), &creation).await?;
    pod.start_task(&client).await?;
    ensure!(pod.wait(&client).await?.exit_status == 0);
    // Fails if the reader is at the end already.
    let _ = exit.send(());
    let count = tokio::task::spawn_blocking(move || reader.join())
        .await?
        .ok()
        .context("reader")??;
    ensure!(count == 1024 * 65536, "{count} bytes were read");
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn an_exit_before_the_reply_to_start() -> Result<()> {
    for round in 0..5 {
        let (mut pod, client) = Pod::start(&format!("quick{round}"), "", &["exit-at-once"]).await?;
        client.create(soon(), &pod.creation()).await?;
        pod.start_task(&client).await?;
        ensure!(pod.wait(&client).await?.exit_status == 0);
        pod.delete(&client).await?;
        pod.finish(client).await?;
        let topics = pod.topics_until("/tasks/delete").await?;
        ensure!(
            topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
            "{topics:?}"
        );
    }
    Ok(())
}

async fn signals_and_statuses() -> Result<()> {
    let (pod, client) = Pod::start("signals", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(&client).await?;
    let (code, message) = refused(pod.delete(&client).await)?;
    ensure!(
        code == Code::FAILED_PRECONDITION && message.contains("running"),
        "{code:?} {message}"
    );
    let again = client
        .start(
            soon(),
            &StartRequest {
                id: pod.id.clone(),
                ..Default::default()
            },
        )
        .await;
    ensure!(refused(again)?.0 == Code::FAILED_PRECONDITION);
    pod.kill(&client, libc::SIGTERM).await?;
    ensure!(pod.wait(&client).await?.exit_status == 143);
    let state = pod.state(&client).await?;
    ensure!(state.status.value() == 3 && state.exit_status == 143, "{state:?}");
    let (code, message) = refused(pod.kill(&client, libc::SIGKILL).await)?;
    ensure!(
        code == Code::NOT_FOUND && message.contains("already finished"),
        "{message}"
    );
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn unknown_ids_and_invalid_calls_are_refused() -> Result<()> {
    let (pod, client) = Pod::start("codes", "", &["sleep"]).await?;
    ensure!(refused(pod.state(&client).await)?.0 == Code::NOT_FOUND);
    ensure!(refused(pod.kill(&client, 9).await)?.0 == Code::NOT_FOUND);
    ensure!(refused(pod.delete(&client).await)?.0 == Code::NOT_FOUND);
    let mut bad = pod.creation();
    bad.id = "../x".into();
    ensure!(refused(client.create(soon(), &bad).await)?.0 == Code::INVALID_ARGUMENT);
    client.create(soon(), &pod.creation()).await?;
    let (code, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(
        code == Code::ALREADY_EXISTS && message.contains("already exists"),
        "{message}"
    );
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn mounts_appear_in_the_shared_tree() -> Result<()> {
    for (name, directory, want) in [
        ("bind", "rootfs", "in-the-root"),
        ("overlay", "rootfs", "in-the-root upper-file"),
        // One of the pod's shared volumes.
        ("host", "../.volume-1/mounts/0", "on-the-host"),
    ] {
        let mut pod = Pod::prepare(&format!("mounts-{name}"), "", |_| {}).await?;
        let path = pod.path().to_owned();
        let mut spec: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path.join("bundle/config.json"))?)?;
        spec["process"]["args"] = json!(["list", directory]);
        spec["mounts"] = json!([{"destination": "/d", "type": "bind", "source": path.join("host"), "options": ["rbind", "ro"]}]);
        std::fs::write(path.join("bundle/config.json"), spec.to_string())?;
        let client = pod.run_start().await?;
        let mut creation = pod.creation();
        if name == "overlay" {
            let tmpfs = tempfile::tempdir_in("/dev/shm")?;
            std::fs::create_dir(tmpfs.path().join("upper"))?;
            std::fs::create_dir(tmpfs.path().join("work"))?;
            std::fs::write(tmpfs.path().join("upper/upper-file"), "")?;
            let mount = &mut creation.rootfs[0];
            mount.type_ = "overlay".into();
            mount.options = vec![
                "index=off".into(),
                format!("workdir={}/work", tmpfs.path().display()),
                format!("upperdir={}/upper", tmpfs.path().display()),
                format!("lowerdir={}", path.join("root").display()),
            ];
            list(&pod, &client, creation, want).await?;
        } else {
            list(&pod, &client, creation, want).await?;
        }
        pod.finish(client).await?;
    }
    Ok(())
}

async fn list(
    pod: &Pod,
    client: &containerd_shim_protos::shim_async::TaskClient,
    mut creation: containerd_shim_protos::api::CreateTaskRequest,
    want: &str,
) -> Result<()> {
    creation.stdout = format!("file://{}", pod.path().join("listed").display());
    client.create(soon(), &creation).await?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !mounts.contains(&pod.path().display().to_string()),
        "the host sees the mount: {mounts}"
    );
    pod.start_task(client).await?;
    pod.wait(client).await?;
    pod.delete(client).await?;
    let listed = std::fs::read_to_string(pod.path().join("listed"))?;
    ensure!(listed == want, "the tree has {listed:?}, not {want:?}");
    Ok(())
}

async fn a_created_container_can_be_deleted() -> Result<()> {
    let (pod, client) = Pod::start("created", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let begun = Instant::now();
    ensure!(pod.delete(&client).await?.exit_status == 137);
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "took {:?}",
        begun.elapsed()
    );
    pod.finish(client).await
}

async fn the_vmm_gets_the_spec_s_oom_score_adj() -> Result<()> {
    for (id, adjustment, want) in [("oom-adj", json!(321), "321"), ("no-oom-adj", json!(null), "0")] {
        let mut pod = Pod::prepare(id, "", |spec| {
            if adjustment.is_number() {
                spec["process"]["oomScoreAdj"] = adjustment;
            }
        })
        .await?;
        let client = pod.run_start().await?;
        let pid = client.create(soon(), &pod.creation()).await?.pid;
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
        ensure!(score.trim() == want, "{id}: {score}");
        pod.delete(&client).await?;
        pod.finish(client).await?;
    }
    Ok(())
}
