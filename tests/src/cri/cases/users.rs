//! Pods with a user namespace (`hostUsers: false`). containerd of the lab has its files on a tmpfs, which has no
//! id maps on Linux 6.1, so the containers get /etc/hosts, /etc/hostname and /etc/resolv.conf as kubelet gives
//! them the first one.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{security, without_numbers};
use crate::cri::node::{Node, merge};
use crate::cri::pod::Pod;
use crate::cri::{Case, calls};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[
    calls("users: of the pod", of_the_pod).since("2.0"),
    calls("users: the pod's network is root's", network).since("2.0"),
    calls("users: processes of the pod are shared", processes).since("2.0"),
    calls("users: files on a volume", volume).since("2.0"),
    calls("users: a volume with an id map", mapped_volume)
        .since("2.0")
        .only_nacre(),
    calls("users: a container with other ones is refused", others).since("2.0"),
];

/// The user that root in the pods is on the host.
const ROOT: u32 = 200_000;

fn mappings(first: u32) -> Value {
    json!([{"container_id": 0, "host_id": first, "length": 65536}])
}

/// A change of a pod's or container's namespaces.
fn users(first: u32) -> Value {
    let users = json!({"mode": "POD", "uids": mappings(first), "gids": mappings(first)});
    security(json!({"namespace_options": {"userns_options": users}}))
}

/// A mount with the pod's id map.
fn mapped(mut mount: Value) -> Value {
    let maps = json!({"uid_mappings": mappings(ROOT), "gid_mappings": mappings(ROOT)});
    merge(&mut mount, maps);
    mount
}

/// The files of a container that containerd would give an id map, from `directory`, and `more` mounts.
fn files(directory: &Path, more: &[Value]) -> Result<Value> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let mut mounts = more.to_vec();
    for name in ["hosts", "hostname", "resolv.conf"] {
        let file = directory.join(name);
        fs::write(&file, "127.0.0.1 localhost\n")?;
        mounts.push(json!({"container_path": format!("/etc/{name}"), "host_path": file}));
    }
    Ok(json!({"mounts": mounts}))
}

/// A pod with users of its own.
fn pod(node: &Node) -> Result<Pod<'_>> {
    node.pod(users(ROOT))
}

fn of_the_pod(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let directory = tempfile::tempdir()?;
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u; grep ^Cap /proc/self/status
        stat -c '%u %g' / /etc/passwd; touch /new; stat -c '%u %g' /new; hostname nope 2>&1; hostname
        ls -l /dev/null /proc/self/fd/1 | awk '{print $3, $4}'; touch /dev/shm/of-one; echo done; exec sleep 1000000";
    let config = files(directory.path(), &[])?;
    let one = pod.start(script, config.clone())?;
    one.prints("done")?;
    let two = pod.start("exec sleep 1000000", config.clone())?;
    let mut seen = one
        .lines()?
        .iter()
        .map(|line| line.text.clone())
        .collect::<Vec<_>>();
    for name in ["user", "net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        let script = format!("readlink /proc/self/ns/{name}");
        let same = one.output(&script)? == two.output(&script)?;
        seen.push(format!("{name}: {same}"));
    }
    seen.push(two.output(
        "ls /dev/shm; id; cat /proc/self/uid_map | tr -s ' '; ls -ln /dev/shm/of-one | awk '{print $3}'",
    )?);
    // Another user, whose groups are mapped, too.
    let mut other = config;
    merge(
        &mut other,
        security(json!({"run_as_user": {"value": 1000}, "supplemental_groups": [2000]})),
    );
    seen.push(
        pod.run("id; touch /tmp/a && stat -c '%u %g' /tmp/a", other)?
            .stdout,
    );
    pod.remove()?;
    Ok(Outcome::text(seen.join("\n")))
}

fn network(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let directory = tempfile::tempdir()?;
    let mut config = files(directory.path(), &[])?;
    let capabilities = json!({"capabilities": {"add_capabilities": ["NET_ADMIN", "NET_RAW"]}});
    merge(&mut config, security(capabilities));
    let container = pod.start("exec sleep 1000000", config)?;
    let script = "ls /sys/class/net; cat /sys/class/net/eth0/mtu; ip route show | wc -l
        gateway=$(ip route show default | awk '{print $3}'); ping -c 1 -w 10 $gateway >/dev/null && echo reached
        ip addr add 10.77.0.1/32 dev lo && ip -o addr show dev lo | grep -c 10.77.0.1
        ip link set lo mtu 1500 && cat /sys/class/net/lo/mtu; cat /proc/sys/net/core/somaxconn";
    let seen = container.output(script)?;
    pod.remove()?;
    Ok(Outcome::text(seen))
}

