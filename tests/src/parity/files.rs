//! Behaviours of the root file system, mounts and device nodes.

use anyhow::{Result, ensure};
use serde_json::json;

use super::process::{keep_words, run_bundle, run_with};
use super::specs::{DEFAULT, DEVICES, KERNEL, MOUNTS};
use super::{Behaviour, Outcome, calls, script};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, add_mount};

const OPTIONS: &[&str] = &["mounts[].options"];

pub const BEHAVIOURS: &[Behaviour] = &[
    script(
        "writable root file system",
        &["root.path"],
        &DEFAULT,
        "echo x > /new && cat /new; stat -c '%a %u:%g' / /tmp",
    ),
    script(
        "read-only root file system",
        &["root.readonly"],
        &KERNEL,
        "echo x > /new; touch /root; echo y > /dev/shm/y && cat /dev/shm/y",
    ),
    script(
        "masked paths",
        &["linux.maskedPaths"],
        &KERNEL,
        "wc -c < /proc/keys; ls -A /etc | wc -l; echo x > /etc/x; stat -c %F /proc/keys /etc",
    ),
    script(
        "default masked paths",
        &["linux.maskedPaths"],
        &DEFAULT,
        "for p in /proc/keys /proc/timer_list; do wc -c < $p; done; ls -A /sys/firmware /proc/scsi 2>/dev/null | wc -w",
    ),
    script(
        "read-only paths",
        &["linux.readonlyPaths"],
        &KERNEL,
        "echo 1 > /proc/sys/vm/swappiness; touch /run/x; ls -d /run",
    ),
    script(
        "default read-only paths",
        &["linux.readonlyPaths"],
        &DEFAULT,
        "echo 1 > /proc/sys/kernel/hostname; echo b > /proc/sysrq-trigger; touch /run/x && echo written",
    ),
    script(
        "default mounts",
        &["mounts[].destination", "mounts[].type", "mounts[].options"],
        &DEFAULT,
        "for m in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /run; do awk -v m=$m '$5 == m { print $5, $6, $(NF-2) }' /proc/self/mountinfo; done",
    ),
    script(
        "default device nodes in /dev",
        &["linux.devices"],
        &DEFAULT,
        "cd /dev; ls | grep -v core | sort; stat -c '%n %a %u:%g %t,%T' null zero full random urandom tty",
    ),
    script(
        "symbolic links in /dev",
        &["linux.devices"],
        &DEFAULT,
        "cd /dev; for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done; ls -A pts",
    ),
    script(
        "default devices work",
        &["linux.devices"],
        &DEFAULT,
        "echo x > /dev/null; head -c 3 /dev/zero | od -c; echo x > /dev/full; head -c 9 /dev/urandom | wc -c",
    ),
    script(
        "access to devices that are not allowed",
        &["linux.resources.devices"],
        &DEFAULT,
        "mknod /tmp/kmsg c 1 11 && head -c 0 /tmp/kmsg && dd if=/tmp/kmsg count=1 2>&1 | tail -n 1; mknod /tmp/loop b 7 0; dd if=/tmp/loop count=1 2>&1 | grep -o 'Operation.*'",
    ),
    script(
        "device nodes from the specification",
        &[
            "linux.devices[].path",
            "linux.devices[].fileMode",
            "linux.devices[].uid",
            "linux.devices[].gid",
        ],
        &DEVICES,
        "stat -c '%n %F %a %u:%g %t,%T' /dev/mine /dev/sub/kmsg /dev/pipe; stat -c %F /dev/null",
    ),
    script(
        "device rules from the specification",
        &["linux.resources.devices"],
        &DEVICES,
        "dd if=/dev/sub/kmsg of=/dev/null count=0 && echo read; echo x > /dev/sub/kmsg; mknod /tmp/c c 1 4 && echo made; head -c 1 /tmp/c",
    ),
    script(
        "private /dev/pts instance",
        &["mounts[].type"],
        &DEFAULT,
        "stat -c %a /dev/pts/ptmx; mount | grep -c devpts",
    ),
    script(
        "tmpfs: size and mode",
        OPTIONS,
        &MOUNTS,
        "stat -c '%a %u:%g' /t; df -k /t | tail -n 1 | awk '{ print $1, $2 }'; dd if=/dev/zero of=/t/f bs=64k count=17 2>&1 | grep -o 'No space.*'",
    ),
    script(
        "tmpfs: noexec, nosuid and nr_inodes",
        OPTIONS,
        &MOUNTS,
        "printf '#!/bin/sh\\necho ran\\n' > /t/x; chmod 755 /t/x; /t/x; awk '$5 == \"/t\" { print $6, substr($NF, 1, 35) }' /proc/self/mountinfo",
    ),
    script(
        "bind mount: writable directory",
        OPTIONS,
        &MOUNTS,
        "cat /rw/file; echo more > /rw/new && cat /ro/new; rm /rw/new",
    ),
    script(
        "bind mount: read-only directory",
        OPTIONS,
        &MOUNTS,
        "echo x > /ro/y; rm /ro/file; cat /ro/file",
    ),
    script(
        "bind mount: read-only file",
        OPTIONS,
        &MOUNTS,
        "cat /new/file; echo x > /new/file; stat -c '%F %a' /new/file",
    ),
    script(
        "bind mount: file with a missing destination",
        OPTIONS,
        &MOUNTS,
        "cat /etc/over; ls /etc | sort",
    ),
    script(
        "bind mount: flags",
        OPTIONS,
        &MOUNTS,
        "awk '$5 == \"/noexec\" { print $6 }' /proc/self/mountinfo; cp /bin/busybox /rw/b; /noexec/b true; rm /rw/b",
    ),
    script(
        "a mount inside another mount",
        OPTIONS,
        &MOUNTS,
        "df -k /rw/below | tail -n 1 | awk '{ print $2 }'; ls -A /rw/below | wc -l",
    ),
    script(
        "/dev/shm and /dev/mqueue",
        &["mounts[].type"],
        &DEFAULT,
        "echo x > /dev/shm/a && cat /dev/shm/a; stat -c %a /dev/shm /dev/mqueue; df -k /dev/shm | tail -n 1 | awk '{ print $2 }'; touch /dev/mqueue/q && ls /dev/mqueue",
    ),
    script(
        "/sys is read-only",
        &["mounts[].options"],
        &DEFAULT,
        "echo 1 > /sys/kernel/uevent_seqnum; mkdir /sys/x; awk '$5 == \"/sys\" { print $6 }' /proc/self/mountinfo",
    ),
    script(
        "/sys/fs/cgroup is mounted read-only",
        &["mounts[].type"],
        &MOUNTS,
        "ls /sys/fs/cgroup | grep '^cgroup.procs$'; mkdir /sys/fs/cgroup/x; awk '$5 == \"/sys/fs/cgroup\" { print $6, $(NF-2) }' /proc/self/mountinfo",
    ),
    script(
        "mount, umount and chroot with default capabilities",
        &["process.capabilities.effective"],
        &DEFAULT,
        "mount -t tmpfs none /tmp; umount /proc; chroot / true && echo chroot",
    ),
    script(
        "file owners, modes, links and FIFOs",
        &["root.path"],
        &DEFAULT,
        "cd /tmp; touch f; chown 1000:65534 f; chmod 4751 f; ln -s f s; ln f h; mkfifo p; stat -c '%n %a %u:%g %h %F' f s p",
    ),
    calls(
        "a mount destination with .. stays inside the root",
        &["mounts[].destination"],
        dot_dot_destination,
    ),
    calls(
        "a mount destination through a symbolic link stays inside the root",
        &["mounts[].destination"],
        symlink_destination,
    ),
    calls(
        "a missing bind mount source is refused",
        &["mounts[].source"],
        missing_source,
    ),
    calls(
        "an unknown mount type is refused",
        &["mounts[].type"],
        unknown_type,
    )
    .allow_difference(
        "Nacre checks the type before it mounts and names it in the error",
        "nosuchfs",
    ),
    calls(
        "bind mount: a write reaches the host",
        &["mounts[].source"],
        write_reaches_host,
    ),
    calls(
        "a missing root file system is refused",
        &["root.path"],
        missing_root,
    ),
];

