//! Behaviours of setting a container up on files that are there already: where mounts and the working directory go,
//! what becomes of /dev, and what the host's mounts allow.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::process::{keep_words, run_bundle};
use super::{Behaviour, Outcome, calls};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, add_mount, shared_directory};
use crate::containerd::ctr::{Run, fresh_id, output};
use crate::host_mount::HostMount;
use crate::posix::root::Volume;

const DESTINATION: &[&str] = &["mounts[].destination"];
const OPTIONS: &[&str] = &["mounts[].options"];
const CWD: &[&str] = &["process.cwd"];

pub const BEHAVIOURS: &[Behaviour] = &[
    calls(
        "mounts go where links of the image lead",
        DESTINATION,
        through_links,
    ),
    calls(
        "mounts go where links of a volume lead",
        DESTINATION,
        through_links_of_volume,
    ),
    calls(
        "a loop of links as a destination is refused",
        DESTINATION,
        |runtime| {
            let bundle = with_links(&["true"], &[("a", "b"), ("b", "a")], |spec| {
                let host = shared_directory(spec);
                add_mount(spec, bind(&host, "/a/x", &[]));
            })?;
            Ok(keep_words(
                run_bundle(runtime, &bundle)?,
                &["too many levels of symbolic links"],
            ))
        },
    ),
    calls(
        "tmpfs without a mode: that of the directory below",
        OPTIONS,
        tmpfs_modes,
    ),
    calls("tmpfs with a mode over a directory", OPTIONS, |runtime| {
        let stat = ["stat", "-c", "%a", "/tmp"];
        run(runtime, &stat, |spec| {
            add_mount(spec, tmpfs("/tmp", &["mode=700"]))
        })
    })
    .allow_difference(
        "runc 1.1 ignores the option mode if the directory exists; newer versions apply it",
        "700",
    ),
    calls("a volume as /dev is taken as it is", DESTINATION, volume_as_dev),
    calls("a file over a default device", DESTINATION, |runtime| {
        let script = "stat -c '%t,%T' /dev/random; head -c 4 /dev/random | wc -c; ls /dev/null";
        run(runtime, &["sh", "-c", script], |spec| {
            add_mount(spec, bind("/dev/urandom", "/dev/random", &[]));
        })
    }),
    calls("flags of the host's mounts", OPTIONS, host_flags).allow_difference(
        "the guest's kernel mounts what is below a mount of the host when it is reached, with the flags of that \
         mount, too",
        "sh: /data/run: Permission denied\n\
         sh: /data/below/run: Permission denied\n\
         sh: /data/open/run: Permission denied\n\
         sh: /file: Permission denied\n\
         /data rw,nosuid,nodev,noexec\n\
         /data/below rw,nosuid,nodev,noexec\n\
         /data/open rw,nosuid,nodev,noexec\n\
         /file rw,nosuid,nodev,noexec",
    ),
    calls(
        "flags of the host's mount, and options of the specification",
        OPTIONS,
        |runtime| restricted(runtime, &["ro", "exec"], "/data/run"),
    )
    .allow_difference(
        "Nacre keeps the flags of the host's mount, whatever options the mount of the container has",
        "Permission denied",
    ),
    calls(
        "flags of the host's mount, and recursive options of the specification",
        OPTIONS,
        |runtime| restricted(runtime, &["rexec", "rsuid", "rdev"], "/data/run"),
    )
    .allow_difference(
        "Nacre keeps the flags of the host's mount, whatever options the mount of the container has",
        "Permission denied",
    ),
    calls("a mount below a read-only tmpfs", DESTINATION, |runtime| {
        let script = "touch /fixed/x /fixed/below/x; ls /fixed /fixed/below; pwd";
        run(runtime, &["sh", "-c", script], |spec| {
            add_mount(spec, tmpfs("/fixed", &["ro", "mode=755"]));
            add_mount(spec, tmpfs("/fixed/below", &["mode=755"]));
            spec["process"]["cwd"] = json!("/fixed/work");
        })
    }),
    calls(
        "a missing working directory in a tmpfs is created",
        CWD,
        |runtime| {
            let script = "pwd; stat -c '%a %u:%g' . ..; mount | grep -c 'on /run '";
            run(runtime, &["sh", "-c", script], |spec| {
                spec["process"]["cwd"] = json!("/run/app/state")
            })
        },
    ),
    calls(
        "a missing working directory below a link into a volume is created",
        CWD,
        |runtime| {
            let bundle = with_links(&["pwd"], &[("link", "/data")], |spec| {
                let host = shared_directory(spec);
                add_mount(spec, bind(&host, "/data", &[]));
                spec["process"]["cwd"] = json!("/link/sub");
            })?;
            let mut outcome = run_bundle(runtime, &bundle)?;
            outcome.stdout += &listing(&bundle.shared_directory())?;
            Ok(outcome)
        },
    ),
    calls(
        "a working directory that is a link to nowhere is refused",
        CWD,
        |runtime| {
            let bundle = with_links(&["true"], &[("link", "/no/where")], |spec| {
                spec["process"]["cwd"] = json!("/link/sub");
            })?;
            let outcome = keep_words(run_bundle(runtime, &bundle)?, &["file exists"]);
            Ok(Outcome {
                stdout: bundle.root().join("no").exists().to_string(),
                ..outcome
            })
        },
    ),
    calls(
        "an environment variable that is set twice has its last value",
        &["process.env[]"],
        |runtime| {
            run(runtime, &["env"], |spec| {
                spec["process"]["env"] =
                    json!(["PATH=/none", "A=1", "HOME=", "B=2", "A=3=4", "PATH=/bin", "B="]);
            })
        },
    ),
    calls(
        "an entry of the environment without a name or a value is refused",
        &["process.env[]"],
        |runtime| {
            let refused = |entry: &str| {
                let outcome = run(runtime, &["true"], |spec| {
                    spec["process"]["env"] = json!(["PATH=/bin", entry]);
                })?;
                anyhow::Ok(format!("{entry:?} {:?}\n", outcome.code))
            };
            Ok(Outcome::text(
                refused("NAME")? + &refused("=value")? + &refused("")?,
            ))
        },
    ),
    calls(
        "a file of the image that is opened for writing, deleted and then written",
        &["root.path"],
        |runtime| {
            let script = "exec 3<>/etc/group && rm /etc/group && printf new >&3 && head -c 3 /proc/self/fd/3; echo; \
            echo x > /tmp/x; exec 4<>/etc/passwd && mv /tmp/x /etc/passwd && printf new >&4 && echo written";
            let command = ["sh", "-c", script];
            let run = Run {
                command: &command,
                runtime,
                ..Run::default()
            };
            Ok(run.output(&fresh_id("parity"))?.into())
        },
    ),
    calls(
        "an overlay with its upper directory on a volume",
        &["mounts[].type"],
        overlay_on_volume,
    ),
];

