//! Tests of `ctr run`: output, exit codes, errors of Create, several containers at once, and the shim's
//! command line.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::Runtime;
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, output, remove_detached, shell};

use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("run prints output from another kernel", prints_in_another_kernel),
    core("three containers at once, each in its own VM", three_at_once),
    core("a detached container is listed, inspected and deleted", detached),
    test("a container id already in use is refused", id_in_use),
    core("the shim answers -info", shim_info),
];

fn prints_in_another_kernel() -> Result<()> {
    let printed = shell("print", "echo hello from $(uname -r)")?.success()?;
    let host = output({
        let mut uname = Command::new("uname");
        uname.arg("-r");
        uname
    })?
    .success()?;
    ensure!(
        printed.starts_with("hello from ") && printed.trim_end().ends_with("-nacre"),
        "printed {printed:?}"
    );
    ensure!(
        !printed.contains(host.trim()),
        "the guest runs the host's kernel {host}"
    );
    Ok(())
}

fn three_at_once() -> Result<()> {
    let random = "$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n')";
    let script = format!("echo $(cat /proc/sys/kernel/random/boot_id) {random}; read x; echo $x");
    let run = Run {
        command: &["sh", "-c", &script],
        ..Run::default()
    };
    let mut running = Vec::new();
    for word in ["one", "two", "three"] {
        running.push(run.spawn(&fresh_id(word))?);
    }
    let mut drawn = Vec::new();
    for container in &mut running {
        let line = container.line()?;
        drawn.extend(line.split_whitespace().map(str::to_owned));
    }
    let vmms = nacre_tests::leaks::nacre_processes()?
        .iter()
        .filter(|(_, name)| name.starts_with("nacre-vmm"))
        .count();
    ensure!(vmms == 3, "expected 3 VMMs for three containers, got {vmms}");
    for container in &mut running {
        container.feed(b"bye\n".to_vec())?;
    }
    for container in running {
        let output = container.wait_with_output()?;
        ensure!(
            output.code == Some(0) && output.text().trim() == "bye",
            "{output:?}"
        );
    }
    drawn.sort();
    drawn.dedup();
    ensure!(
        drawn.len() == 6,
        "expected three boot ids and three random numbers, got {drawn:?}"
    );
    Ok(())
}

fn detached() -> Result<()> {
    let id = fresh_id("detached");
    Run {
        command: &["sleep", "1000"],
        ..Run::default()
    }
    .detach(&id)?;
    let listed = ctr(["task", "list"])?.success()?;
    let line = listed
        .lines()
        .find(|line| line.starts_with(&id))
        .context("the task is not listed")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words.get(2) == Some(&"RUNNING"), "{line}");
    let pid: u32 = words.get(1).context("no pid")?.parse()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(
        program.ends_with("nacre-vmm"),
        "the task's pid {pid} is {}",
        program.display()
    );
    let processes = ctr(["task", "ps", &id])?.success()?;
    ensure!(
        processes.lines().count() == 2,
        "expected one process: {processes}"
    );
    let inspect = output({
        let mut nacre = Command::new("nacre");
        nacre.args(["inspect", &id]);
        nacre
    })?
    .success()?;
    ensure!(
        inspect.contains("-nacre") && inspect.contains("agent"),
        "nacre inspect: {inspect}"
    );
    ctr(["task", "kill", "-s", "SIGKILL", &id])?.success()?;
    let again = ctr(["task", "kill", "-s", "SIGKILL", "no-such-task"])?;
    ensure!(again.stderr.contains("not found"), "{again:?}");
    remove_detached(&id)
}

fn id_in_use() -> Result<()> {
    let id = fresh_id("taken");
    let run = Run {
        command: &["sleep", "1000"],
        ..Run::default()
    };
    run.detach(&id)?;
    let second = run.output(&id)?;
    ensure!(
        second.code != Some(0) && second.stderr.contains("already exists"),
        "{second:?}"
    );
    let listed = ctr(["task", "list"])?.success()?;
    ensure!(
        listed.contains(&id),
        "the second run removed the first task: {listed}"
    );
    remove_detached(&id)
}

fn shim_info() -> Result<()> {
    let mut shim = Command::new("containerd-shim-nacre-v2");
    shim.arg("-info");
    let output = output(shim)?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure!(
        output.text().contains(Runtime::Nacre.name()),
        "the shim does not name its runtime: {:?}",
        output.text()
    );
    ensure!(
        output.text().contains(r#""namespaces":["mount","#),
        "the shim does not list its features: {:?}",
        output.text()
    );
    Ok(())
}
