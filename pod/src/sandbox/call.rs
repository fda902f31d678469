//! The calls that a sandbox answers, and the handle that makes them.

use std::time::Instant;

use tokio::sync::oneshot;

use super::pod_calls::PodCall;
use super::queue::Queue;
use crate::container::{CreateRequest, Deleted, ExecRequest, Freeze, Reply, TaskState};
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::CgroupFiles;
use crate::log;
use crate::process_id::ProcessId;
use crate::streams::{StdioPaths, TerminalSize};

/// A process, as State reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The container's bundle.
    pub bundle: String,
    /// The pid for the caller: the VMM's; 0 for an exec process that was not started.
    pub pid: u32,
    /// The process's state.
    pub state: TaskState,
    /// Whether its container is frozen.
    pub freeze: Freeze,
    /// Where its streams go.
    pub paths: StdioPaths,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// A process, as Pids reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its pid for the caller: the VMM's.
    pub pid: u32,
    /// Its exec id, if it is an exec process.
    pub exec: Option<String>,
}

/// A call, with where its answer goes. Calls on a process that does not exist, or whose state does not allow
/// them, are answered with an [`Error`].
#[derive(Debug)]
pub enum Call {
    /// Makes a container whose init process waits for Start; answers the task's pid.
    Create(CreateRequest, Reply<u32>),
    /// Makes an exec process known and opens its streams; nothing runs until Start.
    Exec(ExecRequest, Reply<()>),
    /// Runs the command of an init or exec process; answers its pid for the caller: the VMM's.
    Start(ProcessId, Reply<u32>),
    /// Reports a process's state.
    State(ProcessId, Reply<View>),
    /// Answers when the process has exited.
    Wait(ProcessId, Reply<Exit>),
    /// Sends a signal.
    Kill {
        /// The process.
        name: ProcessId,
        /// The signal's number.
        signal: u32,
        /// To every process of the container, if `name` is its init.
        all: bool,
        /// Answers when the signal is sent.
        reply: Reply<()>,
    },
    /// Removes a process that does not run; of an init process, the container.
    Delete(ProcessId, Reply<Deleted>),
    /// Closes standard input after what has been written.
    CloseStdin(ProcessId, Reply<()>),
    /// Sets the size of a terminal.
    Resize(ProcessId, TerminalSize, Reply<()>),
    /// Lists the running processes of a container that callers started.
    Pids(String, Reply<Vec<Listed>>),
    /// Freezes all processes of a container.
    Pause(String, Reply<()>),
    /// Thaws them.
    Resume(String, Reply<()>),
    /// Changes the limits of a container: `linux.resources` of the OCI specification, JSON.
    Update(String, Vec<u8>, Reply<()>),
    /// Reads the counters of a container.
    Stats(String, Reply<CgroupFiles>),
    /// A call about the pod itself.
    Pod(PodCall),
    /// Whoever started the pod has exited: a pod without a container ends if nobody creates one soon.
    CallerExited,
    /// Ends the sandbox if it has no containers and is not a pod of its own ([`PodCall`]), or `now`.
    Shutdown {
        /// End it even if containers are left.
        now: bool,
        /// Answers when the VM has ended and the pod's files are removed.
        reply: Reply<()>,
    },
}

impl Call {
    /// The call's name and what it is about, for the log. Never the specification, which may have secrets.
    fn summary(&self) -> String {
        match self {
            Self::Create(request, _) => format!("Create {}", request.id),
            Self::Exec(request, _) => format!("Exec {}", request.name),
            Self::Start(name, _) => format!("Start {name}"),
            Self::State(name, _) => format!("State {name}"),
            Self::Wait(name, _) => format!("Wait {name}"),
            Self::Kill {
                name, signal, all, ..
            } => {
                let all = if *all { ", all processes" } else { "" };
                format!("Kill {name}, signal {signal}{all}")
            }
            Self::Delete(name, _) => format!("Delete {name}"),
            Self::CloseStdin(name, _) => format!("CloseStdin {name}"),
            Self::Resize(name, size, _) => format!("Resize {name}, {}x{}", size.width, size.height),
            Self::Pids(id, _) => format!("Pids {id}"),
            Self::Pause(id, _) => format!("Pause {id}"),
            Self::Resume(id, _) => format!("Resume {id}"),
            Self::Update(id, ..) => format!("Update {id}"),
            Self::Stats(id, _) => format!("Stats {id}"),
            Self::Pod(call) => format!("{} of the pod", call.name()),
            Self::CallerExited => "the exit of the pod's caller".to_owned(),
            Self::Shutdown { now, .. } => format!("Shutdown{}", if *now { ", now" } else { "" }),
        }
    }
}

/// Makes calls to a sandbox.
#[derive(Debug, Clone)]
pub struct Handle(Queue);

impl Handle {
    pub(super) fn new(queue: Queue) -> Self {
        Self(queue)
    }

    /// Reports that whoever started the pod has exited.
    pub async fn caller_exited(&self) {
        // Fails if the sandbox has exited.
        let _ = self.0.call(Call::CallerExited).await;
    }

    /// Makes the call that `call` builds around the address of its reply, and waits for the reply.
    ///
    /// # Errors
    /// What the sandbox answers; [`Error::Closing`] if it has exited.
    pub async fn call<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let call = call(reply);
        let logged = log::logs_debug().then(|| (call.summary(), Instant::now()));
        self.0.call(call).await?;
        let answer = answer.await.map_err(|_| Error::Closing)?;
        if let Some((summary, begun)) = logged {
            let outcome = answer.as_ref().err().map_or("done".into(), ToString::to_string);
            let took = begun.elapsed().as_millis();
            log::call(format_args!("{summary}: {outcome} after {took} ms"));
        }
        answer
    }
}
