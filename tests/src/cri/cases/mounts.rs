//! Volumes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use super::{PRIVILEGED, plain_pod, security};
use crate::cri::node::Node;
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, calls, container, in_pod};
use crate::loop_device::LoopDevice;
use crate::parity::Outcome;

static POD: PodKind = plain_pod("volumes");

pub const CASES: &[Case] = &[
    in_pod("volume: read-write, read-only, file", &POD, volumes),
    in_pod(
        "volume: a host path that is missing, a symbolic link",
        &POD,
        unusual_paths,
    ),
    in_pod(
        "volume: kubelet's hosts file and termination log",
        &POD,
        kubelets_files,
    ),
    in_pod(
        "volume: changes by the host are seen, as a ConfigMap's",
        &POD,
        config_map,
    ),
    calls("volume: mounts of the host reach the container", |node| {
        propagated(node, "PROPAGATION_HOST_TO_CONTAINER")
    })
    .allow_difference(
        "a mount that the host makes later cannot reach a guest, so a volume that asks for it is refused",
        "mounts cannot propagate between host and guest",
    ),
    calls("volume: private mounts stay private", |node| {
        propagated(node, "PROPAGATION_PRIVATE")
    }),
    in_pod("volume: as the upper layer of an overlay", &PRIVILEGED, overlay).allow_difference(
        "the volume is a tmpfs, which has no attributes of users before Linux 6.6, and trusted ones are stored as these",
        "Invalid argument",
    ),
    calls("volume: read-only with all mounts below it", recursively).since("2.4"),
    calls("volume: an image", image).since("2.1"),
    calls("device: a raw block device", block_device),
    container(
        "device: a host's null device by another name",
        &PRIVILEGED,
        || json!({"devices": [{"container_path": "/dev/nothing", "host_path": "/dev/null", "permissions": "rwm"}]}),
        "echo a >/dev/nothing && wc -c </dev/nothing; stat -c '%t %T %F' /dev/nothing",
    ),
];

/// kubelet's `volumeDevices`: a container writes the device and another one, which may only read it, finds that.
fn block_device(node: &Node) -> Result<Outcome> {
    let directory = tempfile::tempdir_in("/run")?;
    let file = directory.path().join("disk");
    fs::write(&file, vec![b'-'; 1 << 20])?;
    let device = LoopDevice::new(&file)?;
    let pod = node.pod(Value::Null)?;
    let change = |permissions: &str| {
        json!({"devices": [
            {"container_path": "/dev/xvda", "host_path": device.node, "permissions": permissions}
        ]})
    };
    let write = "stat -c '%F %a' /dev/xvda; blockdev --getsize64 /dev/xvda; head -c 4 /dev/xvda; echo
        echo written | dd of=/dev/xvda bs=512 seek=100 conv=notrunc,fsync 2>/dev/null; echo $?";
    let read = "dd if=/dev/xvda bs=512 skip=100 count=1 2>/dev/null | head -n 1
        echo no | dd of=/dev/xvda bs=512 seek=200 conv=notrunc 2>&1 | head -n 1";
    let written = pod.run(write, change("mrw"));
    let outcome = written.and_then(|written| {
        let mut outcome = pod.run(read, change("mr"))?;
        outcome.stdout = written.stdout + &outcome.stdout;
        Ok(outcome)
    });
    pod.remove()?;
    drop(device);
    let content = fs::read(&file)?;
    ensure!(
        content[100 * 512..].starts_with(b"written\n-"),
        "the host does not read what was written"
    );
    ensure!(
        content[200 * 512] == b'-',
        "a device that may only be read was written"
    );
    outcome
}

fn one_mount(path: &Path, more: Value) -> Value {
    let mut mount = json!({"container_path": "/volume", "host_path": path});
    crate::cri::node::merge(&mut mount, more);
    json!({"mounts": [mount]})
}

fn overlay(pod: &Pod<'_>) -> Result<Outcome> {
    let privileged = security(json!({"privileged": true}));
    // The lab's /tmp is an overlay itself, which runc's container could not use either.
    let volume = tempfile::tempdir_in("/run")?;
    let script = "cd /volume; mkdir lower upper work merged; echo below >lower/file
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged && cat merged/file";
    let mut change = one_mount(volume.path(), Value::Null);
    crate::cri::node::merge(&mut change, privileged);
    pod.run(script, change)
}

fn volumes(pod: &Pod<'_>) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
    fs::write(directory.path().join("file"), "of the host\n")?;
    let mounts = json!({
        "mounts": [
            {"container_path": "/rw", "host_path": directory.path()},
            {"container_path": "/ro", "host_path": directory.path(), "readonly": true},
            {"container_path": "/etc/one", "host_path": directory.path().join("file"), "readonly": true},
        ],
        "linux": {"security_context": {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1001}}},
    });
    let script = "cat /rw/file /ro/file /etc/one; echo new >/rw/new; cat /ro/new
        touch /ro/no 2>&1; echo a 2>&1 >/etc/one; stat -c '%u %g %a' /rw/new; rm /rw/new; mkdir /rw/d; ls /ro";
    let outcome = pod.run(script, mounts)?;
    ensure!(directory.path().join("d").is_dir());
    Ok(outcome)
}

