//! Pods, as CRI makes them: a sandbox, and containers whose annotations name it. They share the sandbox's
//! shim, VM and namespaces, come and go while it lives, and leave nothing behind in the VMM, in its mount
//! namespace or in the guest.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::bundle::add_mount;
use nacre_tests::containerd::ctr::{ctr, fresh_id};
use nacre_tests::containerd::pod::{self, Pod, exec};
use nacre_tests::hung_file_system::HungFileSystem;
use nacre_tests::leaks::nacre_processes;
use serde_json::{Value, json};

use crate::sizes::AWAIT_COMMON_DEVICES;
use crate::{Test, core, test};

/// By then a container that ends is being deleted.
const DELETED: Duration = Duration::from_secs(6);

pub const TESTS: &[Test] = &[
    core(
        "containers of a pod share its VM and end on their own",
        containers_of_a_pod,
    ),
    core("a pause container has no process", pause_container),
    test("containers that come and go leave nothing in a pod", come_and_go),
    test(
        "copies of volumes are freed with their last container",
        copies_are_freed,
    ),
    test("containers of a pod share namespaces", namespaces),
    test("containers of a pod share /dev/shm", shared_memory),
    test("a container that fails does not hurt its pod", failures),
    test(
        "a volume whose server hangs is refused, and its pod lives on",
        hanging_server,
    ),
    test(
        "a volume that hangs while it is read leaves the agent to the pod's other containers",
        hanging_later,
    ),
    test("20 containers run in a pod", twenty),
];

/// Two containers in the pod: the first exits by itself, the second is killed. The pod lives on.
fn containers_of_a_pod() -> Result<()> {
    let pod = Pod::start("shares", |spec| spec["hostname"] = json!("the-pod"))?;
    let look = "echo $$ > /own; cat /proc/sys/kernel/random/boot_id; hostname; read line; echo $line; exit 7";
    let (first, second) = (pod.member(look, |_| {})?, pod.member(look, |_| {})?);
    let mut running = vec![pod.spawn(&first, "first")?, pod.spawn(&second, "second")?];
    let mut boots = Vec::new();
    for container in &mut running {
        let (boot, host) = (container.line()?, container.line()?);
        ensure!(host == "the-pod", "host name {host} in a container of the pod");
        boots.push(boot);
    }
    ensure!(boots[0] == boots[1], "boot ids {boots:?}");
    let processes = nacre_processes()?;
    ensure!(
        processes.len() == 2,
        "expected one shim and one VMM for the pod, got {processes:?}"
    );
    for bundle in [&first, &second] {
        let own = std::fs::read_to_string(bundle.root().join("own")).context("the file in a rootfs")?;
        ensure!(own == "1\n", "pid {own:?} in a PID namespace of its own");
    }
    let [mut first, second] =
        <[_; 2]>::try_from(running).map_err(|_| anyhow::anyhow!("expected two containers"))?;
    first.feed(b"bye\n".to_vec())?;
    let output = first.wait_with_output()?;
    ensure!(
        output.code == Some(7) && output.text() == "bye\n",
        "the first container: {output:?}"
    );
    second.kill("SIGKILL")?;
    let output = second.wait_with_output()?;
    ensure!(output.code == Some(137), "the second container: {output:?}");
    let boot = pod.run("boot", "cat /proc/sys/kernel/random/boot_id", |_| {})?;
    ensure!(boot.trim() == boots[0], "the pod's VM was started anew");
    pod.remove()
}

fn pause_container() -> Result<()> {
    for (signal, want) in [("SIGTERM", ""), ("SIGKILL", "exit code 137")] {
        let pod = Pod::start("pause", |_| {})?;
        let refused = ctr(["task", "exec", "--exec-id", "x", &pod.id, "true"])?;
        ensure!(
            refused.code != Some(0) && refused.stderr.contains("pause container"),
            "exec in the pause container: {refused:?}"
        );
        let listed = ctr(["task", "ps", &pod.id])?.success()?;
        let pid = pod.pid.to_string();
        ensure!(listed.lines().count() == 2 && listed.contains(&pid), "{listed}");
        ensure!(ctr(["task", "metrics", &pod.id])?.success()?.contains("memory"));
        ctr(["task", "kill", "-s", "SIGUSR1", &pod.id])?.success()?;
        pod.run("after", "true", |_| {})?;
        ctr(["task", "kill", "-s", signal, &pod.id])?.success()?;
        let deleted = ctr(["task", "delete", &pod.id])?;
        ensure!(
            deleted.code == Some(0) && deleted.stderr.contains(want),
            "{signal}: {deleted:?}"
        );
        let again = ctr(["task", "delete", &pod.id])?;
        ensure!(
            again.code == Some(1) && again.stderr.contains("not found"),
            "{again:?}"
        );
        ctr(["containers", "delete", &pod.id])?.success()?;
    }
    Ok(())
}

