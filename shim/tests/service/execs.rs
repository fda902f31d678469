//! Exec processes: their lives, streams and events.

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, anonymous_kib, pidfd, refused, soon, wait_end};
use crate::remote::Remote;

cases![
    an_exec_s_life_and_its_events,
    streams_of_an_exec_are_byte_exact,
    input_closed_before_start_ends,
    an_exec_that_can_t_be_run_is_reported_and_deleted,
    exits_of_execs_come_before_init_s,
    an_exec_that_does_not_exit_holds_init_s_exit_for_10_s_at_most,
    a_killed_vmm_ends_execs_before_init,
    a_held_exit_is_reported_when_the_vm_ends,
    a_vmm_that_dies_while_an_exec_starts,
    events_wait_in_order_while_containerd_is_stopped,
    many_execs_leak_no_descriptors_or_memory,
    an_exec_s_output_is_complete_though_the_only_container_exited,
];

/// A pod whose init sleeps.
pub async fn sleeping(id: &str) -> Result<(Pod, TaskClient, Remote)> {
    let (pod, client) = Pod::start(id, "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, id);
    init.start().await?;
    Ok((pod, client, init))
}

pub async fn end(pod: &Pod, client: TaskClient, init: Remote) -> Result<()> {
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    drop(init);
    pod.finish(client).await
}

async fn an_exec_s_life_and_its_events() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec").await?;
    let exec = Remote::exec(&client, "exec", "e1");
    exec.add(&exec.request(&["sleep"])).await?;
    let state = exec.state().await?;
    ensure!(
        state.status.value() == 1 && state.pid == 0 && state.id == "e1",
        "{state:?}"
    );
    let pid = exec.start().await?;
    ensure!(
        pid == init.state().await?.pid,
        "Start returned another pid than the VMM's"
    );
    ensure!(exec.state().await?.status.value() == 2);
    let pids = pod.pids(&client).await?;
    let named: Vec<_> = pids
        .iter()
        .map(|process| (process.pid, process.info.value.as_slice()))
        .collect();
    ensure!(named == [(pid, &b""[..]), (pid, b"\x0a\x02e1")], "{named:?}");
    exec.kill(15).await?;
    let exit = exec.wait().await?;
    ensure!(
        exit.exit_status == 143 && exit.exited_at.seconds == 1_700_000_000,
        "{exit:?}"
    );
    let state = exec.state().await?;
    ensure!(
        state.status.value() == 3 && state.exit_status == 143 && state.pid == pid,
        "{state:?}"
    );
    let deleted = exec.delete().await?;
    ensure!(deleted.exit_status == 143 && deleted.pid == pid, "{deleted:?}");
    ensure!(refused(exec.state().await)?.0 == Code::NOT_FOUND);
    // The exec id is free again.
    exec.run(&["exit", "3"]).await?;
    ensure!(exec.wait().await?.exit_status == 3);
    exec.delete().await?;
    end(&pod, client, init).await?;
    let events = pod.events_until("delete").await?;
    let want = [
        "create",
        "start",
        "exec-added e1",
        "exec-started e1",
        "exit e1 143",
        "exec-added e1",
        "exec-started e1",
        "exit e1 3",
        "exit 137",
        "delete",
    ];
    ensure!(events == want, "{events:?}");
    Ok(())
}

async fn streams_of_an_exec_are_byte_exact() -> Result<()> {
    let (pod, client, init) = sleeping("exec-streams").await?;
    let exec = Remote::exec(&client, "exec-streams", "e");
    let (stdin, stdout) = (pod.fifo("in")?, pod.fifo("out")?);
    let mut request = exec.request(&["cat"]);
    request.stdin = stdin.display().to_string();
    request.stdout = stdout.display().to_string();
    let sent: Vec<u8> = (0..8_u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
    let reader = std::thread::spawn(move || std::fs::read(stdout));
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || std::fs::write(stdin, bytes));
    exec.add(&request).await?;
    exec.start().await?;
    tokio::task::spawn_blocking(move || writer.join())
        .await?
        .ok()
        .context("writer")??;
    exec.close_stdin().await?;
    ensure!(exec.wait().await?.exit_status == 0);
    exec.delete().await?;
    let read = tokio::task::spawn_blocking(move || reader.join())
        .await?
        .ok()
        .context("reader")??;
    ensure!(read == sent, "{} bytes came of {}", read.len(), sent.len());
    end(&pod, client, init).await
}