fn processes(node: &Node) -> Result<Outcome> {
    let mut change = users(ROOT);
    merge(
        &mut change,
        security(json!({"namespace_options": {"pid": "POD"}})),
    );
    let pod = node.pod(change)?;
    let directory = tempfile::tempdir()?;
    let config = files(directory.path(), &[])?;
    let one = pod.start("echo up; exec sleep 1111", config.clone())?;
    one.prints("up")?;
    let script = "ps -o user,comm,args | grep -v grep | grep '[s]leep 1111'; grep ^Uid /proc/1/status
        kill $(ps -o pid,args | awk '/sleep 1111/ && !/awk/ {print $1}')";
    let mut seen = pod.run(script, config)?.to_string();
    seen.push_str(&format!("{:?}", one.ended()?.code));
    pod.remove()?;
    Ok(Outcome::text(seen))
}

/// As kubelet's emptyDir, whose owner is root on the host.
fn volume(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let directory = tempfile::tempdir()?;
    let of = directory.path().join("volume");
    fs::create_dir(&of)?;
    fs::set_permissions(&of, fs::Permissions::from_mode(0o777))?;
    fs::write(of.join("of-host"), "")?;
    let mount = json!({"container_path": "/volume", "host_path": of});
    let script = "stat -c '%u %g' /volume /volume/of-host; touch /volume/new; stat -c '%u %g' /volume/new
        chown 1000:1001 /volume/new; chown 0 /volume/of-host 2>&1; echo a 2>&1 >/volume/of-host";
    let mut seen = pod.run(script, files(directory.path(), &[mount])?)?.to_string();
    let new = fs::metadata(of.join("new"))?;
    seen.push_str(&format!("on the host: {} {}\n", new.uid(), new.gid()));
    pod.remove()?;
    Ok(Outcome::text(seen))
}

/// An ext4 file system in a file, mounted; its root directory is `0`.
struct Ext4(tempfile::TempDir);

impl Ext4 {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (image, target) = (directory.path().join("image"), directory.path().join("on"));
        fs::File::create(&image)?.set_len(16 << 20)?;
        fs::create_dir(&target)?;
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status()?;
        ensure!(made.success(), "mkfs.ext4: {made}");
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &target])
            .status()?;
        ensure!(mounted.success(), "mount: {mounted}");
        Ok(Self(directory))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("on")
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount(&self.path()) {
            eprintln!("nacre-cri: unmounting {}: {error}", self.path().display());
        }
    }
}

/// runc has id maps of mounts since 1.2. The owners on the host are those in the container; a group that may write
/// (fsGroup) does so under its own number.
fn mapped_volume(node: &Node) -> Result<Outcome> {
    let ext4 = Ext4::new()?;
    let of = ext4.path().join("volume");
    fs::create_dir(&of)?;
    fs::set_permissions(&of, fs::Permissions::from_mode(0o2775))?;
    chown(&of, Some(0), Some(2000))?;
    fs::write(of.join("of-host"), "of the host\n")?;
    let pod = pod(node)?;
    let mount = mapped(json!({"container_path": "/volume", "host_path": of}));
    let mut config = files(&ext4.path(), &[mount])?;
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        *mount = mapped(mount.take());
    }
    let script = "stat -c '%u %g' /volume /volume/of-host /etc/hosts; echo more >>/etc/hosts
        touch /volume/new; chown 7:8 /volume/new; stat -c '%u %g' /volume/new";
    let mut seen = pod.run(script, config.clone())?.to_string();
    let other = json!({"run_as_user": {"value": 1000}, "supplemental_groups": [2000]});
    merge(&mut config, security(other));
    let script = "cat /volume/of-host; touch /volume/of-group; stat -c '%u %g' /volume/of-group";
    seen.push_str(&pod.run(script, config)?.to_string());
    pod.remove()?;
    for name in ["new", "of-group"] {
        let found = fs::metadata(of.join(name))?;
        seen.push_str(&format!("{name}: {} {}\n", found.uid(), found.gid()));
    }
    ensure!(fs::read_to_string(ext4.path().join("hosts"))?.ends_with("more\n"));
    for text in [
        "0 2000\n0 2000\n0 0\n7 8\n",
        "of the host\n1000 2000\n",
        "new: 7 8\nof-group: 1000 2000\n",
    ] {
        ensure!(seen.contains(text), "{seen}");
    }
    Ok(Outcome::text(seen))
}

fn others(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let directory = tempfile::tempdir()?;
    let mut config = files(directory.path(), &[])?;
    merge(&mut config, users(ROOT + 65536));
    let seen = match pod.create("true", config) {
        Ok(_) => "created".to_owned(),
        Err(error) => without_numbers(&format!("{error:#}")),
    };
    pod.remove()?;
    Ok(Outcome::text(seen))
}