/// 8 containers, one after the other, the last 4 of one id, each reading its whole root file system and a
/// volume; then 3 whose creation fails.
fn come_and_go() -> Result<()> {
    const WORK: &str =
        "ls -lR /bin >/dev/null; find / -xdev -type f -exec head -c 1 {} + >/dev/null; cat /volume/file";
    let pod = Pod::start("leaves", |_| {})?;
    let works = pod.member(WORK, pod::with_volume)?;
    let fails = pod.member("true", |spec| spec["process"]["args"] = json!(["/none"]))?;
    let run = |id: &str| -> Result<()> {
        let output = pod.output(&works, id)?.success()?;
        ensure!(output == "the host's\n", "{output}");
        Ok(())
    };
    run(&fresh_id("warm"))?;
    // They cost the VMM descriptors, once.
    pod.run("awaits", AWAIT_COMMON_DEVICES, |_| {})?;
    let before = pod.figures()?;
    let once = fresh_id("once");
    for index in 0..8 {
        let id = if index < 4 { fresh_id("each") } else { once.clone() };
        run(&id).with_context(|| format!("container {index}"))?;
    }
    for _ in 0..3 {
        let failed = pod.output(&fails, &once)?;
        ensure!(failed.code != Some(0), "{failed:?}");
    }
    let after = pod.figures()?;
    println!("  before 11 containers: {before}\n  after: {after}");
    before.compare(&after)?;
    pod.remove()
}

/// The guest's Shmem is the memory of its tmpfs mounts.
fn copies_are_freed() -> Result<()> {
    const BYTES: u64 = 8 << 20;
    let directory = tempfile::tempdir_in("/run")?;
    let volume = directory.path().join("volumes/kubernetes.io~secret/large");
    fs::create_dir_all(volume.join("..1"))?;
    fs::write(volume.join("..1/key"), vec![b'x'; usize::try_from(BYTES)?])?;
    symlink("..1", volume.join("..data"))?;
    symlink("..data/key", volume.join("key"))?;
    let mount =
        json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "ro"]});
    let pod = Pod::start("copies", |_| {})?;
    let memory = |script: &str, mount: Option<Value>| -> Result<u64> {
        let add = |spec: &mut Value| mount.into_iter().for_each(|mount| add_mount(spec, mount));
        let printed = pod.run(
            "copy",
            &format!("{script} awk '/^Shmem:/ {{print $2}}' /proc/meminfo"),
            add,
        )?;
        Ok(printed.trim().parse::<u64>().context(printed)? << 10)
    };
    let with_copy = || memory("test $(wc -c </volume/key) = 8388608 &&", Some(mount.clone()));
    for _ in 0..2 {
        with_copy()?;
    }
    pod.run("awaits", AWAIT_COMMON_DEVICES, |_| {})?;
    let (before, figures) = (memory("", None)?, pod.figures()?);
    for _ in 0..4 {
        let during = with_copy()?;
        // The agent's own files come and go.
        ensure!(
            during >= before + BYTES / 8 * 7,
            "no copy: Shmem {before} -> {during}"
        );
    }
    let fails = pod.member("true", |spec| {
        spec["process"]["args"] = json!(["/none"]);
        add_mount(spec, mount.clone());
    })?;
    for _ in 0..2 {
        let failed = pod.output(&fails, &fresh_id("fails"))?;
        ensure!(failed.code != Some(0), "{failed:?}");
    }
    let after = memory("", None)?;
    ensure!(after < before + BYTES / 8, "Shmem {before} -> {after} bytes");
    figures.compare(&pod.figures()?)?;
    pod.remove()
}

