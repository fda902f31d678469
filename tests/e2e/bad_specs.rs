//! Specifications that are wrong, too large or malicious: each is refused with words, or does what it says inside of its
//! guest. Nothing is left behind, and the next container starts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, Empty, ShutdownRequest};
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::{Output, finish, fresh_id};
use nacre_tests::containerd::task;
use serde_json::{Value, json};

use crate::leaks::Snapshot;
use crate::setup::containerd_address;
use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("wrong specifications are refused, one after the other", || {
        table(WRONG)
    }),
    test("limits and words that make no sense are refused", || {
        table(NONSENSE)
    }),
    test("specifications that are too large", too_large),
    test("mounts and links that point outside stay inside", || {
        table(OUTSIDE)
    }),
    test("root file systems whose directories are links", roots),
    test("bytes in config.json that are no specification", bytes),
];

/// What must come of a specification.
enum Expected {
    /// An error with these words, whatever their case.
    Refused(&'static [&'static str]),
    /// The command runs and prints this.
    Prints(&'static str),
}

use Expected::{Prints, Refused};

type Row = (&'static str, fn(&mut Value), Expected);

const WRONG: &[Row] = &[
    (
        "the host's network",
        |spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.retain(|namespace| namespace["type"] != "network");
            }
        },
        Refused(&["linux.namespaces", "network"]),
    ),
    (
        "a listener on the host",
        |spec| {
            spec["linux"]["seccomp"] =
                json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/listener"});
        },
        Refused(&["linux.seccomp.listenerPath"]),
    ),
    (
        "no process",
        |spec| spec["process"] = Value::Null,
        Refused(&["process"]),
    ),
    (
        "no arguments",
        |spec| spec["process"]["args"] = json!([]),
        Refused(&["process.args"]),
    ),
    (
        "an empty command",
        |spec| spec["process"]["args"] = json!([""]),
        Refused(&["process.args"]),
    ),
    (
        "no working directory",
        |spec| spec["process"]["cwd"] = json!(""),
        Refused(&["process.cwd"]),
    ),
    (
        "a relative working directory",
        |spec| spec["process"]["cwd"] = json!("tmp"),
        Refused(&["process.cwd"]),
    ),
    (
        "a NUL in an argument",
        |spec| spec["process"]["args"] = json!(["echo", "a\u{0}b"]),
        Refused(&["process.args"]),
    ),
    (
        "a NUL in the environment",
        |spec| spec["process"]["env"] = json!(["A=a\u{0}b"]),
        Refused(&["process.env"]),
    ),
    (
        "a relative destination",
        |spec| mount(spec, "relative", "tmpfs"),
        Prints("ran\n"),
    ),
    (
        "an empty destination",
        |spec| mount(spec, "", "tmpfs"),
        Refused(&["destination"]),
    ),
    ("no root", |spec| spec["root"] = Value::Null, Refused(&["root"])),
    (
        "a root that is a file",
        |spec| spec["root"]["path"] = json!("/etc/passwd"),
        Refused(&["root file system"]),
    ),
    (
        "a version of another world",
        |spec| spec["ociVersion"] = json!("9.9"),
        Refused(&["ociVersion"]),
    ),
    (
        "a namespace twice",
        |spec| push(&mut spec["linux"]["namespaces"], json!({"type": "pid"})),
        Refused(&["namespaces"]),
    ),
    (
        "a path in place of a cgroup",
        |spec| spec["linux"]["cgroupsPath"] = json!("/../../../up"),
        Refused(&["cgroupsPath"]),
    ),
    (
        "a long hostname",
        |spec| spec["hostname"] = json!("x".repeat(300)),
        Refused(&["host name"]),
    ),
];

