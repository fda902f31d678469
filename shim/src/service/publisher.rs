//! Tells containerd what happened to tasks: events in order, by `Events/Forward` at TTRPC_ADDRESS. A bounded queue and
//! one task; an event that can't be delivered waits, with those behind it, until containerd is there again: that is
//! when its socket appears (inotify) or when it calls ([`Publisher::wake`]). An event that containerd refuses is logged.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{ForwardRequest, Mount as MountMessage};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::{MessageFull, well_known_types::any::Any};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use ttrpc::asynchronous::Client;

use super::messages::timestamp;
use crate::clock;
use crate::container::Request;
use crate::guest::Exit;
use crate::process::Name;
use crate::sys;

/// Events that wait for containerd.
const QUEUE: usize = 1024;
/// A containerd that does not answer for this long is taken for gone.
const DEADLINE: Duration = Duration::from_secs(10);

/// What happened to a task.
#[derive(Debug)]
pub enum Notice<'a> {
    Created {
        request: &'a Request,
        pid: u32,
    },
    Started {
        id: &'a str,
        pid: u32,
    },
    ExecAdded {
        id: &'a str,
        exec: &'a str,
    },
    ExecStarted {
        id: &'a str,
        exec: &'a str,
        pid: u32,
    },
    Exited {
        name: &'a Name,
        pid: u32,
        exit: Exit,
    },
    Paused {
        id: &'a str,
    },
    Resumed {
        id: &'a str,
    },
    /// A process was killed for want of memory.
    OutOfMemory {
        id: &'a str,
    },
    Deleted {
        id: &'a str,
        pid: u32,
        exit: Exit,
    },
}

/// Takes notices; cheap, never waits.
#[derive(Debug)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
    wake: Arc<Notify>,
}

impl Publisher {
    /// A publisher for `namespace` to containerd's socket at `address` (TTRPC_ADDRESS), and the task that delivers: it
    /// ends when the publisher is dropped and all is delivered.
    pub fn spawn(namespace: &str, address: Option<String>) -> (Self, JoinHandle<()>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let wake = Arc::new(Notify::new());
        let path = address.map(|address| PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address)));
        let delivered = tokio::spawn(deliver(events, path, Arc::clone(&wake)));
        (
            Self {
                namespace: namespace.to_owned(),
                queue,
                wake,
            },
            delivered,
        )
    }

    /// containerd is there: what waits is tried again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Queues `notice`; where too many wait, it is lost and the log says so.
    pub fn publish(&self, notice: &Notice<'_>) {
        if matches!(notice, Notice::OutOfMemory { .. }) && self.queue.capacity() < QUEUE / 2 {
            // A container can make as many of them as it likes: they must not take the place of its end.
            return crate::log::warn(format_args!("too many events wait: {notice:?} is not told"));
        }
        let envelope = envelope(&self.namespace, notice);
        if let Err(error) = self.queue.try_send(envelope) {
            crate::log::error(format_args!(
                "event {} is lost: {error}",
                error.clone().into_inner().topic
            ));
        }
    }
}