fn namespaces() -> Result<()> {
    let pod = Pod::start("spaces", |_| {})?;
    let kinds = "for n in ipc net uts; do readlink /proc/self/ns/$n; done";
    let (one, two) = (pod.run("one", kinds, |_| {})?, pod.run("two", kinds, |_| {})?);
    ensure!(one == two && one.lines().count() == 3, "{one} {two}");
    // New ones in the same VM are the container's own.
    let own = pod.run("own", kinds, |spec| {
        pod::set_path(spec, &["ipc", "network", "uts"], "")
    })?;
    for line in one.lines() {
        ensure!(!own.contains(line), "{own} {one}");
    }
    let all =
        |spec: &mut serde_json::Value| pod::set_path(spec, &["pid"], &format!("/proc/{}/ns/pid", pod.pid));
    // Its background process outlives the shell that started it, and is reaped by the pod's init.
    let first = pod.member("(sleep 0.3 &); echo up; read line", all)?;
    let mut first = pod.spawn(&first, "pids")?;
    ensure!(first.line()? == "up");
    // It waits for that: with an init that does not reap, it never ends.
    let reaped = "cat /proc/1/comm; while ps | grep -qE '[s]leep 0.3$|[[]sleep[]]'; do sleep 0.1; done; ps";
    let seen = pod.run("sees", reaped, all)?;
    ensure!(
        seen.starts_with("pause\n") && seen.contains("read line"),
        "{seen}"
    );
    let is_left = |line: &str| line.ends_with("sleep 0.3") || line.contains("[sleep]");
    ensure!(!seen.lines().any(is_left), "not reaped: {seen}");
    ensure!(exec(&first.id, "x", "ls -l /proc/1/root")?.contains("denied"));
    first.feed(Vec::new())?;
    first.wait_with_output()?;
    // An ephemeral container has the processes of its target, as long as there is one candidate.
    let target = pod.member("echo up; read line", |_| {})?;
    let mut target_runs = pod.spawn(&target, "target")?;
    ensure!(target_runs.line()? == "up");
    let seen = pod.run("debugs", "cat /proc/1/comm; ps", all)?;
    ensure!(seen.starts_with("sh\n") && seen.contains("read line"), "{seen}");
    let mut second_runs = pod.spawn(&target, "second")?;
    ensure!(second_runs.line()? == "up");
    let refused = pod.output(&pod.member("true", all)?, &fresh_id("ambiguous"))?;
    ensure!(
        refused.stderr.contains("shareProcessNamespace: true"),
        "{refused:?}"
    );
    for mut running in [target_runs, second_runs] {
        running.feed(Vec::new())?;
        running.wait_with_output()?;
    }
    pod.remove()
}

fn shared_memory() -> Result<()> {
    let pod = Pod::start("shm", |_| {})?;
    let shm = pod.make_shm("8m")?;
    let mount = |spec: &mut serde_json::Value| pod::replace_shm(spec, &shm.path().display().to_string());
    let size = pod.run("writes", "echo hello > /dev/shm/word; df -k /dev/shm", mount)?;
    ensure!(size.contains(" 8192 "), "{size}");
    let word = pod.run("reads", "cat /dev/shm/word; grep /dev/shm /proc/mounts", mount)?;
    ensure!(word.starts_with("hello\n") && word.contains("tmpfs"), "{word}");
    let full = pod.run(
        "fills",
        "dd if=/dev/zero of=/dev/shm/big bs=1M count=20 2>&1; rm /dev/shm/big",
        mount,
    )?;
    ensure!(full.contains("No space"), "{full}");
    ensure!(std::fs::read_dir(shm.path())?.count() == 0, "files on the host");
    drop(shm);
    pod.remove()
}

fn failures() -> Result<()> {
    let pod = Pod::start("failures", |_| {})?;
    let other = pod.member("echo up; read line; echo $line", |_| {})?;
    let mut other = pod.spawn(&other, "other")?;
    ensure!(other.line()? == "up");
    let id = fresh_id("fails");
    for (change, want) in [
        (json!({"process": {"args": ["/none"]}}), "/none"),
        (json!({"process": {"cwd": "/etc/passwd"}}), "process.cwd"),
        (
            json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]}}),
            "leave out hostNetwork: true",
        ),
        (
            json!({"annotations": {"io.kubernetes.cri.sandbox-memory": "1Gi"}}),
            "sandbox-memory",
        ),
        (
            json!({"mounts": [{"destination": "/x", "type": "bind", "source": "/none", "options": ["bind"]}]}),
            "/none",
        ),
    ] {
        let member = pod.member("true", |spec| pod::merge(spec, &change))?;
        let failed = pod.output(&member, &id)?;
        ensure!(
            failed.code != Some(0) && failed.stderr.contains(want),
            "{want}: {failed:?}"
        );
    }
    // An init container that fails, until it does not, under one id.
    for status in [3, 1, 0] {
        let member = pod.member(&format!("exit {status}"), |_| {})?;
        let output = pod.output(&member, &id)?;
        ensure!(output.code == Some(status), "{output:?}");
    }
    other.feed(b"still here\n".to_vec())?;
    ensure!(other.line()? == "still here");
    other.wait_with_output()?;
    let gone = fresh_id("gone");
    let orphan = pod.member("true", |spec| {
        spec["annotations"]["io.kubernetes.cri.sandbox-id"] = json!("nobody")
    })?;
    let failed = pod.output(&orphan, &gone)?;
    ensure!(
        failed.code != Some(0) && failed.stderr.contains("sandbox nobody"),
        "{failed:?}"
    );
    pod.remove()
}

