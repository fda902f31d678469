//! Pods with a user namespace (`hostUsers: false`), in a lab with `--ext4`: containerd gives its own files, such as
//! /etc/hosts, an id map, and the root file system's layers, too, which a tmpfs on Linux 6.1 does not have. runc has id
//! maps of mounts since 1.2, and Debian's is older, so that what each case ensures is the test.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{security, without_numbers};
use crate::cri::node::{Node, merge};
use crate::cri::pod::Pod;
use crate::cri::{Case, calls};
use crate::parity::Outcome;
use crate::posix::root::Volume;

pub const CASES: &[Case] = &[
    case("users: of the pod", of_the_pod).only_nacre(),
    case("users: the pod's network is root's", network).only_nacre(),
    case("users: processes of the pod are shared", processes).only_nacre(),
    case("users: files on a volume", volume).only_nacre(),
    case("users: a volume with an id map", mapped_volume).only_nacre(),
    case("users: a container with other ones is refused", others),
];

const fn case(name: &'static str, function: fn(&Node) -> Result<Outcome>) -> Case {
    calls(name, function).since("2.0").needs_id_maps()
}

/// `seen` as the outcome, which must have each of `parts`.
fn with_parts(seen: String, parts: &[&str]) -> Result<Outcome> {
    for part in parts {
        ensure!(seen.contains(part), "{part:?} is missing: {seen}");
    }
    Ok(Outcome::text(seen))
}

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

/// A pod with users of its own.
fn pod(node: &Node) -> Result<Pod<'_>> {
    node.pod(users(ROOT))
}

fn of_the_pod(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u; grep ^Cap /proc/self/status
        stat -c '%u %g' / /etc/passwd; touch /new; stat -c '%u %g' /new; hostname nope 2>&1; hostname
        ls -l /dev/null /proc/self/fd/1 | awk '{print $3, $4}'; touch /dev/shm/of-one; echo done; exec sleep 1000000";
    let one = pod.start(script, Value::Null)?;
    one.prints("done")?;
    let two = pod.start("exec sleep 1000000", Value::Null)?;
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
    let other = security(json!({"run_as_user": {"value": 1000}, "supplemental_groups": [2000]}));
    seen.push(
        pod.run("id; touch /tmp/a && stat -c '%u %g' /tmp/a", other)?
            .stdout,
    );
    pod.remove()?;
    with_parts(
        seen.join("\n"),
        &[
            " 0 200000 65536\n 0 200000 65536\n0\n",
            "CapEff:\t00000000a80425fb\n",
            "0 0\n0 0\n0 0\nhostname: sethostname: Operation not permitted\n",
            "nobody nogroup\nroot root\ndone\n",
            "user: true\nnet: true\nipc: true\nuts: true\nmnt: false\npid: false\ncgroup: false\n",
            "of-one\nuid=0(root) gid=0(root)",
            "uid=1000 gid=0(root) groups=0(root),2000\n1000 0\n",
        ],
    )
}

fn network(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let capabilities = json!({"capabilities": {"add_capabilities": ["NET_ADMIN", "NET_RAW"]}});
    let container = pod.start("exec sleep 1000000", security(capabilities))?;
    let script = "ls /sys/class/net; cat /sys/class/net/eth0/mtu; ip route show | wc -l
        gateway=$(ip route | awk '/default/ {print $3}'); ping -c 1 -w 10 $gateway >/dev/null && echo reached
        ip addr add 10.77.0.1/32 dev lo && ip -o addr show dev lo | grep -c 10.77.0.1
        ip link set lo mtu 1500 && cat /sys/class/net/lo/mtu";
    let seen = container.output(script)?;
    pod.remove()?;
    with_parts(seen, &["eth0\nlo\n1500\n2\nreached\n1\n1500"])
}

fn processes(node: &Node) -> Result<Outcome> {
    let mut change = users(ROOT);
    merge(
        &mut change,
        security(json!({"namespace_options": {"pid": "POD"}})),
    );
    let pod = node.pod(change)?;
    let one = pod.start("echo up; exec sleep 1111", Value::Null)?;
    one.prints("up")?;
    let script = "ps -o user,comm,args | grep -v grep | grep '[s]leep 1111'; grep ^Uid /proc/1/status
        kill $(ps -o pid,args | awk '/sleep 1111/ && !/awk/ {print $1}')";
    let mut seen = pod.run(script, Value::Null)?.stdout;
    seen.push_str(&format!("{:?}", one.ended()?.code));
    pod.remove()?;
    with_parts(seen, &["sleep 1111\nUid:\t0\t0\t0\t0\nSome(143)"])
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
    let mut seen = pod.run(script, json!({"mounts": [mount]}))?.stdout;
    let new = fs::metadata(of.join("new"))?;
    seen.push_str(&format!("on the host: {} {}\n", new.uid(), new.gid()));
    pod.remove()?;
    with_parts(
        seen,
        &[
            "65534 65534\n65534 65534\n0 0\nchown: /volume/of-host: Operation not permitted\n",
            "on the host: 201000 201001\n",
        ],
    )
}

/// The owners on the host are those in the container; a group that may write (fsGroup) does so under its own number.
fn mapped_volume(node: &Node) -> Result<Outcome> {
    let volume = Volume::new()?;
    let of = volume.path().join("volume");
    fs::create_dir(&of)?;
    fs::set_permissions(&of, fs::Permissions::from_mode(0o2775))?;
    chown(&of, Some(0), Some(2000))?;
    fs::write(of.join("of-host"), "of the host\n")?;
    let pod = pod(node)?;
    let mount = mapped(json!({"container_path": "/volume", "host_path": of}));
    let mut config = json!({"mounts": [mount]});
    let script = "stat -c '%u %g' /volume /volume/of-host /etc/hosts; touch /volume/new
        chown 7:8 /volume/new; stat -c '%u %g' /volume/new";
    let mut seen = pod.run(script, config.clone())?.stdout;
    let other = json!({"run_as_user": {"value": 1000}, "supplemental_groups": [2000]});
    merge(&mut config, security(other));
    let script = "cat /volume/of-host; touch /volume/of-group; stat -c '%u %g' /volume/of-group";
    seen.push_str(&pod.run(script, config)?.stdout);
    pod.remove()?;
    for name in ["new", "of-group"] {
        let found = fs::metadata(of.join(name))?;
        seen.push_str(&format!("{name}: {} {}\n", found.uid(), found.gid()));
    }
    with_parts(
        seen,
        &[
            "0 2000\n0 2000\n0 0\n7 8\nof the host\n1000 2000\n",
            "new: 7 8\nof-group: 1000 2000\n",
        ],
    )
}

fn others(node: &Node) -> Result<Outcome> {
    let pod = pod(node)?;
    let seen = match pod.create("true", users(ROOT + 65536)) {
        Ok(_) => "created".to_owned(),
        Err(error) => without_numbers(&format!("{error:#}")),
    };
    pod.remove()?;
    Ok(Outcome::text(seen))
}