fn envelope(namespace: &str, notice: &Notice<'_>) -> Envelope {
    let (topic, event) = match notice {
        Notice::Created { request, pid } => ("/tasks/create", any(&created(request, *pid))),
        Notice::Started { id, pid } => (
            "/tasks/start",
            any(&TaskStart {
                container_id: (*id).to_owned(),
                pid: *pid,
                ..Default::default()
            }),
        ),
        Notice::ExecAdded { id, exec } => (
            "/tasks/exec-added",
            any(&TaskExecAdded {
                container_id: (*id).to_owned(),
                exec_id: (*exec).to_owned(),
                ..Default::default()
            }),
        ),
        Notice::ExecStarted { id, exec, pid } => (
            "/tasks/exec-started",
            any(&TaskExecStarted {
                container_id: (*id).to_owned(),
                exec_id: (*exec).to_owned(),
                pid: *pid,
                ..Default::default()
            }),
        ),
        Notice::Paused { id } => (
            "/tasks/paused",
            any(&TaskPaused {
                container_id: (*id).to_owned(),
                ..Default::default()
            }),
        ),
        Notice::Resumed { id } => (
            "/tasks/resumed",
            any(&TaskResumed {
                container_id: (*id).to_owned(),
                ..Default::default()
            }),
        ),
        Notice::OutOfMemory { id } => (
            "/tasks/oom",
            any(&TaskOOM {
                container_id: (*id).to_owned(),
                ..Default::default()
            }),
        ),
        Notice::Exited { name, pid, exit } => (
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
        Notice::Deleted { id, pid, exit } => (
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

fn created(request: &Request, pid: u32) -> TaskCreate {
    let io = TaskIO {
        stdin: request.paths.stdin.clone(),
        stdout: request.paths.stdout.clone(),
        stderr: request.paths.stderr.clone(),
        terminal: request.paths.terminal,
        ..Default::default()
    };
    let mount = |mount: &crate::rootfs::Mount| MountMessage {
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

pub(super) fn any<M: MessageFull>(message: &M) -> Any {
    // Writing to memory fails only for messages over 2 GiB.
    let value = message.write_to_bytes().unwrap_or_default();
    Any {
        type_url: M::descriptor().full_name().to_owned(),
        value,
        ..Default::default()
    }
}

async fn deliver(mut events: mpsc::Receiver<Envelope>, socket: Option<PathBuf>, wake: Arc<Notify>) {
    let mut client = None;
    while let Some(event) = events.recv().await {
        let Some(socket) = &socket else {
            crate::log::warn(format_args!(
                "no TTRPC_ADDRESS: event {} goes nowhere",
                event.topic
            ));
            continue;
        };
        while let Err(error) = forward(&mut client, socket, &event).await {
            crate::log::warn(format_args!("event {} waits: {error}", event.topic));
            // Watched before it is tried once more, so that a socket that appears in between is not missed.
            let appears = watch(socket);
            if forward(&mut client, socket, &event).await.is_ok() {
                break;
            }
            tokio::select! {
                () = wake.notified() => {}
                () = appearance(appears) => {}
            }
        }
    }
}

async fn appearance(watched: Option<Appearance>) {
    match watched {
        Some(watched) => watched.wait().await,
        None => std::future::pending().await,
    }
}

/// Sends one event, over a new connection where there is none. An error: it can be tried again.
async fn forward(
    client: &mut Option<EventsClient>,
    socket: &Path,
    event: &Envelope,
) -> Result<(), ttrpc::Error> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(Client::connect(&format!("unix://{}", socket.display())).await?),
    };
    let request = ForwardRequest {
        envelope: Some(event.clone()).into(),
        ..Default::default()
    };
    match connected
        .forward(ttrpc::context::with_duration(DEADLINE), &request)
        .await
    {
        Ok(_) => {}
        Err(ttrpc::Error::RpcStatus(status)) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED => {
            crate::log::error(format_args!(
                "containerd refuses event {}: {}",
                event.topic, status.message
            ));
        }
        Err(error) => return Err(error),
    }
    *client = Some(connected);
    Ok(())
}

/// Waits for a socket to appear at a path.
struct Appearance {
    inotify: AsyncFd<OwnedFd>,
    name: OsString,
}

/// Watches the directory of `socket`; None (and a line in the log) where that is not possible.
fn watch(socket: &Path) -> Option<Appearance> {
    let made = || -> std::io::Result<Appearance> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // The attributes change after the socket listens (containerd sets its owner and mode).
        let events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB;
        inotify::add_watch(&inotify, socket.parent().unwrap_or(Path::new("/")), events)?;
        Ok(Appearance {
            inotify: sys::watch(inotify)?,
            name: socket.file_name().unwrap_or_default().to_owned(),
        })
    };
    made()
        .inspect_err(|error| crate::log::warn(format_args!("watching for {}: {error}", socket.display())))
        .ok()
}

impl Appearance {
    async fn wait(&self) {
        while let Ok(mut ready) = self.inotify.readable().await {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
            loop {
                match events.next() {
                    Ok(event)
                        if event
                            .file_name()
                            .is_some_and(|name| name.to_bytes() == self.name.as_bytes()) =>
                    {
                        return;
                    }
                    Ok(_) => {}
                    Err(rustix::io::Errno::AGAIN) => break ready.clear_ready(),
                    // Not to be watched any more: that is as good as any moment to try.
                    Err(_) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