const NONSENSE: &[Row] = &[
    (
        "a negative limit of memory",
        |spec| resources(spec, json!({"memory": {"limit": -5}})),
        Refused(&["memory.limit"]),
    ),
    (
        "a negative limit of processes",
        |spec| resources(spec, json!({"pids": {"limit": -7}})),
        Refused(&["pids.limit"]),
    ),
    (
        "a negative quota",
        |spec| resources(spec, json!({"cpu": {"quota": -3, "period": 100_000}})),
        Refused(&["cpu.quota"]),
    ),
    (
        "a period of 0 and a quota",
        |spec| resources(spec, json!({"cpu": {"quota": 1000, "period": 1}})),
        Refused(&["cpu"]),
    ),
    (
        "a file outside of the cgroup",
        |spec| resources(spec, json!({"unified": {"../memory.max": "max"}})),
        Refused(&["unified"]),
    ),
    (
        "an unknown namespace",
        |spec| push(&mut spec["linux"]["namespaces"], json!({"type": "sideways"})),
        Refused(&["namespaces", "sideways"]),
    ),
    (
        "an unknown limit",
        |spec| spec["process"]["rlimits"] = json!([{"type": "RLIMIT_SIDEWAYS", "soft": 1, "hard": 1}]),
        Refused(&["rlimits", "sideways"]),
    ),
    (
        "a soft limit above the hard one",
        |spec| spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1}]),
        Refused(&["rlimit"]),
    ),
    (
        "an unknown capability",
        |spec| spec["process"]["capabilities"]["bounding"] = json!(["CAP_SIDEWAYS"]),
        Prints("ran\n"),
    ),
    (
        "an unknown action",
        |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_SIDEWAYS"}),
        Refused(&["seccomp", "sideways"]),
    ),
    (
        "an unknown operator",
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_SIDEWAYS"}]}]});
        },
        Refused(&["seccomp", "sideways"]),
    ),
    (
        "an argument that no call has",
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]});
        },
        Refused(&["seccomp"]),
    ),
    (
        "an unknown propagation",
        |spec| spec["linux"]["rootfsPropagation"] = json!("sideways"),
        Refused(&["rootfsPropagation"]),
    ),
    (
        "an unknown option of a tmpfs",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["sideways=1"]}),
            );
        },
        Refused(&["/t"]),
    ),
    (
        "an unknown file system",
        |spec| mount(spec, "/t", "sidewaysfs"),
        Refused(&["sidewaysfs"]),
    ),
    (
        "an unknown kind of device",
        |spec| spec["linux"]["devices"] = json!([{"path": "/dev/x", "type": "x", "major": 1, "minor": 1}]),
        Refused(&["devices"]),
    ),
    (
        "a device with a relative path",
        |spec| spec["linux"]["devices"] = json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]),
        Refused(&["devices"]),
    ),
    (
        "a device outside of /dev by ..",
        |spec| {
            spec["linux"]["devices"] = json!([{"path": "/dev/../../x", "type": "c", "major": 1, "minor": 3}])
        },
        Prints("ran\n"),
    ),
    (
        "a setting by a path",
        |spec| spec["linux"]["sysctl"] = json!({"kernel/../../../etc/passwd": "1"}),
        Refused(&["sysctl"]),
    ),
    (
        "a setting that is no namespace's",
        |spec| spec["linux"]["sysctl"] = json!({"kernel.panic": "1"}),
        Refused(&["sysctl"]),
    ),
    (
        "maps that overlap",
        |spec| {
            push(&mut spec["linux"]["namespaces"], json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 5, "hostID": 0, "size": 10}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
        },
        Refused(&[]),
    ),
    (
        "a hook that does not exist",
        |spec| spec["hooks"] = json!({"createRuntime": [{"path": "/no/such/hook"}]}),
        Refused(&["/no/such/hook"]),
    ),
    (
        "a hook without a path",
        |spec| spec["hooks"] = json!({"prestart": [{"path": ""}]}),
        Refused(&["hooks.prestart"]),
    ),
    (
        "a user that no id has",
        |spec| spec["process"]["user"] = json!({"uid": 4_294_967_295_u32, "gid": 0}),
        Refused(&["uid"]),
    ),
];

