//! containerd's messages to and from the sandbox's own types. Pure.

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteResponse, PidsResponse, ProcessInfo, StateResponse, Status,
};
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

use crate::container::Request;
use crate::error::Error;
use crate::guest::Exit;
use crate::io::Paths;
use crate::rootfs::Mount;
use crate::sandbox::View;
use crate::task_state::TaskState;

/// Nanoseconds since the epoch as a message has them.
pub fn timestamp(at_ns: i64) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(at_ns.rem_euclid(SECOND)).unwrap_or_default();
    Timestamp {
        seconds: at_ns.div_euclid(SECOND),
        nanos,
        ..Default::default()
    }
}

/// What Create asks for.
///
/// # Errors
/// [`Error::Refused`] for what is not done yet.
pub fn request(message: CreateTaskRequest) -> Result<Request, Error> {
    for (name, value) in [
        ("checkpoint", &message.checkpoint),
        ("parent_checkpoint", &message.parent_checkpoint),
    ] {
        if !value.is_empty() {
            return Err(Error::Refused(format!(
                "{name}: restoring a checkpoint is not supported yet"
            )));
        }
    }
    if message.terminal {
        return Err(Error::Refused("process.terminal: not supported yet".into()));
    }
    if let Some(options) = message
        .options
        .as_ref()
        .filter(|options| !options.type_url.is_empty())
    {
        crate::log::info(format_args!(
            "{}: runtime options {} are not used",
            message.id, options.type_url
        ));
    }
    let mounts = message.rootfs.into_iter().map(|mount| Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    });
    Ok(Request {
        id: message.id,
        bundle: message.bundle.into(),
        rootfs: mounts.collect(),
        paths: Paths {
            stdin: message.stdin,
            stdout: message.stdout,
            stderr: message.stderr,
        },
    })
}

/// The answer to State.
pub fn state(id: String, view: View) -> StateResponse {
    let status = match view.state {
        TaskState::Creating | TaskState::Created | TaskState::Starting => Status::CREATED,
        TaskState::Running => Status::RUNNING,
        TaskState::Exiting | TaskState::Stopped => Status::STOPPED,
    };
    StateResponse {
        id,
        bundle: view.bundle,
        pid: view.pid,
        status: status.into(),
        stdin: view.paths.stdin,
        stdout: view.paths.stdout,
        stderr: view.paths.stderr,
        exit_status: view.exit.map_or(0, |exit| exit.status),
        exited_at: view.exit.map(|exit| timestamp(exit.at_ns)).into(),
        ..Default::default()
    }
}

/// The answer to Delete, and what the command `delete` prints.
pub fn deleted(pid: u32, exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.at_ns)).into(),
        ..Default::default()
    }
}

/// The answer to Pids.
pub fn pids(pids: Vec<u32>) -> PidsResponse {
    let processes = pids
        .into_iter()
        .map(|pid| ProcessInfo {
            pid,
            ..Default::default()
        })
        .collect();
    PidsResponse {
        processes,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_yet_is_refused_by_name() {
        let terminal = CreateTaskRequest {
            terminal: true,
            ..Default::default()
        };
        assert!(
            request(terminal)
                .unwrap_err()
                .to_string()
                .contains("process.terminal")
        );
        let checkpoint = CreateTaskRequest {
            checkpoint: "/c".into(),
            ..Default::default()
        };
        assert!(
            request(checkpoint)
                .unwrap_err()
                .to_string()
                .contains("checkpoint")
        );
    }

    #[test]
    fn times_before_the_epoch_are_times() {
        let time = timestamp(-1);
        assert_eq!((time.seconds, time.nanos), (-1, 999_999_999));
        let time = timestamp(1_500_000_000);
        assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    }
}