async fn input_closed_before_start_ends() -> Result<()> {
    let (pod, client, init) = sleeping("exec-closed").await?;
    for (round, sent) in [&b"early"[..], b""].into_iter().enumerate() {
        let exec = Remote::exec(&client, "exec-closed", &format!("e{round}"));
        let (stdin, out) = (
            pod.fifo(&format!("in{round}"))?,
            pod.path().join(format!("out{round}")),
        );
        let mut request = exec.request(&["cat"]);
        request.stdin = stdin.display().to_string();
        request.stdout = format!("file://{}", out.display());
        exec.add(&request).await?;
        if !sent.is_empty() {
            std::fs::write(&stdin, sent)?;
        }
        exec.close_stdin().await?;
        exec.start().await?;
        ensure!(exec.wait().await?.exit_status == 0);
        exec.delete().await?;
        ensure!(std::fs::read(out)? == sent);
    }
    end(&pod, client, init).await
}

async fn an_exec_that_can_t_be_run_is_reported_and_deleted() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-missing").await?;
    let exec = Remote::exec(&client, "exec-missing", "e");
    let mut request = exec.request(&["no-such-command"]);
    request.stdout = pod.fifo("out")?.display().to_string();
    exec.add(&request).await?;
    let waiting = tokio::spawn({
        let exec = exec.clone();
        async move { exec.wait().await }
    });
    let (code, message) = refused(exec.start().await)?;
    ensure!(
        code == Code::NOT_FOUND && message.contains("executable file not found"),
        "{message}"
    );
    ensure!(waiting.await??.exit_status == 255);
    let state = exec.state().await?;
    ensure!(state.status.value() == 3 && state.pid == 0, "{state:?}");
    ensure!(refused(exec.start().await)?.0 == Code::FAILED_PRECONDITION);
    ensure!(refused(exec.kill(9).await)?.0 == Code::NOT_FOUND);
    exec.delete().await?;
    end(&pod, client, init).await?;
    let events = pod.events_until("delete").await?;
    ensure!(
        events == ["create", "start", "exec-added e", "exit 137", "delete"],
        "{events:?}"
    );
    Ok(())
}

async fn exits_of_execs_come_before_init_s() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-order").await?;
    let execs = ["e1", "e2", "e3"].map(|id| Remote::exec(&client, "exec-order", id));
    for exec in &execs {
        exec.run(&["sleep"]).await?;
    }
    // An exec process that was never started does not hold init's exit.
    let idle = Remote::exec(&client, "exec-order", "idle");
    idle.add(&idle.request(&["sleep"])).await?;
    init.kill(9).await?;
    let late = Remote::exec(&client, "exec-order", "late");
    ensure!(init.wait().await?.exit_status == 137);
    for exec in &execs {
        ensure!(exec.state().await?.status.value() == 3);
        ensure!(exec.wait().await?.exit_status == 137);
        exec.delete().await?;
    }
    let (code, message) = refused(idle.start().await)?;
    ensure!(
        code == Code::FAILED_PRECONDITION && message.contains("stopped"),
        "{message}"
    );
    let (code, message) = refused(late.add(&late.request(&["sleep"])).await)?;
    ensure!(
        code == Code::FAILED_PRECONDITION && message.contains("stopped"),
        "{message}"
    );
    let waiting = tokio::spawn({
        let idle = idle.clone();
        async move { idle.wait().await }
    });
    init.delete().await?;
    ensure!(refused(waiting.await?)?.0 == Code::NOT_FOUND);
    pod.finish(client).await?;
    let mut events = pod.events_until("delete").await?;
    let exits: Vec<_> = events.drain(9..).collect();
    ensure!(events[8] == "exec-added idle", "{events:?}");
    ensure!(exits[3..] == ["exit 137", "delete"], "{exits:?}");
    ensure!(
        exits[..3].iter().all(|exit| exit.starts_with("exit e")),
        "{exits:?}"
    );
    Ok(())
}

async fn an_exec_that_does_not_exit_holds_init_s_exit_for_10_s_at_most() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-held").await?;
    let exec = Remote::exec(&client, "exec-held", "e");
    exec.run(&["immortal"]).await?;
    init.kill(9).await?;
    ensure!(init.wait().await?.exit_status == 137);
    init.delete().await?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    ensure!(events[4..] == ["exit e 137", "exit 137", "delete"], "{events:?}");
    Ok(())
}

async fn a_killed_vmm_ends_execs_before_init() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-vmm9").await?;
    let exec = Remote::exec(&client, "exec-vmm9", "e");
    let pid = exec.run(&["sleep"]).await?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    ensure!(init.wait().await?.exit_status == 137);
    ensure!(exec.wait().await?.exit_status == 137);
    exec.delete().await?;
    init.delete().await?;
    pod.failure()?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    ensure!(events[4..] == ["exit e 137", "exit 137", "delete"], "{events:?}");
    Ok(())
}

async fn a_held_exit_is_reported_when_the_vm_ends() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-late-vmm9").await?;
    let exec = Remote::exec(&client, "exec-late-vmm9", "e");
    let pid = exec.run(&["immortal"]).await?;
    init.kill(15).await?;
    // When init can't be killed any more, the shim knows that it has exited.
    while init.kill(0).await.is_ok() {}
    ensure!(
        init.state().await?.status.value() == 2,
        "init's exit was reported too early"
    );
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    ensure!(init.wait().await?.exit_status == 143);
    ensure!(exec.wait().await?.exit_status == 137);
    init.delete().await?;
    pod.failure()?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    ensure!(events[4..] == ["exit e 137", "exit 143", "delete"], "{events:?}");
    Ok(())
}

