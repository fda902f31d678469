//! Converts between containerd's messages and the engine's types. Called by `service` and `events`. Pure.

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteResponse, ExecProcessRequest, PidsResponse, ProcessInfo, ResizePtyRequest,
    StateResponse, Status, UpdateTaskRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{CodedOutputStream, Message};

use nacre_pod::{
    CreateRequest, Deleted, Error, ExecRequest, Freeze, Listed, Mount, ProcessId, StdioPaths, TaskState,
    TerminalSize, View, log,
};

/// The package of containerd's events.
pub const EVENTS: &str = "containerd.events";
/// The package of the metrics of cgroup v2.
pub const METRICS: &str = "io.containerd.cgroups.v2";
/// The package of what several of containerd's services use.
pub const TYPES: &str = "containerd.types";

/// Packs `message`, of the protobuf package `package`, into an Any. The type URL is its full name without a host, as in
/// containerd's own messages. Its descriptor has that name, too, but to ask it makes those of all messages of the file
/// and of the files that it imports, which take half a MiB as long as the shim lives.
pub fn any<M: Message>(package: &str, message: &M) -> Any {
    // Writing to memory fails only for messages over 2 GiB.
    let value = message.write_to_bytes().unwrap_or_default();
    Any {
        type_url: format!("{package}.{}", M::NAME),
        value,
        ..Default::default()
    }
}

/// Converts nanoseconds since the epoch, which may be negative.
pub fn timestamp(at_ns: i64) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(at_ns.rem_euclid(SECOND)).unwrap_or_default();
    Timestamp {
        seconds: at_ns.div_euclid(SECOND),
        nanos,
        ..Default::default()
    }
}

/// Converts a Create request.
///
/// # Errors
/// [`Error::Refused`] if it restores a checkpoint.
pub fn create_request(message: CreateTaskRequest) -> Result<CreateRequest, Error> {
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
    if let Some(options) = message
        .options
        .as_ref()
        .filter(|options| !options.type_url.is_empty())
    {
        log::info(format_args!(
            "{}: runtime options {} are ignored",
            message.id, options.type_url
        ));
    }
    let mounts = message.rootfs.into_iter().map(|mount| Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    });
    Ok(CreateRequest {
        id: message.id,
        bundle: message.bundle.into(),
        rootfs: mounts.collect(),
        paths: StdioPaths {
            stdin: message.stdin,
            stdout: message.stdout,
            stderr: message.stderr,
            terminal: message.terminal,
        },
    })
}

/// Identifies a process by containerd's container id and exec id.
pub fn process_id(id: String, exec: String) -> ProcessId {
    ProcessId { container: id, exec }
}

/// Converts an Exec request. Its process is JSON; the Any's type URL is not read, as in containerd's own
/// shims.
pub fn exec_request(message: ExecProcessRequest) -> ExecRequest {
    ExecRequest {
        name: process_id(message.id, message.exec_id),
        process: message.spec.into_option().unwrap_or_default().value,
        paths: StdioPaths {
            stdin: message.stdin,
            stdout: message.stdout,
            stderr: message.stderr,
            terminal: message.terminal,
        },
    }
}

/// Converts a ResizePty request.
///
/// # Errors
/// [`Error::Refused`] if a side is more than 65535 characters, the limit of a terminal.
pub fn terminal_size(message: &ResizePtyRequest) -> Result<TerminalSize, Error> {
    let fit = |name, value: u32| {
        u16::try_from(value).map_err(|_| Error::Refused(format!("{name}: {value} is more than 65535")))
    };
    Ok(TerminalSize {
        width: fit("width", message.width)?,
        height: fit("height", message.height)?,
    })
}

/// Takes the resources out of an Update request: JSON; the Any's type URL is not read.
pub fn resources(message: &mut UpdateTaskRequest) -> Vec<u8> {
    for key in message.annotations.keys() {
        log::warn(format_args!(
            "task {}: Update's annotation {key:?} is ignored",
            message.id
        ));
    }
    message.resources.take().unwrap_or_default().value
}