const OUTSIDE: &[Row] = &[
    (
        "a destination upwards",
        |spec| {
            mount(spec, "/../../../up", "tmpfs");
            spec["process"]["args"] = json!(["sh", "-c", "grep -c ' /up ' /proc/self/mountinfo"]);
        },
        Refused(&["destination"]),
    ),
    (
        "a destination that is the root",
        |spec| mount(spec, "/", "tmpfs"),
        Refused(&[]),
    ),
    (
        "a destination that is the root by ..",
        |spec| mount(spec, "/tmp/../..", "tmpfs"),
        Refused(&[]),
    ),
    (
        "a masked path upwards",
        |spec| spec["linux"]["maskedPaths"] = json!(["/../../../../etc/passwd"]),
        Prints("ran\n"),
    ),
    (
        "a tmpfs in place of /proc",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
            );
        },
        Refused(&["/proc"]),
    ),
    (
        "a source in the guest's own files",
        |spec| {
            push(
                &mut spec["mounts"],
                json!({"destination": "/x", "type": "bind", "source": "/init", "options": ["bind"]}),
            );
        },
        Refused(&["/init"]),
    ),
];

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn mount(spec: &mut Value, destination: &str, kind: &str) {
    push(
        &mut spec["mounts"],
        json!({"destination": destination, "type": kind, "source": kind}),
    );
}

fn resources(spec: &mut Value, with: Value) {
    spec["linux"]["resources"] = with;
}

/// Every row by itself; all that fail are told.
fn table(rows: &[Row]) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, change, expected) in rows {
        if let Err(error) = alone(name, change, expected, |_| Ok(())) {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    next_starts()
}

/// One specification between two looks at the host.
fn alone(
    name: &str,
    change: impl FnOnce(&mut Value),
    expected: &Expected,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let bundle = Bundle::new(&["echo", "ran"], change)?;
    prepare(&bundle.root())?;
    let before = Snapshot::take()?;
    let output = bundle.finish("bad")?;
    judge(&output, expected).with_context(|| format!("{name}: {output:?}"))?;
    before.compare(Duration::from_secs(15))
}

fn judge(output: &Output, expected: &Expected) -> Result<()> {
    match expected {
        Refused(words) => {
            ensure!(output.code != Some(0), "it ran");
            let said = output.stderr.to_lowercase();
            for word in *words {
                ensure!(
                    said.contains(&word.to_lowercase()),
                    "the error does not say {word:?}"
                );
            }
        }
        Prints(text) => {
            ensure!(
                output.code == Some(0) && output.text() == *text,
                "it should print {text:?}"
            );
        }
    }
    Ok(())
}

fn next_starts() -> Result<()> {
    let output = Bundle::new(&["echo", "next"], |_| ())?
        .finish("next")?
        .success()?;
    ensure!(output == "next\n", "the next container printed {output:?}");
    Ok(())
}

fn too_large() -> Result<()> {
    let many = |spec: &mut Value| {
        for number in 0..10_000 {
            mount(spec, &format!("/m/{number}"), "tmpfs");
        }
    };
    let long = |spec: &mut Value| spec["process"]["args"] = json!(["echo", "x".repeat(200_000)]);
    let args = |spec: &mut Value| {
        spec["process"]["args"] = json!(["echo"]);
        for _ in 0..60 {
            push(&mut spec["process"]["args"], json!("x".repeat(100_000)));
        }
    };
    let masked = |spec: &mut Value| spec["linux"]["maskedPaths"] = json!(vec!["/etc/passwd"; 20_000]);
    alone("10,000 mounts", many, &Refused(&["mounts"]), |_| Ok(()))?;
    alone(
        "an argument of 200 kB",
        long,
        &Refused(&["argument list too long"]),
        |_| Ok(()),
    )?;
    alone("arguments of 6 MB", args, &Refused(&[]), |_| Ok(()))?;
    alone("20,000 masked paths", masked, &Refused(&[]), |_| Ok(()))?;
    next_starts()
}

/// Directories that runtimes use by name, and that an image may have made links.
fn roots() -> Result<()> {
    let link = |name: &'static str, to: &'static str| {
        move |root: &Path| -> Result<()> {
            let path = root.join(name);
            fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path))?;
            Ok(symlink(to, path)?)
        }
    };
    let marker = Path::new("/run/nacre-e2e-marker");
    for (name, to) in [
        ("etc", "/"),
        ("etc", "/../../../.."),
        ("dev", "/tmp"),
        ("sys", "/etc"),
        ("run", "/../../../../run"),
        ("tmp", "/proc/self/root"),
        ("proc", "/tmp"),
        ("proc", "/../../../../proc"),
    ] {
        let script = |spec: &mut Value| {
            spec["process"]["args"] = json!(["sh", "-c", "touch /run/nacre-e2e-marker; echo ran"]);
        };
        // What a runtime needs at its place is refused, or put there all the same.
        let bundle = Bundle::new(&["true"], script)?;
        link(name, to)(&bundle.root())?;
        let before = Snapshot::take()?;
        let output = bundle.finish("root")?;
        let said = output.code != Some(0) && !output.stderr.is_empty();
        ensure!(output.text() == "ran\n" || said, "/{name} → {to} gave {output:?}");
        ensure!(
            !marker.exists(),
            "/{name} → {to}: the container wrote to the host"
        );
        before
            .compare(Duration::from_secs(15))
            .with_context(|| format!("/{name} → {to}"))?;
    }
    next_starts()
}

