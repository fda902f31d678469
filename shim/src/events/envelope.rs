//! The engine's events as containerd's messages. Pure.

use containerd_shim_protos::api::Mount as MountMessage;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use nacre_pod::{CreateRequest, Mount, TaskEvent, clock};

use crate::messages::{any, timestamp};

/// `event` with containerd's topic for it, at this moment.
pub fn envelope(namespace: &str, notice: &TaskEvent<'_>) -> Envelope {
    let (topic, event) = match notice {
        TaskEvent::Created { request, pid } => ("/tasks/create", any(&created(request, *pid))),
        TaskEvent::Started { id, pid } => (
            "/tasks/start",
            any(&TaskStart {
                container_id: (*id).to_owned(),
                pid: *pid,
                ..Default::default()
            }),
        ),
        TaskEvent::ExecAdded { id, exec } => (
            "/tasks/exec-added",
            any(&TaskExecAdded {
                container_id: (*id).to_owned(),
                exec_id: (*exec).to_owned(),
                ..Default::default()
            }),
        ),
        TaskEvent::ExecStarted { id, exec, pid } => (
            "/tasks/exec-started",
            any(&TaskExecStarted {
                container_id: (*id).to_owned(),
                exec_id: (*exec).to_owned(),
                pid: *pid,
                ..Default::default()
            }),
        ),
        TaskEvent::Paused { id } => (
            "/tasks/paused",
            any(&TaskPaused {
                container_id: (*id).to_owned(),
                ..Default::default()
            }),
        ),
        TaskEvent::Resumed { id } => (
            "/tasks/resumed",
            any(&TaskResumed {
                container_id: (*id).to_owned(),
                ..Default::default()
            }),
        ),
        TaskEvent::OutOfMemory { id } => (
            "/tasks/oom",
            any(&TaskOOM {
                container_id: (*id).to_owned(),
                ..Default::default()
            }),
        ),
        TaskEvent::Exited { name, pid, exit } => (
            "/tasks/exit",
            any(&TaskExit {
                container_id: name.container.clone(),
                // The process's own name: init has its container's.
                id: if name.is_init() {
                    &name.container
                } else {
                    &name.exec
                }
                .clone(),
                pid: *pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at_ns)).into(),
                ..Default::default()
            }),
        ),
        TaskEvent::Deleted { id, pid, exit } => (
            "/tasks/delete",
            any(&TaskDelete {
                container_id: (*id).to_owned(),
                pid: *pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at_ns)).into(),
                ..Default::default()
            }),
        ),
    };
    Envelope {
        timestamp: Some(timestamp(clock::realtime_ns())).into(),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: Some(event).into(),
        ..Default::default()
    }
}

fn created(request: &CreateRequest, pid: u32) -> TaskCreate {
    let io = TaskIO {
        stdin: request.paths.stdin.clone(),
        stdout: request.paths.stdout.clone(),
        stderr: request.paths.stderr.clone(),
        terminal: request.paths.terminal,
        ..Default::default()
    };
    let mount = |mount: &Mount| MountMessage {
        type_: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
        ..Default::default()
    };
    TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.display().to_string(),
        rootfs: request.rootfs.iter().map(mount).collect(),
        io: Some(io).into(),
        pid,
        ..Default::default()
    }
}
