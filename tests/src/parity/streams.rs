//! Behaviours of a container's standard streams: end of file, large amounts, log files and logging programs.

use anyhow::{Context as _, Result};
use serde_json::json;

use super::tasks::{spawn, with_container};
use super::{Behaviour, Outcome, calls};
use crate::containerd::Runtime;
use crate::containerd::bundle::{Bundle, shared_directory};
use crate::containerd::ctr::{DEADLINE, Foreground, Run, ctr, wait_until_stopped};

pub const BEHAVIOURS: &[Behaviour] = &[
    calls("standard input is read to end of file", &["Task.CloseIO"], stdin),
    calls(
        "1 MiB through standard input and output",
        &["Task.CloseIO"],
        stdin_1_mib,
    ),
    calls(
        "a background process does not delay the exit",
        &["Task.Wait"],
        background,
    ),
    calls("output to a log file", &["Task.Create"], log_file),
    calls("output to a logging program", &["Task.Create"], log_program),
    calls("no standard streams", &["Task.Create"], no_streams),
];

/// Waits for the first line of `running`, writes `bytes` to its standard input, and waits until it exits.
pub fn feed_and_wait(mut running: Foreground, bytes: Vec<u8>) -> Result<Outcome> {
    let up = running.line()?;
    let feeder = running.feed(bytes)?;
    let mut outcome = Outcome::from(running.wait_with_output()?);
    feeder
        .join()
        .ok()
        .context("the thread that writes standard input panicked")??;
    outcome.stdout.insert_str(0, &up);
    Ok(outcome)
}

fn stdin(runtime: Runtime) -> Result<Outcome> {
    feed_and_wait(
        spawn(runtime, "echo up; cat; echo end; exit 4")?,
        b"one\ntwo".to_vec(),
    )
}

fn stdin_1_mib(runtime: Runtime) -> Result<Outcome> {
    let bytes = (0..131_072_u32)
        .flat_map(|number| format!("{number:07}\n").into_bytes())
        .collect();
    feed_and_wait(spawn(runtime, "echo up; exec cat")?, bytes)
}

fn background(runtime: Runtime) -> Result<Outcome> {
    Ok(spawn(runtime, "sleep 1000 & echo out; exit 3")?
        .wait_with_output()?
        .into())
}

fn log_file(runtime: Runtime) -> Result<Outcome> {
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
    with_container(&run, |id| {
        wait_until_stopped(id)?;
        ctr(["task", "delete", id])?;
        Ok(Outcome::text(std::fs::read_to_string(&log)?))
    })
}

/// The logging program copies what it gets into a FIFO, which this function reads until the program exits.
fn log_program(runtime: Runtime) -> Result<Outcome> {
    let directory = tempfile::tempdir_in("/run")?;
    let (program, fifo) = (directory.path().join("program"), directory.path().join("fifo"));
    // The program ignores SIGTERM, which containerd's shim for runc sends even if there is output left to
    // read.
    let script =
        "#!/bin/sh\ntrap '' TERM\nexec 5>&-\n{ echo $CONTAINER_NAMESPACE $#; cat <&3; cat <&4; } > $2\n";
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = fifo.clone();
    std::thread::spawn(move || sender.send(std::fs::read_to_string(path)));
    let uri = format!("binary://{}?to={}", program.display(), fifo.display());
    let run = Run {
        flags: &["--log-uri", &uri],
        command: &["sh", "-c", "echo out; echo err >&2"],
        runtime,
        ..Run::default()
    };
    with_container(&run, |id| {
        wait_until_stopped(id)?;
        ctr(["task", "delete", id])?;
        let text = receiver
            .recv_timeout(DEADLINE)
            .context("waiting for the logging program's output")??;
        Ok(Outcome::text(text))
    })
}

fn no_streams(runtime: Runtime) -> Result<Outcome> {
    let bundle = Bundle::new(
        &[
            "sh",
            "-c",
            "readlink /proc/self/fd/1 > /data/fds; echo x; echo y >&2; echo $? >> /data/fds",
        ],
        |spec| {
            let source = shared_directory(spec);
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
    with_container(&run, |id| {
        wait_until_stopped(id)?;
        Ok(Outcome::text(std::fs::read_to_string(
            bundle.shared_directory().join("fds"),
        )?))
    })
}