/// containerd gives up a shim that does not respond for 5 s.
fn hanging_server() -> Result<()> {
    let pod = Pod::start("hanging", |_| {})?;
    let other = pod.member("read line; echo $line", |_| {})?;
    let mut other = pod.spawn(&other, "other")?;
    let directory = tempfile::tempdir()?;
    let hung = HungFileSystem::new(directory.path().join("hung"))?;
    let source = hung.path().display().to_string();
    let waiting = pod.member("true", |spec| {
        let volume = json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]});
        add_mount(spec, volume);
    })?;
    let started = Instant::now();
    let refused = pod.output(&waiting, &fresh_id("waits"))?;
    let took = started.elapsed();
    let want = format!("{source}: its file system does not respond");
    ensure!(
        refused.code != Some(0) && refused.stderr.contains(&want),
        "{want}: {refused:?}"
    );
    ensure!(took < Duration::from_secs(10), "refused after {took:?}");
    other.feed(b"still here\n".to_vec())?;
    ensure!(other.line()? == "still here");
    other.wait_with_output()?;
    drop(hung);
    pod.remove()
}

/// One container waits for a volume in the VMM's file server, another one is deleted meanwhile, whose directory the
/// agent looks up there, and the streams of a third one go on.
fn hanging_later() -> Result<()> {
    let pod = Pod::start("hanging-later", |_| {})?;
    let directory = tempfile::tempdir()?;
    let hung = HungFileSystem::new(directory.path().join("hung"))?;
    let source = directory.path().display().to_string();
    let reads = pod.member("echo up; read line; cat /data/hung/file", |spec| {
        let volume = json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]});
        add_mount(spec, volume);
    })?;
    let ends = pod.member("echo up; read line", |_| {})?;
    let echoes = pod.member("echo up; while read line; do echo $line; done", |_| {})?;
    let mut running = Vec::new();
    for (bundle, name) in [(&reads, "reads"), (&ends, "ends"), (&echoes, "echoes")] {
        let mut container = pod.spawn(bundle, name)?;
        ensure!(container.line()? == "up", "{name} has not started");
        running.push(container);
    }
    let [mut reads, mut ends, mut echoes] =
        <[_; 3]>::try_from(running).map_err(|_| anyhow::anyhow!("expected three containers"))?;
    reads.send_line("now")?;
    hung.until_asked()?;
    ends.send_line("now")?;
    let until = Instant::now() + DELETED;
    while Instant::now() < until {
        let asked = Instant::now();
        echoes.send_line("still here")?;
        ensure!(echoes.line()? == "still here");
        let took = asked.elapsed();
        ensure!(took < Duration::from_secs(5), "an echo took {took:?}");
    }
    drop(hung);
    ensure!(reads.wait_with_output()?.code != Some(0));
    ensure!(ends.wait_with_output()?.code == Some(0));
    ensure!(echoes.wait_with_output()?.code == Some(0));
    pod.remove()
}

fn twenty() -> Result<()> {
    let pod = Pod::start("twenty", |_| {})?;
    let member = pod.member("echo up; read line; echo $line", |_| {})?;
    let mut running = Vec::new();
    for _ in 0..20 {
        running.push(pod.spawn(&member, "of-twenty")?);
    }
    for container in &mut running {
        ensure!(container.line()? == "up");
    }
    println!("  with 20 containers: {}", pod.figures()?);
    for (index, mut container) in running.into_iter().enumerate() {
        container.feed(format!("{index}\n").into_bytes())?;
        let output = container.wait_with_output()?;
        ensure!(output.text() == format!("{index}\n"), "{output:?}");
    }
    pod.remove()
}
