//! Standard streams of a container: their ends, their amounts, where they go.

use anyhow::{Context as _, Result};
use serde_json::json;

use super::tasks::{observed, spawn};
use super::{Behaviour, Seen, calls};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, shared};
use crate::containerd::ctr::{DEADLINE, Foreground, Run, ctr, wait_until_stopped};

pub const BEHAVIOURS: &[Behaviour] = &[
    calls(
        "a container reads its standard input to the end",
        &["Task.CloseIO"],
        stdin,
    ),
    calls(
        "1 MiB through standard input and output",
        &["Task.CloseIO"],
        stdin_much,
    ),
    calls(
        "a process in the background does not hold the container up",
        &["Task.Wait"],
        background,
    ),
    calls("output to a log file", &["Task.Create"], log_file),
    calls("output to a logging program", &["Task.Create"], log_program),
    calls("no streams at all", &["Task.Create"], no_streams),
];

/// Feeds `bytes` once `running` says that it is there.
pub fn fed(mut running: Foreground, bytes: Vec<u8>) -> Result<Seen> {
    let up = running.line()?;
    let feeder = running.feed(bytes)?;
    let mut seen = Seen::from(running.finish()?);
    feeder.join().ok().context("the feeding thread panicked")??;
    seen.stdout.insert_str(0, &up);
    Ok(seen)
}

fn stdin(runtime: Runtime) -> Result<Seen> {
    fed(
        spawn(runtime, "echo up; cat; echo end; exit 4")?,
        b"one\ntwo".to_vec(),
    )
}

fn stdin_much(runtime: Runtime) -> Result<Seen> {
    let bytes = (0..131_072_u32)
        .flat_map(|number| format!("{number:07}\n").into_bytes())
        .collect();
    fed(spawn(runtime, "echo up; exec cat")?, bytes)
}

fn background(runtime: Runtime) -> Result<Seen> {
    Ok(spawn(runtime, "sleep 1000 & echo out; exit 3")?.finish()?.into())
}

fn log_file(runtime: Runtime) -> Result<Seen> {
    let directory = tempfile::tempdir_in("/run")?;
    let log = directory.path().join("log");
    let uri = format!("file://{}", log.display());
    let flags = ["--log-uri", &uri];
    let run = Run {
        flags: &flags,
        command: &["sh", "-c", "echo out; echo err >&2"],
        runtime,
        ..Run::default()
    };
    observed(&run, |id| {
        wait_until_stopped(id)?;
        ctr(["task", "delete", id])?;
        Ok(Seen::text(std::fs::read_to_string(&log)?))
    })
}

/// The program's own output goes into a FIFO, whose end is the program's.
fn log_program(runtime: Runtime) -> Result<Seen> {
    let directory = tempfile::tempdir_in("/run")?;
    let (program, fifo) = (directory.path().join("program"), directory.path().join("fifo"));
    // containerd's shim for runc ends it by a signal, whatever there is still to be read.
    let script =
        "#!/bin/sh\ntrap '' TERM\nexec 5>&-\n{ echo $CONTAINER_NAMESPACE $#; cat <&3; cat <&4; } > $2\n";
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let (told, read) = std::sync::mpsc::channel();
    let path = fifo.clone();
    std::thread::spawn(move || told.send(std::fs::read_to_string(path)));
    let uri = format!("binary://{}?to={}", program.display(), fifo.display());
    let run = Run {
        flags: &["--log-uri", &uri],
        command: &["sh", "-c", "echo out; echo err >&2"],
        runtime,
        ..Run::default()
    };
    observed(&run, |id| {
        wait_until_stopped(id)?;
        ctr(["task", "delete", id])?;
        let text = read.recv_timeout(DEADLINE).context("the program's output")??;
        Ok(Seen::text(text))
    })
}

fn no_streams(runtime: Runtime) -> Result<Seen> {
    let bundle = Bundle::new(
        &[
            "sh",
            "-c",
            "readlink /proc/self/fd/1 > /data/fds; echo x; echo y >&2; echo $? >> /data/fds",
        ],
        |spec| {
            let source = shared(spec);
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(
                    json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}),
                );
            }
        },
    )?;
    let run = Run {
        flags: &["--null-io"],
        config: Some(&bundle.config()?),
        runtime,
        ..Run::default()
    };
    observed(&run, |id| {
        wait_until_stopped(id)?;
        Ok(Seen::text(std::fs::read_to_string(bundle.shared().join("fds"))?))
    })
}