/// Runs `args` in a container to its end, with a specification modified by `change`.
fn run(runtime: Runtime, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Outcome> {
    run_bundle(runtime, &Bundle::new(args, change)?)
}

/// A bundle whose root has links: names and targets.
fn with_links(args: &[&str], links: &[(&str, &str)], change: impl FnOnce(&mut Value)) -> Result<Bundle> {
    let bundle = Bundle::new(args, change)?;
    for (name, target) in links {
        symlink(target, bundle.root().join(name))?;
    }
    Ok(bundle)
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    let options = [&["rbind"], options].concat();
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    let options = [&["nosuid"], options].concat();
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// The names in `directory` and below, sorted.
fn listing(directory: &Path) -> Result<String> {
    let mut find = Command::new("find");
    find.arg(directory)
        .args(["-mindepth", "1", "-printf", "%P %y %l\n"]);
    let text = output(find)?.success()?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

fn through_links(runtime: Runtime) -> Result<Outcome> {
    let script = "ls /made/dir; cat /etc/zone; readlink /etc/zone; ls /up; cat /etc/deep/file; mount | grep -c ' /root '";
    let links = [
        ("dangling", "/made/dir"),
        ("etc/zone", "/zones/here"),
        ("outside", "../../up"),
        ("relative", "etc/../etc/deep"),
        ("home", "root"),
    ];
    let bundle = with_links(&["sh", "-c", script], &links, |spec| {
        let host = shared_directory(spec);
        let file = format!("{host}/file");
        add_mount(spec, bind(&host, "/dangling", &[]));
        add_mount(spec, bind(&file, "/etc/zone", &["ro"]));
        add_mount(spec, bind(&host, "/outside", &[]));
        add_mount(spec, bind(&file, "/relative/file", &[]));
        add_mount(spec, tmpfs("/home", &[]));
    })?;
    run_bundle(runtime, &bundle)
}

fn through_links_of_volume(runtime: Runtime) -> Result<Outcome> {
    let script = "cat /data/inner/file; cat /etc/here; cat /run/new/file";
    let bundle = with_links(&["sh", "-c", script], &[("into", "/data/inner")], |spec| {
        let host = shared_directory(spec);
        let file = format!("{host}/file");
        add_mount(spec, bind(&host, "/data", &[]));
        add_mount(spec, bind(&host, "/into", &[]));
        add_mount(spec, bind(&file, "/data/back", &[]));
        add_mount(spec, bind(&file, "/data/late/file", &[]));
    })?;
    symlink("/etc/here", bundle.shared_directory().join("back"))?;
    symlink("/run/new", bundle.shared_directory().join("late"))?;
    let mut outcome = run_bundle(runtime, &bundle)?;
    outcome.stdout += &listing(&bundle.shared_directory())?;
    Ok(outcome)
}

fn tmpfs_modes(runtime: Runtime) -> Result<Outcome> {
    let places = ["/root", "/tmp", "/new", "/a", "/a/b", "/a/c", "/data"];
    let stat = [&["stat", "-c", "%n %a %u:%g"], &places[..]].concat();
    let bundle = Bundle::new(&stat, |spec| {
        let host = shared_directory(spec);
        add_mount(spec, bind(&host, "/data", &[]));
        for place in ["/root", "/tmp", "/new", "/a", "/a/b", "/a/c", "/data"] {
            add_mount(spec, tmpfs(place, &[]));
        }
    })?;
    let set =
        |path: PathBuf, mode: u32| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    set(bundle.root().join("root"), 0o2750)?;
    set(bundle.shared_directory(), 0o711)?;
    run_bundle(runtime, &bundle)
}

/// Nothing is made, changed or removed in it.
fn volume_as_dev(runtime: Runtime) -> Result<Outcome> {
    let script =
        "echo x > /dev/null && head -c 3 /dev/zero | wc -c; ls /dev /dev/shm; mount | grep -c ' /dev/shm '";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let host = shared_directory(spec);
        add_mount(spec, bind(&host, "/dev", &[]));
        add_mount(spec, tmpfs("/dev/shm", &[]));
    })?;
    let dev = bundle.shared_directory();
    for (name, minor) in [("null", "3"), ("zero", "5")] {
        let mut mknod = Command::new("mknod");
        mknod
            .args(["-m", "666"])
            .arg(dev.join(name))
            .args(["c", "1", minor]);
        output(mknod)?.success()?;
    }
    symlink("/proc/self/fd", dev.join("fd"))?;
    symlink("elsewhere", dev.join("ptmx"))?;
    std::fs::create_dir(dev.join("shm"))?;
    let before = listing(&dev)?;
    let mut outcome = run_bundle(runtime, &bundle)?;
    outcome.stdout += &format!("unchanged: {}", listing(&dev)? == before);
    Ok(outcome)
}

/// A tmpfs on the host with a program that prints "ran".
fn tmpfs_with_program(flags: &str, at: &Path) -> Result<HostMount> {
    let mount = HostMount::new(&["-t", "tmpfs", "-o", flags, "tmpfs"], at)?;
    let program = at.join("run");
    std::fs::write(&program, "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
    Ok(mount)
}

fn host_flags(runtime: Runtime) -> Result<Outcome> {
    let script = "for program in /data/run /data/below/run /data/open/run /file; do $program; done 2>&1; \
        awk '$5 ~ \"^/(data|file)\" { print $5, $6 }' /proc/self/mountinfo | sed 's/,[a-z]*atime//' | sort";
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let host = shared_directory(spec);
        add_mount(spec, bind(&format!("{host}/volume"), "/data", &[]));
        add_mount(spec, bind(&format!("{host}/volume/run"), "/file", &[]));
    })?;
    let volume = bundle.shared_directory().join("volume");
    let _outer = tmpfs_with_program("noexec,nosuid,nodev", &volume)?;
    let _below = tmpfs_with_program("noexec", &volume.join("below"))?;
    let _open = tmpfs_with_program("nodev", &volume.join("open"))?;
    run_bundle(runtime, &bundle)
}