fn dot_dot_destination(runtime: Runtime) -> Result<Outcome> {
    run_with(
        runtime,
        &[
            "sh",
            "-c",
            "awk '$(NF-1) == \"up\" { print $5 }' /proc/self/mountinfo",
        ],
        |spec| {
            add_mount(
                spec,
                json!({"destination": "/../../up", "type": "tmpfs", "source": "up", "options": ["size=64k"]}),
            );
        },
    )
}

fn symlink_destination(runtime: Runtime) -> Result<Outcome> {
    let script = "awk '$(NF-1) == \"link\" { print $5 }' /proc/self/mountinfo";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        add_mount(
            spec,
            json!({"destination": "/link/in", "type": "tmpfs", "source": "link", "options": ["size=64k"]}),
        );
    })?;
    std::os::unix::fs::symlink("/run/../../../../tmp", bundle.root().join("link"))?;
    let outcome = run_bundle(runtime, &bundle)?;
    ensure!(
        !std::path::Path::new("/tmp/in").exists(),
        "/tmp/in was created on the host"
    );
    Ok(outcome)
}

fn missing_source(runtime: Runtime) -> Result<Outcome> {
    let outcome = run_with(runtime, &["true"], |spec| {
        add_mount(
            spec,
            json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}),
        );
    })?;
    Ok(keep_words(
        outcome,
        &["/no/such/source", "no such file or directory"],
    ))
}

fn unknown_type(runtime: Runtime) -> Result<Outcome> {
    let outcome = run_with(runtime, &["true"], |spec| {
        add_mount(
            spec,
            json!({"destination": "/x", "type": "nosuchfs", "source": "x"}),
        );
    })?;
    Ok(keep_words(outcome, &["nosuchfs"]))
}

fn write_reaches_host(runtime: Runtime) -> Result<Outcome> {
    let bundle = Bundle::new(
        &[
            "sh",
            "-c",
            "echo written > /data/new; chmod 640 /data/new; chown 5:6 /data/new",
        ],
        |spec| {
            let host = crate::containerd::bundle::shared_directory(spec);
            add_mount(
                spec,
                json!({"destination": "/data", "type": "bind", "source": host, "options": ["rbind"]}),
            );
        },
    )?;
    let mut outcome = run_bundle(runtime, &bundle)?;
    let file = bundle.shared_directory().join("new");
    let metadata = std::fs::metadata(&file)?;
    use std::os::unix::fs::MetadataExt as _;
    outcome.stdout += &format!(
        "{:o} {}:{} {}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        std::fs::read_to_string(file)?
    );
    Ok(outcome)
}

fn missing_root(runtime: Runtime) -> Result<Outcome> {
    let outcome = run_with(runtime, &["true"], |spec| {
        spec["root"]["path"] = json!("/no/such/root")
    })?;
    Ok(keep_words(outcome, &["/no/such/root"]))
}
