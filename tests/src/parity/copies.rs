//! The mount option `tmpcopyup`: what a tmpfs has of the directory that it covers.

use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};

use super::process::{keep_words, run_bundle};
use super::{Behaviour, Outcome, calls};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, add_mount, shared_directory};

const OPTIONS: &[&str] = &["mounts[].options"];

pub const BEHAVIOURS: &[Behaviour] = &[
    calls(
        "tmpcopyup: files, links, directories and a volume below",
        OPTIONS,
        copies,
    ),
    calls("tmpcopyup with a mode over a directory", OPTIONS, |runtime| {
        run(runtime, &["stat", "-c", "%a %u:%g", "/app"], &["mode=700"])
    })
    .allow_difference(
        "runc 1.1 ignores the option mode if the directory exists; newer versions apply it",
        "700 0:0",
    ),
    calls("tmpcopyup: what does not fit is refused", OPTIONS, |runtime| {
        let outcome = run(runtime, &["true"], &["size=16k"])?;
        Ok(keep_words(outcome, &["tmpcopyup", "no space left on device"]))
    }),
    calls("tmpcopyup: a named pipe", OPTIONS, named_pipe).allow_difference(
        "runc fails if there is a named pipe, a socket or a character device; Nacre copies them, as crun does",
        "prw-r----- 7:8",
    ),
];

/// A bundle that runs `args` with a tmpfs over the directory /app of its root.
fn bundle(args: &[&str], options: &[&str], change: impl FnOnce(&mut Value)) -> Result<Bundle> {
    let bundle = Bundle::new(args, |spec| {
        change(spec);
        add_mount(spec, tmpfs("/app", options));
    })?;
    fill(&bundle.root().join("app"))?;
    Ok(bundle)
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    let options = [&["nosuid", "tmpcopyup"], options].concat();
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

fn run(runtime: Runtime, args: &[&str], options: &[&str]) -> Result<Outcome> {
    run_bundle(runtime, &bundle(args, options, |_| ())?)
}

/// Makes the directory `app`. None of its directories has a mode that a umask of 022 would change: runc before 1.1.8
/// applies its own.
fn fill(app: &Path) -> Result<()> {
    let make = |path: &str, mode: u32, owner: (u32, u32)| -> Result<()> {
        let path = app.join(path);
        if path.extension().is_none() {
            std::fs::create_dir_all(&path)?;
        } else {
            std::fs::write(&path, "of the image\n".repeat(5000))?;
        }
        lchown(&path, Some(owner.0), Some(owner.1))?;
        Ok(std::fs::set_permissions(
            path,
            std::fs::Permissions::from_mode(mode),
        )?)
    };
    for (path, mode, owner) in [
        ("", 0o711, (5, 6)),
        ("sub", 0o750, (1000, 0)),
        ("sub/deep", 0o755, (0, 1000)),
        ("sub/deep/empty", 0o1755, (0, 0)),
        ("sub/deep/file.txt", 0o640, (1000, 1001)),
        ("tool.sh", 0o6751, (0, 12)),
        ("secret.txt", 0o000, (0, 0)),
    ] {
        make(path, mode, owner)?;
    }
    for (name, target) in [
        ("inside", "sub/deep"),
        ("outside", "../etc/passwd"),
        ("nowhere", "/no"),
    ] {
        symlink(target, app.join(name))?;
        lchown(app.join(name), Some(3), Some(4))?;
    }
    std::fs::hard_link(app.join("tool.sh"), app.join("other.sh"))?;
    let old = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = std::fs::File::options().write(true).open(app.join("tool.sh"))?;
    Ok(file.set_modified(old)?)
}

fn copies(runtime: Runtime) -> Result<Outcome> {
    let script = "cd /app; find . /new | sort | xargs stat -c '%n %a %u:%g %h'
        for link in inside outside nowhere; do readlink $link; done
        md5sum sub/deep/file.txt other.sh data/file; [ $(stat -c %Y tool.sh) -gt 1600000000 ] && echo new
        echo changed > sub/deep/file.txt; echo changed > data/file; rm tool.sh; cat inside/file.txt data/file";
    let bundle = bundle(&["sh", "-c", script], &["size=4m"], |spec| {
        let host = shared_directory(spec);
        add_mount(
            spec,
            json!({"destination": "/app/data", "type": "bind", "source": host, "options": ["rbind"]}),
        );
        add_mount(spec, tmpfs("/new/below", &["mode=710"]));
    })?;
    let mut outcome = run_bundle(runtime, &bundle)?;
    // Neither the image nor the volume.
    for path in [
        bundle.root().join("app/sub/deep/file.txt"),
        bundle.shared_directory().join("file"),
    ] {
        outcome.stdout += &format!("{}\n", std::fs::read_to_string(path)?.contains("changed"));
    }
    outcome.stdout += &format!("{}\n", bundle.root().join("app/tool.sh").exists());
    Ok(outcome)
}

fn named_pipe(runtime: Runtime) -> Result<Outcome> {
    let bundle = bundle(&["stat", "-c", "%A %u:%g", "/app/pipe"], &[], |_| ())?;
    let pipe = bundle.root().join("app/pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)?;
    lchown(&pipe, Some(7), Some(8))?;
    run_bundle(runtime, &bundle)
}