/// Runs `script` in a container with a volume at /data that is noexec, nosuid and nodev on the host.
fn restricted(runtime: Runtime, options: &[&str], script: &str) -> Result<Outcome> {
    let bundle = Bundle::new(&["sh", "-c", script], |spec| {
        let host = shared_directory(spec);
        add_mount(spec, bind(&format!("{host}/volume"), "/data", options));
    })?;
    let _volume = tmpfs_with_program("noexec,nosuid,nodev", &bundle.shared_directory().join("volume"))?;
    run_bundle(runtime, &bundle)
}

/// On ext4, which has extended attributes of users: Linux 6.1's tmpfs has none.
fn overlay_on_volume(runtime: Runtime) -> Result<Outcome> {
    let script = "exec 2>&1; cd /w; mkdir -p low/dir up work /m; echo low > low/file; touch low/dir/a low/other; \
        ln -s file low/link; mount -t overlay overlay -o lowerdir=low,upperdir=up,workdir=work /m || exit 1; \
        echo more >> /m/file; cat /m/file; rm /m/other; rm -r /m/dir; mkdir /m/dir; touch /m/dir/b; \
        mv /m/link /m/moved; chmod 600 /m/file; ls /m /m/dir; cat /m/moved; umount /m; stat -c '%n %F' up/*; \
        mount -t overlay overlay -o lowerdir=low,upperdir=up,workdir=work /m && ls /m /m/dir";
    let volume = Volume::new()?;
    let source = format!(
        "type=bind,src={},dst=/w,options=rbind:rw",
        volume.path().display()
    );
    let command = ["sh", "-c", script];
    let run = Run {
        flags: &["--privileged", "--mount", &source],
        command: &command,
        runtime,
        ..Run::default()
    };
    let outcome = run.output(&fresh_id("parity"))?.into();
    drop(volume);
    Ok(outcome)
}