fn unusual_paths(pod: &Pod<'_>) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let missing = directory.path().join("made/below");
    let mut seen = pod
        .run("echo a >/volume/a; ls /volume", one_mount(&missing, Value::Null))?
        .stdout;
    let link = directory.path().join("link");
    symlink("made", &link)?;
    seen.push_str(
        &pod.run("ls /volume /volume/below", one_mount(&link, Value::Null))?
            .stdout,
    );
    Ok(Outcome::text(seen))
}

fn kubelets_files(pod: &Pod<'_>) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let (hosts, log) = (directory.path().join("hosts"), directory.path().join("log"));
    fs::write(&hosts, "127.0.0.1\tlocalhost\n10.1.2.3\tweb-0\n")?;
    fs::write(&log, "")?;
    let mounts = json!({"mounts": [
        {"container_path": "/etc/hosts", "host_path": hosts},
        {"container_path": "/dev/termination-log", "host_path": log},
    ]});
    let outcome = pod.run("cat /etc/hosts; echo why >/dev/termination-log; exit 1", mounts)?;
    ensure!(fs::read_to_string(log)? == "why\n");
    Ok(outcome)
}

/// kubelet replaces a link to a directory, so that all files change at once.
fn config_map(pod: &Pod<'_>) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    for (version, text) in [("..1", "old\n"), ("..2", "new\n")] {
        fs::create_dir(at(version))?;
        fs::write(at(version).join("key"), text)?;
    }
    symlink("..1", at("..data"))?;
    symlink("..data/key", at("key"))?;
    let container = pod.start(
        "exec sleep 1000000",
        one_mount(directory.path(), json!({"readonly": true})),
    )?;
    let mut seen = container.output("cat /volume/key")?;
    symlink("..2", at("..tmp"))?;
    fs::rename(at("..tmp"), at("..data"))?;
    let script = "i=0; while [ $(cat /volume/key) != new ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done; cat /volume/key";
    seen.push_str(&container.output(script)?);
    Ok(Outcome::text(seen))
}

fn propagated(node: &Node, propagation: &str) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let directory = tempfile::tempdir()?;
    let below = directory.path().join("below");
    fs::create_dir(&below)?;
    let tmpfs = |target: &Path| {
        mount(
            Some("tmpfs"),
            target,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
    };
    // Only a mount that is shared can propagate.
    let itself = directory.path();
    mount(Some(itself), itself, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    mount(
        None::<&str>,
        itself,
        None::<&str>,
        MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    let container = pod.start(
        "exec sleep 1000000",
        one_mount(itself, json!({"propagation": propagation})),
    )?;
    tmpfs(&below)?;
    fs::write(below.join("late"), "")?;
    let seen = container.output("ls /volume/below");
    umount(&below)?;
    pod.remove()?;
    umount(itself).context("unmounting the volume")?;
    Ok(Outcome::text(seen?))
}

/// Kubelet asks for recursive read-only mounts only where they are offered, and before 2.4 only runc can offer
/// them. A containerd that gets such a mount for another handler fails with a nil pointer.
fn recursively(node: &Node) -> Result<Outcome> {
    let status = node.call("Status", json!({}))?;
    let handlers = status["runtime_handlers"].as_array().context("no handlers")?;
    let mine = handlers
        .iter()
        .find(|handler| handler["name"] == node.handler.as_str());
    ensure!(
        mine.is_some_and(|mine| mine["features"]["recursive_read_only_mounts"] == true),
        "not offered: {status}"
    );
    let pod = node.pod(Value::Null)?;
    let directory = tempfile::tempdir()?;
    let below = directory.path().join("below");
    fs::create_dir(&below)?;
    mount(
        Some("tmpfs"),
        &below,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let more = json!({"readonly": true, "recursive_read_only": true});
    let script = "touch /volume/a 2>&1; touch /volume/below/a 2>&1; ls /volume/below";
    let outcome = pod.run(script, one_mount(directory.path(), more))?;
    pod.remove()?;
    umount(&below)?;
    Ok(outcome)
}

fn image(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let mounts = json!({"mounts": [{
        "container_path": "/volume",
        "image": {"image": "localhost/configured:lab"},
        "readonly": true,
    }]});
    let outcome = pod.run("ls /volume; touch /volume/a 2>&1; cat /volume/etc/group", mounts)?;
    pod.remove()?;
    Ok(outcome)
}
