//! Tests of parts that die or can't start: the error contains the reason, and nothing is left behind.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, output, wait_until_stopped};
use nacre_tests::installation::{Config, prefix};
use nacre_tests::leaks::{only_process, send_sigkill, wait_for_exit};

use crate::setup::restart_containerd;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("kill -9 of the VMM: exit code 137 and the reason", vmm_killed),
    core("kill -9 of the shim: delete cleans up", shim_killed),
    test(
        "a guest kernel panic: exit code 137 and the last console lines",
        guest_panic,
    ),
    test("a missing kernel file is reported at once", missing_kernel),
    test("an invalid kernel file is reported at once", corrupt_kernel),
    test("a corrupt guest image is reported at once", corrupt_image),
    test("too little memory is reported at once", little_memory),
    test("an unknown config key is reported with its file", bad_config),
    core(
        "containerd restarted: output and exit code are kept",
        containerd_restarted,
    ),
];

fn nacre(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("nacre");
    command.args(arguments);
    output(command)?.success()
}

/// Starts a container that sleeps, and waits until its command runs.
fn start_sleeping(word: &str) -> Result<nacre_tests::containerd::ctr::Foreground> {
    let run = Run {
        command: &["sh", "-c", "echo up; exec sleep 1000"],
        ..Run::default()
    };
    let mut running = run.spawn(&fresh_id(word))?;
    ensure!(running.line()? == "up");
    Ok(running)
}

fn vmm_killed() -> Result<()> {
    let running = start_sleeping("vmm9")?;
    let id = running.id.clone();
    send_sigkill(only_process("nacre-vmm")?)?;
    let output = running.wait_with_output()?;
    ensure!(output.code == Some(137), "{output:?}");
    let inspect = nacre(&["inspect", &id])?;
    ensure!(
        inspect.contains("SIGKILL"),
        "nacre inspect does not print SIGKILL: {inspect}"
    );
    Ok(())
}

fn shim_killed() -> Result<()> {
    let id = fresh_id("shim9");
    Run {
        command: &["sleep", "1000"],
        ..Run::default()
    }
    .detach(&id)?;
    let vmm = only_process("nacre-vmm")?;
    send_sigkill(only_process("containerd-shim-nacre")?)?;
    wait_for_exit(vmm, Instant::now() + Duration::from_secs(10))
        .context("the VMM did not exit after its shim")?;
    // containerd notices that the shim is dead and runs `delete`; `task delete` waits for that.
    ctr(["task", "delete", "--force", &id])?;
    ctr(["containers", "delete", &id])?.success()?;
    Ok(())
}

fn guest_panic() -> Result<()> {
    // --privileged makes /proc/sysrq-trigger writable; `c` makes the guest kernel panic.
    let run = Run {
        flags: &["--privileged"],
        command: &["sh", "-c", "echo up; echo c > /proc/sysrq-trigger; sleep 1000"],
        ..Run::default()
    };
    let id = fresh_id("panic");
    let output = run.output(&id)?;
    ensure!(output.code == Some(137), "{output:?}");
    let inspect = nacre(&["inspect", &id])?;
    ensure!(inspect.contains("panic"), "nacre inspect: {inspect}");
    Ok(())
}

/// Checks that `ctr run` with this config.toml fails within 10 s, and that its error contains each of
/// `texts`.
fn fails_with(config: &str, texts: &[&str]) -> Result<()> {
    let _config = Config::with(config)?;
    let started = Instant::now();
    let output = Run {
        command: &["true"],
        ..Run::default()
    }
    .output(&fresh_id("fails"))?;
    let took = started.elapsed();
    ensure!(output.code != Some(0), "it ran: {output:?}");
    ensure!(took < Duration::from_secs(10), "took {took:?}: {}", output.stderr);
    for text in texts {
        ensure!(
            output.stderr.contains(text),
            "the error does not contain {text:?}: {}",
            output.stderr
        );
    }
    Ok(())
}

fn missing_kernel() -> Result<()> {
    fails_with(
        "kernel = \"/no/such/vmlinux\"\n",
        &["/no/such/vmlinux", "No such file"],
    )
}

fn corrupt_kernel() -> Result<()> {
    fails_with("kernel = \"/bin/busybox\"\n", &["/bin/busybox", "PVH"])
}

fn corrupt_image() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("initramfs.cpio");
    let mut bytes = fs::read(prefix()?.join("share/nacre/initramfs.cpio"))?;
    for byte in bytes.iter_mut().take(4096) {
        *byte ^= 0x55;
    }
    fs::write(&image, bytes)?;
    fails_with(
        &format!("initrd = \"{}\"\n", image.display()),
        &["panic", "image"],
    )
}

fn little_memory() -> Result<()> {
    fails_with("memory_mib = 8\n", &["memory_mib", "8"])
}

fn bad_config() -> Result<()> {
    fails_with("memory_mb = 512\n", &["config.toml", "memory_mb"])
}

fn containerd_restarted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:rw",
        directory.path().display()
    );
    let log = directory.path().join("log");
    let log_uri = format!("file://{}", log.display());
    let script = "echo before; while [ ! -e /data/go ]; do sleep 0.1; done; echo after; exit 9";
    let run = Run {
        flags: &["--mount", &mount, "--log-uri", &log_uri],
        command: &["sh", "-c", script],
        ..Run::default()
    };
    let id = fresh_id("restart");
    run.detach(&id)?;
    restart_containerd()?;
    fs::write(directory.path().join("go"), "")?;
    wait_until_stopped(&id)?;
    let deleted = ctr(["task", "delete", &id])?;
    // `ctr task delete` logs the task's exit code to standard error and exits with 0 itself.
    ensure!(
        deleted.stderr.contains("exit code 9"),
        "exit code after the restart: {deleted:?}"
    );
    ctr(["containers", "delete", &id])?.success()?;
    let output = fs::read_to_string(&log)?;
    ensure!(output == "before\nafter\n", "output: {output:?}");
    Ok(())
}
