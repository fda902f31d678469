//! The hooks of a container: when they run, and what their failures do.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Case;
use crate::cases;
use crate::pod::{Pod, pidfd, refused, soon, wait_end};
use crate::remote::Remote;

cases![
    hooks_run_around_the_container,
    poststop_hooks_of_a_killed_shim_run_once,
    poststop_hooks_that_the_next_start_runs_do_not_spoil_its_address,
    a_failing_hook_fails_create_and_not_the_pod,
];

/// A hook that appends its name and the state's status to `hooks` in the bundle, and then runs `then`.
fn hook(name: &str, then: &str) -> Value {
    let script = format!(
        "read -r state; status=${{state#*'\"status\":\"'}}; echo {name} ${{status%%'\"'*}} >> hooks; {then}"
    );
    json!({"path": "/bin/sh", "args": ["sh", "-c", script]})
}

async fn hooks_run_around_the_container() -> Result<()> {
    let mut pod = Pod::prepare("hooks", "", |spec| {
        spec["process"]["args"] = json!(["sleep"]);
        spec["hooks"] = json!({
            "prestart": [hook("prestart", "")],
            "createRuntime": [hook("first", ""), hook("second", "")],
            "poststart": [hook("poststart", "exit 1"), hook("poststart-too", "")],
            "poststop": [hook("poststop", "exit 1"), hook("poststop-too", "")],
        });
    })
    .await?;
    let ran = pod.path().join("bundle/hooks");
    let lines = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&ran)?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let client = pod.run_start().await?;
    client.create(soon(), &pod.creation()).await?;
    let created = ["prestart creating", "first creating", "second creating"];
    ensure!(lines()? == created, "{:?}", lines()?);
    let init = Remote::init(&client, "hooks");
    init.start().await?;
    ensure!(
        lines()?[3..] == ["poststart running", "poststart-too running"],
        "{:?}",
        lines()?
    );
    init.kill(9).await?;
    init.wait().await?;
    ensure!(lines()?.len() == 5);
    init.delete().await?;
    ensure!(
        lines()?[5..] == ["poststop stopped", "poststop-too stopped"],
        "{:?}",
        lines()?
    );
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    ensure!(events == ["create", "start", "exit 137", "delete"], "{events:?}");
    Ok(())
}

/// Kills the shim, which has written pod.json, and waits until it has exited.
async fn kill_shim(pod: &Pod) -> Result<()> {
    let shim = pod.recorded()?.shim_pid;
    let ended = pidfd(shim)?;
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
    wait_end(ended).await
}

/// As after `kill -9` of a shim: containerd runs `delete`, perhaps twice.
async fn poststop_hooks_of_a_killed_shim_run_once() -> Result<()> {
    let mut pod = Pod::prepare("hooks-left", "", |spec| {
        spec["hooks"] = json!({
            "createRuntime": [hook("first", "")],
            "poststop": [hook("poststop", "exit 1"), hook("poststop-too", "")],
        });
    })
    .await?;
    let client = pod.run_start().await?;
    client.create(soon(), &pod.creation()).await?;
    kill_shim(&pod).await?;
    for _ in 0..2 {
        pod.shim(&["delete"])?;
        let ran = std::fs::read_to_string(pod.path().join("bundle/hooks"))?;
        ensure!(
            ran == "first creating\npoststop stopped\npoststop-too stopped\n",
            "{ran}"
        );
        pod.nothing_left()?;
    }
    Ok(())
}

/// As after a crash of containerd, too, which has not run `delete`: the next `start` of the same pod runs the hooks, and
/// prints nothing but the address.
async fn poststop_hooks_that_the_next_start_runs_do_not_spoil_its_address() -> Result<()> {
    let mut pod = Pod::prepare("hooks-later", "", |spec| {
        spec["hooks"] = json!({"poststop": [hook("poststop", "exit 1")]});
    })
    .await?;
    let client = pod.run_start().await?;
    client.create(soon(), &pod.creation()).await?;
    kill_shim(&pod).await?;
    let client = pod.run_start().await?;
    let ran = std::fs::read_to_string(pod.path().join("bundle/hooks"))?;
    ensure!(ran == "poststop stopped\n", "{ran}");
    client.create(soon(), &pod.creation()).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn a_failing_hook_fails_create_and_not_the_pod() -> Result<()> {
    let mut pod = Pod::prepare("hook-fails", "", |spec| {
        spec["hooks"] = json!({
            "createRuntime": [hook("first", "echo no luck; exit 3"), hook("second", "")],
            "poststop": [hook("poststop", "")],
        });
    })
    .await?;
    let client = pod.run_start().await?;
    let (_, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(
        message.contains("hooks.createRuntime[0]") && message.contains("exited with 3; output: no luck"),
        "{message}"
    );
    let bundle = pod.path().join("bundle");
    let ran = std::fs::read_to_string(bundle.join("hooks"))?;
    ensure!(ran == "first creating\npoststop stopped\n", "{ran}");
    // The pod still works: Create succeeds without the hooks.
    let mut spec: Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    spec.as_object_mut().context("no object")?.remove("hooks");
    std::fs::write(bundle.join("config.json"), spec.to_string())?;
    client.create(soon(), &pod.creation()).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}