async fn a_vmm_that_dies_while_an_exec_starts() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-dies").await?;
    let exec = Remote::exec(&client, "exec-dies", "e");
    exec.add(&exec.request(&["die"])).await?;
    let (_, message) = refused(exec.start().await)?;
    ensure!(message.contains("the VMM exited with 4"), "{message}");
    ensure!(init.wait().await?.exit_status == 137);
    exec.delete().await?;
    init.delete().await?;
    pod.failure()?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    ensure!(
        events == ["create", "start", "exec-added e", "exit 137", "delete"],
        "{events:?}"
    );
    Ok(())
}

async fn events_wait_in_order_while_containerd_is_stopped() -> Result<()> {
    let (mut pod, client, init) = sleeping("exec-away").await?;
    pod.events_until("start").await?;
    pod.stop_containerd().await?;
    let mut want = Vec::new();
    for id in ["e1", "e2", "e3"] {
        let exec = Remote::exec(&client, "exec-away", id);
        exec.run(&["exit", "5"]).await?;
        exec.wait().await?;
        exec.delete().await?;
        want.extend(["exec-added", "exec-started"].map(|topic| format!("{topic} {id}")));
        want.push(format!("exit {id} 5"));
    }
    let pause = containerd_shim_protos::api::PauseRequest {
        id: "exec-away".into(),
        ..Default::default()
    };
    client.pause(soon(), &pause).await?;
    want.push("paused".into());
    pod.start_containerd().await?;
    let events = pod.events_until("paused").await?;
    ensure!(events == want, "{events:?}");
    end(&pod, client, init).await
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

async fn many_execs_leak_no_descriptors_or_memory() -> Result<()> {
    let (pod, client, init) = sleeping("exec-many").await?;
    let shim = pod.recorded()?.shim_pid;
    let mut looks = Vec::new();
    for round in 0..60 {
        if round % 20 == 0 {
            looks.push((descriptors(shim)?, anonymous_kib(shim)?));
        }
        let mut running = Vec::new();
        for index in 0..20 {
            let exec = Remote::exec(&client, "exec-many", &format!("e{index}"));
            let text = format!("{round}-{index}");
            let out = pod.path().join(format!("out{index}"));
            let mut request = exec.request(&["print", &text, ""]);
            request.stdout = format!("file://{}", out.display());
            let _old = std::fs::remove_file(&out);
            running.push(tokio::spawn(async move {
                exec.add(&request).await?;
                exec.start().await?;
                ensure!(exec.wait().await?.exit_status == 0);
                exec.delete().await?;
                ensure!(std::fs::read_to_string(out)? == text);
                Ok(())
            }));
        }
        for exec in running {
            exec.await??;
        }
    }
    looks.push((descriptors(shim)?, anonymous_kib(shim)?));
    // The allocator may grow once; a leak shows in each third.
    let thirds = looks.windows(2).skip(1).flat_map(<&[_; 2]>::try_from);
    let keeps_descriptors = thirds.clone().all(|[before, after]| before.0 == after.0);
    let keeps_memory = thirds.clone().any(|[before, after]| after.1 < before.1 + 256);
    ensure!(
        keeps_descriptors && keeps_memory,
        "descriptors and KiB were {looks:?}"
    );
    end(&pod, client, init).await
}

async fn an_exec_s_output_is_complete_though_the_only_container_exited() -> Result<()> {
    const COUNT: usize = 150_000;
    let (pod, client, init) = sleeping("exec-late").await?;
    let exec = Remote::exec(&client, "exec-late", "e");
    let stdout = pod.fifo("out")?;
    let mut request = exec.request(&["print", &"x".repeat(COUNT), ""]);
    request.stdout = stdout.display().to_string();
    let reader = std::fs::File::options().read(true).write(true).open(&stdout)?;
    rustix::pipe::fcntl_setpipe_size(&reader, 4096)?;
    exec.add(&request).await?;
    let vmm = pidfd(exec.start().await?)?;
    // The output is longer than the FIFO, so a part of it is not written yet.
    ensure!(exec.wait().await?.exit_status == 0);
    init.kill(9).await?;
    init.wait().await?;
    ensure!(!has_ended(&vmm)?, "the VM ended before its output was read");
    let count = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut bytes = vec![0; COUNT];
        (&reader).read_exact(&mut bytes)
    });
    count.await??;
    wait_end(vmm).await?;
    exec.delete().await?;
    init.delete().await?;
    pod.finish(client).await
}

fn has_ended(process: &std::os::fd::OwnedFd) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}
