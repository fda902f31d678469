//! Converts the engine's events to containerd's messages. Called by the publisher. Pure but for the clock.

use containerd_shim_protos::api::Mount as MountMessage;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use nacre_pod::{CreateRequest, Exit, Mount, ProcessId, TaskEvent, clock};

use crate::messages::{EVENTS, any, timestamp};

/// Packs `event` with containerd's topic and the current time.
pub fn envelope(namespace: &str, event: &TaskEvent<'_>) -> Envelope {
    let (topic, event) = message(event);
    Envelope {
        timestamp: Some(timestamp(clock::realtime_ns())).into(),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: Some(event).into(),
        ..Default::default()
    }
}

/// The topic and the message.
fn message(event: &TaskEvent<'_>) -> (&'static str, Any) {
    let owned = |id: &&str| (*id).to_owned();
    match event {
        TaskEvent::Created { request, pid } => ("/tasks/create", packed(&created(request, *pid))),
        TaskEvent::Started { id, pid } => {
            let mut message = TaskStart::new();
            (message.container_id, message.pid) = (owned(id), *pid);
            ("/tasks/start", packed(&message))
        }
        TaskEvent::ExecAdded { id, exec } => {
            let mut message = TaskExecAdded::new();
            (message.container_id, message.exec_id) = (owned(id), owned(exec));
            ("/tasks/exec-added", packed(&message))
        }
        TaskEvent::ExecStarted { id, exec, pid } => {
            let mut message = TaskExecStarted::new();
            (message.container_id, message.exec_id, message.pid) = (owned(id), owned(exec), *pid);
            ("/tasks/exec-started", packed(&message))
        }
        TaskEvent::Paused { id } => {
            let mut message = TaskPaused::new();
            message.container_id = owned(id);
            ("/tasks/paused", packed(&message))
        }
        TaskEvent::Resumed { id } => {
            let mut message = TaskResumed::new();
            message.container_id = owned(id);
            ("/tasks/resumed", packed(&message))
        }
        TaskEvent::OutOfMemory { id } => {
            let mut message = TaskOOM::new();
            message.container_id = owned(id);
            ("/tasks/oom", packed(&message))
        }
        TaskEvent::Exited { name, pid, exit } => ("/tasks/exit", packed(&exited(name, *pid, *exit))),
        TaskEvent::Deleted { id, pid, exit } => ("/tasks/delete", packed(&deleted(id, *pid, *exit))),
    }
}

fn packed<M: Message>(message: &M) -> Any {
    any(EVENTS, message)
}

fn exited(name: &ProcessId, pid: u32, exit: Exit) -> TaskExit {
    // The exec id; for init, the container's id.
    let id = if name.is_init() {
        &name.container
    } else {
        &name.exec
    };
    TaskExit {
        container_id: name.container.clone(),
        id: id.clone(),
        pid,
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.at_ns)).into(),
        ..Default::default()
    }
}

fn deleted(id: &str, pid: u32, exit: Exit) -> TaskDelete {
    TaskDelete {
        container_id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.at_ns)).into(),
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
