//! Pods: containers that join a sandbox's shim, and the pause container, which has no process.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{PauseRequest, StatsRequest};
use containerd_shim_protos::shim_async::TaskClient;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, refused, soon};
use crate::remote::Remote;

cases![
    containers_of_a_pod_join_its_shim,
    a_pause_container_has_no_process,
    a_pod_s_shim_is_in_its_cgroup_while_the_vm_runs,
];

/// Runs `start` for container `inner` in `bundle`, as containerd does for a container that joins a pod;
/// returns its output.
fn start_inner(pod: &Pod, bundle: &Path) -> Result<String> {
    let started = std::process::Command::new(pod.path().join("bin/containerd-shim-nacre-v2"))
        .args([
            "-namespace",
            "test",
            "-address",
            &pod.path().join("containerd.sock").display().to_string(),
        ])
        .args(["-id", "inner", "start"])
        .current_dir(bundle)
        .output()?;
    ensure!(started.status.success(), "{started:?}");
    Ok(String::from_utf8(started.stdout)?)
}

/// Makes `spec` that of the sandbox `id`, or of a container in it, as CRI does.
pub fn annotate(spec: &mut Value, kind: &str, id: &str) {
    spec["annotations"] =
        json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": id});
}

/// Creates the container `inner` in the pod whose task has this pid, with a spec that `change` has adapted;
/// returns its task's pid.
pub async fn create_inner(
    pod: &Pod,
    client: &TaskClient,
    pid: u32,
    change: impl FnOnce(&mut Value),
) -> Result<u32> {
    let mut spec: Value = serde_json::from_slice(&std::fs::read(pod.path().join("bundle/config.json"))?)?;
    annotate(&mut spec, "container", &pod.id);
    // As containerd's CRI plugin writes it, by the pid of the sandbox's task.
    spec["linux"]["namespaces"][2]["path"] = json!(format!("/proc/{pid}/ns/net"));
    change(&mut spec);
    let bundle = pod.path().join("bundle2");
    std::fs::create_dir(&bundle)?;
    std::fs::write(bundle.join("config.json"), spec.to_string())?;
    let answer = start_inner(pod, &bundle)?;
    ensure!(answer == pod.address, "{answer}");
    let mut creation = pod.creation();
    creation.id = "inner".into();
    creation.bundle = bundle.display().to_string();
    Ok(client.create(soon(), &creation).await?.pid)
}

async fn containers_of_a_pod_join_its_shim() -> Result<()> {
    let mut pod = Pod::prepare("sandbox", "", |spec| {
        annotate(spec, "sandbox", "sandbox");
        spec["process"]["oomScoreAdj"] = json!(-998);
    })
    .await?;
    let client = pod.run_start().await?;
    let pid = client.create(soon(), &pod.creation()).await?.pid;
    let oom_score_adj = || -> Result<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
        Ok(text.trim().to_owned())
    };
    ensure!(oom_score_adj()? == "0", "the pause process's adjustment is used");
    let pause = Remote::init(&client, "sandbox");
    pause.start().await?;
    let inner_pid = create_inner(&pod, &client, pid, |spec| {
        spec["process"]["args"] = json!(["exit", "7"]);
        spec["process"]["oomScoreAdj"] = json!(500);
    })
    .await?;
    ensure!(inner_pid == pid);
    ensure!(
        oom_score_adj()? == "500",
        "the container's adjustment is not used"
    );
    let inner = Remote::init(&client, "inner");
    inner.start().await?;
    ensure!(inner.wait().await?.exit_status == 7);
    ensure!(inner.delete().await?.exit_status == 7);
    ensure!(refused(inner.state().await)?.0 == Code::NOT_FOUND);
    ensure!(
        pause.state().await?.status.value() == 2,
        "the sandbox does not run"
    );
    pause.kill(9).await?;
    pause.wait().await?;
    pause.delete().await?;
    pod.finish(client).await
}

async fn a_pod_s_shim_is_in_its_cgroup_while_the_vm_runs() -> Result<()> {
    let mut pod = Pod::prepare("place", "", |spec| {
        annotate(spec, "sandbox", "place");
    })
    .await?;
    let client = pod.run_start().await?;
    let vmm = client.create(soon(), &pod.creation()).await?.pid;
    let recorded = pod.recorded()?;
    let (shim, cgroup) = (recorded.shim_pid, recorded.cgroup.context("no cgroup")?);
    let is_inside = || -> Result<bool> {
        let text = std::fs::read_to_string(format!("/proc/{shim}/cgroup"))?;
        let path = nacre_protocol::proc_cgroup::cgroup2_path(&text);
        Ok(path.is_some_and(|path| !path.is_empty() && cgroup.ends_with(path)))
    };
    let pause = Remote::init(&client, "place");
    // A child moves it, whose end is handled before one of these calls.
    for _ in 0..1000 {
        if is_inside()? {
            break;
        }
        pause.state().await?;
    }
    ensure!(is_inside()?, "it is outside of {}", cgroup.display());
    pause.start().await?;
    let vmm = nix::unistd::Pid::from_raw(i32::try_from(vmm)?);
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL)?;
    pause.wait().await?;
    for _ in 0..1000 {
        if !cgroup.exists() {
            break;
        }
        pause.state().await?;
    }
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    pod.failure()?;
    pause.delete().await?;
    pod.finish(client).await
}

/// The fake agent knows no container of this pod, so it would refuse each call that reached it.
async fn a_pause_container_has_no_process() -> Result<()> {
    for (signal, status) in [(9, 137), (15, 0), (2, 0)] {
        let mut pod = Pod::prepare("pause", "", |spec| {
            spec["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": "sandbox",
                "io.kubernetes.cri-o.SandboxID": "pause"});
        })
        .await?;
        let client = pod.run_start().await?;
        let pid = client.create(soon(), &pod.creation()).await?.pid;
        let pause = Remote::init(&client, "pause");
        ensure!(pause.start().await? == pid);
        let pids: Vec<u32> = pod
            .pids(&client)
            .await?
            .iter()
            .map(|process| process.pid)
            .collect();
        ensure!(pids == [pid], "{pids:?}");
        let id = || "pause".to_owned();
        let exec = Remote::exec(&client, "pause", "x");
        let refusals = [
            refused(exec.add(&exec.request(&["true"])).await)?,
            refused(
                client
                    .pause(
                        soon(),
                        &PauseRequest {
                            id: id(),
                            ..Default::default()
                        },
                    )
                    .await,
            )?,
        ];
        for (code, message) in refusals {
            ensure!(code == Code::FAILED_PRECONDITION, "{message}");
            ensure!(message.contains("pause container"), "{message}");
        }
        client
            .stats(
                soon(),
                &StatsRequest {
                    id: id(),
                    ..Default::default()
                },
            )
            .await?;
        // SIGHUP is ignored, and no signal has this number.
        pause.kill(1).await?;
        ensure!(refused(pause.kill(65).await)?.0 == Code::INVALID_ARGUMENT);
        ensure!(pause.state().await?.status.value() == 2, "it does not run");
        pause.kill(signal).await?;
        ensure!(pause.wait().await?.exit_status == status);
        ensure!(refused(pause.kill(signal).await)?.0 == Code::NOT_FOUND);
        ensure!(pause.delete().await?.exit_status == status);
        ensure!(refused(pause.delete().await)?.0 == Code::NOT_FOUND);
        pod.finish(client).await?;
        let topics = pod.topics_until("/tasks/delete").await?;
        ensure!(
            topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
            "{topics:?}"
        );
    }
    Ok(())
}