/// ctr would not send these: a shim is started by hand, as containerd does it.
fn bytes() -> Result<()> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let good = br#"{"ociVersion":"1.0.2","process":{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"/"},"hostname":"NAME"}"#;
    let at = good
        .windows(4)
        .position(|bytes| bytes == b"NAME")
        .context("no place")?;
    let mut not_utf8 = good.to_vec();
    not_utf8[at..at + 4].copy_from_slice(&[0xff, 0xfe, 0xc3, 0x28]);
    let rows: [(&str, &[u8]); 8] = [
        ("nothing", b""),
        ("no JSON", b"process: args"),
        ("a list", b"[]"),
        ("cut off", &good[..good.len() / 2]),
        ("no UTF-8", &not_utf8),
        (
            "half a surrogate",
            br#"{"ociVersion":"1.0.2","hostname":"\ud800"}"#,
        ),
        ("deep", deep.as_bytes()),
        (
            "other types",
            br#"{"ociVersion":1,"process":[],"root":"/","mounts":{},"linux":7}"#,
        ),
    ];
    for (name, config) in rows {
        let before = Snapshot::take()?;
        raw(config).with_context(|| name.to_owned())?;
        before
            .compare(Duration::from_secs(15))
            .with_context(|| name.to_owned())?;
    }
    next_starts()
}

/// A shim's life with `config`, from `start` to `delete`: Create must fail with words.
fn raw(config: &[u8]) -> Result<()> {
    let id = fresh_id("raw");
    let bundle = tempfile::tempdir_in("/run")?;
    fs::write(bundle.path().join("config.json"), config)?;
    let address = containerd_address()?;
    let shim = |verb: &str| -> Result<Output> {
        let mut command = Command::new("containerd-shim-nacre-v2");
        command
            .current_dir(bundle.path())
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", address.display()))
            .args([
                "-namespace",
                "default",
                "-id",
                &id,
                "-publish-binary",
                "/bin/true",
                "-address",
            ])
            .arg(&address);
        if verb == "delete" {
            command.arg("-bundle").arg(bundle.path());
        }
        command.arg(verb);
        finish(command)
    };
    let started = shim("start")?;
    if started.code == Some(0) {
        let socket = started.text().trim().to_owned();
        let request = CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.path().display().to_string(),
            ..CreateTaskRequest::default()
        };
        let created: Result<CreateTaskResponse, ttrpc::Status> = task::call_at(&socket, "Create", &request)?;
        let shutdown = ShutdownRequest {
            id: id.clone(),
            now: true,
            ..ShutdownRequest::default()
        };
        let _: Result<Empty, ttrpc::Status> = task::call_at(&socket, "Shutdown", &shutdown)?;
        match created {
            Ok(_) => bail!("it was accepted"),
            Err(status) => ensure!(!status.message().is_empty(), "refused without a word"),
        }
    } else {
        ensure!(!started.stderr.is_empty(), "refused without a word");
    }
    shim("delete")?.success().map(drop)
}
