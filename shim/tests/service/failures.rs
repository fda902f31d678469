//! VMMs and shims that die or can't start. Each test checks the reported reason, and that nothing is left on
//! the host.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, pidfd, refused, soon, wait_end};
use crate::remote::Remote;

cases![
    a_spec_that_can_t_be_honoured_is_refused,
    an_error_of_the_agent_is_passed_on,
    a_killed_vmm_ends_the_task_with_137,
    a_killed_shim_is_cleaned_up_by_delete,
    failed_starts_have_a_reason,
    a_failure_has_the_guest_s_console,
    a_vmm_that_dies_in_create,
    a_vmm_that_stays_after_its_guest_s_end_is_killed,
    texts_of_the_agent_are_bounded,
    a_silent_guest_is_killed_at_the_boot_deadline,
];

async fn a_spec_that_can_t_be_honoured_is_refused() -> Result<()> {
    let mut pod = Pod::prepare("refused", "", |spec| {
        spec["hooks"] = json!({"poststop": [{"path": "relative"}]});
        spec["process"]["commandLine"] = json!("a");
    })
    .await?;
    let client = pod.run_start().await?;
    let (code, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(code == Code::INVALID_ARGUMENT, "{code:?}");
    ensure!(
        message.contains("hooks.poststop[0].path") && message.contains("process.commandLine"),
        "{message}"
    );
    pod.finish(client).await
}

async fn an_error_of_the_agent_is_passed_on() -> Result<()> {
    let (pod, client) = Pod::start("agent-error", "", &["no-such-command"]).await?;
    let (code, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(
        code == Code::NOT_FOUND && message.contains("executable file not found"),
        "{code:?} {message}"
    );
    pod.finish(client).await
}

async fn a_killed_vmm_ends_the_task_with_137() -> Result<()> {
    let (mut pod, client) = Pod::start("vmm9", "", &["sleep"]).await?;
    let pid = client.create(soon(), &pod.creation()).await?.pid;
    pod.start_task(&client).await?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    ensure!(pod.wait(&client).await?.exit_status == 137);
    let topics = pod.topics_until("/tasks/exit").await?;
    ensure!(
        topics == ["/tasks/create", "/tasks/start", "/tasks/exit"],
        "{topics:?}"
    );
    let failure = pod.failure()?;
    ensure!(
        failure.reason.contains("SIGKILL") && failure.step == "running",
        "{failure:?}"
    );
    ensure!(failure.console == ["Linux version of a fake"], "{failure:?}");
    ensure!(refused(pod.kill(&client, 9).await)?.0 == Code::NOT_FOUND);
    ensure!(pod.delete(&client).await?.exit_status == 137);
    pod.finish(client).await
}

async fn a_killed_shim_is_cleaned_up_by_delete() -> Result<()> {
    let (pod, client) = Pod::start("shim9", "", &["sleep"]).await?;
    let pid = client.create(soon(), &pod.creation()).await?.pid;
    pod.start_task(&client).await?;
    let vmm = pidfd(pid)?;
    kill(
        Pid::from_raw(i32::try_from(pod.recorded()?.shim_pid)?),
        Signal::SIGKILL,
    )?;
    wait_end(vmm).await.context("the VMM outlives its shim")?;
    let output = pod.shim(&["-address", "", "delete"])?;
    let response = DeleteResponse::parse_from_bytes(&output.stdout)?;
    ensure!(
        response.exit_status == 137 && response.pid == pid && response.exited_at.seconds > 0,
        "{response:?}"
    );
    pod.nothing_left()?;
    let again = DeleteResponse::parse_from_bytes(&pod.shim(&["delete"])?.stdout)?;
    ensure!(again.exit_status == 137, "{again:?}");
    pod.nothing_left()
}

async fn failed_starts_have_a_reason() -> Result<()> {
    for (name, config, wanted) in [
        (
            "kernel",
            "kernel = \"/no/such/vmlinux\"\n",
            &["/no/such/vmlinux", "No such file"] as &[&str],
        ),
        (
            "pvh",
            "kernel_params = \"fake=fail\"\n",
            &["load kernel", "PVH", "share/nacre/vmlinux", "CONFIG_PVH"],
        ),
        ("memory", "memory_mib = 8\n", &["memory_mib", "8", "config.toml"]),
        ("key", "memory_mb = 512\n", &["config.toml", "memory_mb"]),
        (
            "panic",
            "kernel_params = \"fake=panic\"\n",
            &["panic", "image", "Kernel panic - not syncing: no init"],
        ),
        (
            "nonsense",
            "kernel_params = \"fake=nonsense\"\n",
            &["Nonsense", "build"],
        ),
        (
            "vmm",
            "vmm = \"/no/such/vmm\"\n",
            &["/no/such/vmm", "No such file"],
        ),
        ("program", "vmm = \"/etc/passwd\"\n", &["os error 13"]),
        ("old", "kernel_params = \"fake=old\"\n", &["0.0.0+old", "build"]),
    ] {
        let begun = Instant::now();
        let (pod, client) = Pod::start(&format!("fails-{name}"), config, &["sleep"]).await?;
        let (_, message) = refused(client.create(soon(), &pod.creation()).await)?;
        for word in wanted {
            ensure!(message.contains(word), "{name}: {word:?} is not in: {message}");
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "{name} took {:?}",
            begun.elapsed()
        );
        pod.failure().with_context(|| name.to_owned())?;
        pod.finish(client).await.with_context(|| name.to_owned())?;
    }
    Ok(())
}

async fn a_failure_has_the_guest_s_console() -> Result<()> {
    let (pod, client) = Pod::start("console", "kernel_params = \"fake=panic\"\n", &["sleep"]).await?;
    refused(client.create(soon(), &pod.creation()).await)?;
    let failure = pod.failure()?;
    ensure!(
        failure
            .console
            .last()
            .is_some_and(|line| line.contains("Kernel panic")),
        "{failure:?}"
    );
    ensure!(
        failure
            .timeline
            .steps
            .iter()
            .any(|step| step.name == "VMM started"),
        "{failure:?}"
    );
    pod.finish(client).await
}

async fn a_vmm_that_dies_in_create() -> Result<()> {
    let (pod, client) = Pod::start("dies", "kernel_params = \"fake=die-in-create\"\n", &["sleep"]).await?;
    let (_, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(
        message.contains("exited with 3") && message.contains("fake VMM of dies"),
        "{message}"
    );
    pod.failure()?;
    pod.finish(client).await
}

async fn a_vmm_that_stays_after_its_guest_s_end_is_killed() -> Result<()> {
    let (mut pod, client) = Pod::start("stays", "", &["sleep"]).await?;
    let vmm = pidfd(client.create(soon(), &pod.creation()).await?.pid)?;
    pod.start_task(&client).await?;
    let exec = Remote::exec(&client, "stays", "e");
    exec.add(&exec.request(&["panic-and-stay"])).await?;
    let begun = Instant::now();
    refused(exec.start().await)?;
    ensure!(pod.wait(&client).await?.exit_status == 137);
    ensure!(
        begun.elapsed() < Duration::from_secs(6),
        "took {:?}",
        begun.elapsed()
    );
    wait_end(vmm).await?;
    let failure = pod.failure()?;
    ensure!(failure.reason.contains("kernel panic"), "{failure:?}");
    exec.delete().await?;
    pod.delete(&client).await?;
    pod.finish(client).await?;
    let topics = pod.topics_until("/tasks/delete").await?;
    ensure!(topics.iter().any(|topic| topic == "/tasks/exit"), "{topics:?}");
    Ok(())
}

async fn texts_of_the_agent_are_bounded() -> Result<()> {
    const LIMIT: usize = 8 * 1024;
    let (pod, client) = Pod::start("long", "kernel_params = \"fake=long-texts\"\n", &["sleep"]).await?;
    let (code, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(code == Code::INTERNAL, "{code:?}");
    ensure!(
        message.len() < LIMIT && !message.contains(char::is_control),
        "{} bytes",
        message.len()
    );
    let timeline = std::fs::read(format!("/run/nacre/{}/timeline.json", pod.key()))?;
    ensure!(timeline.len() < LIMIT, "{} bytes", timeline.len());
    pod.finish(client).await?;
    let config = "kernel_params = \"fake=long-build\"\n";
    let (pod, client) = Pod::start("long-build", config, &["sleep"]).await?;
    let (_, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(message.len() < LIMIT, "{} bytes", message.len());
    let failure = pod.failure()?;
    ensure!(
        failure.reason.contains("agent is") && failure.reason.len() < LIMIT,
        "{} bytes",
        failure.reason.len()
    );
    pod.finish(client).await
}

async fn a_silent_guest_is_killed_at_the_boot_deadline() -> Result<()> {
    let config = "kernel_params = \"fake=silent\"\nboot_deadline_s = 1\n";
    let (pod, client) = Pod::start("silent", config, &["sleep"]).await?;
    let (_, message) = refused(client.create(soon(), &pod.creation()).await)?;
    for word in ["within 1 s", "boot_deadline_s", "Linux version of a fake"] {
        ensure!(message.contains(word), "{message}");
    }
    pod.failure()?;
    pod.finish(client).await
}