/// The answer to State; `id` is the container's for init, the exec id for an exec process.
pub fn state(id: String, view: View) -> StateResponse {
    let status = match view.state {
        TaskState::Creating | TaskState::Created | TaskState::Starting => Status::CREATED,
        TaskState::Running => match view.freeze {
            Freeze::Thawed => Status::RUNNING,
            Freeze::Freezing => Status::PAUSING,
            Freeze::Frozen | Freeze::Thawing => Status::PAUSED,
        },
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
        terminal: view.paths.terminal,
        exit_status: view.exit.map_or(0, |exit| exit.status),
        exited_at: view.exit.map(|exit| timestamp(exit.at_ns)).into(),
        ..Default::default()
    }
}

/// The answer to Delete.
pub fn deleted(deleted: &Deleted) -> DeleteResponse {
    DeleteResponse {
        pid: deleted.pid,
        exit_status: deleted.exit.map_or(0, |exit| exit.status),
        exited_at: deleted.exit.map(|exit| timestamp(exit.at_ns)).into(),
        ..Default::default()
    }
}

/// The answer to Pids.
pub fn pids(processes: Vec<Listed>) -> PidsResponse {
    let processes = processes.into_iter().map(|listed| ProcessInfo {
        pid: listed.pid,
        info: listed.exec.as_deref().map(details).into(),
        ..Default::default()
    });
    PidsResponse {
        processes: processes.collect(),
        ..Default::default()
    }
}

/// containerd.runc.v1.ProcessDetails: `string exec_id = 1`.
fn details(exec: &str) -> Any {
    let mut value = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut value);
    // Writing to memory does not fail.
    let written = stream.write_string(1, exec).and_then(|()| stream.flush());
    drop(stream);
    debug_assert!(written.is_ok());
    Any {
        type_url: "containerd.runc.v1.ProcessDetails".into(),
        value,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
        TaskStart,
    };
    use containerd_shim_protos::protobuf::MessageFull;

    use super::*;

    #[test]
    fn a_checkpoint_is_refused_by_name() {
        let checkpoint = CreateTaskRequest {
            checkpoint: "/c".into(),
            ..Default::default()
        };
        assert!(
            create_request(checkpoint)
                .unwrap_err()
                .to_string()
                .contains("checkpoint")
        );
    }

    #[test]
    fn times_before_the_epoch_are_converted() {
        let time = timestamp(-1);
        assert_eq!((time.seconds, time.nanos), (-1, 999_999_999));
        let time = timestamp(1_500_000_000);
        assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    }

    #[test]
    fn a_listed_exec_has_its_id() {
        let listed = |pid, exec: Option<&str>| Listed {
            pid,
            exec: exec.map(str::to_owned),
        };
        let answer = pids(vec![listed(1, None), listed(2, Some("e1"))]);
        assert!(answer.processes[0].info.is_none());
        let info = answer.processes[1].info.clone().unwrap();
        assert_eq!(info.type_url, "containerd.runc.v1.ProcessDetails");
        assert_eq!(info.value, b"\x0a\x02e1");
    }

    #[test]
    fn a_terminal_s_size_is_16_bits() {
        let ask = |width, height| {
            terminal_size(&ResizePtyRequest {
                width,
                height,
                ..Default::default()
            })
        };
        assert_eq!(
            ask(80, 65535).unwrap(),
            TerminalSize {
                width: 80,
                height: 65535
            }
        );
        assert!(ask(65536, 1).unwrap_err().to_string().contains("width"));
        assert!(ask(1, u32::MAX).unwrap_err().to_string().contains("height"));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may have descriptors")]
    fn the_type_of_a_packed_message_is_its_full_name() {
        fn check<M: MessageFull>(package: &str) {
            assert_eq!(any(package, &M::new()).type_url, M::descriptor().full_name());
        }
        check::<TaskCreate>(EVENTS);
        check::<TaskStart>(EVENTS);
        check::<TaskExecAdded>(EVENTS);
        check::<TaskExecStarted>(EVENTS);
        check::<TaskPaused>(EVENTS);
        check::<TaskResumed>(EVENTS);
        check::<TaskOOM>(EVENTS);
        check::<TaskExit>(EVENTS);
        check::<TaskDelete>(EVENTS);
        check::<containerd_shim_protos::cgroups_v2::metrics::Metrics>(METRICS);
        check::<crate::proto::types::MountCapabilities>(TYPES);
    }
}
