//! What goes into a container's state machine, and what comes out.

use crate::exit::Exit;

/// What happens to a container. A process is named by its exec id; the empty one is init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest made the container.
    Created,
    /// The container could not be made, or its creation was cancelled.
    CreateFailed,
    /// The caller made an exec process known.
    ExecAdded(String),
    /// The caller called Start.
    StartCalled(String),
    /// The guest runs the command.
    Started(String),
    /// The guest could not start init, which still waits for its start.
    StartFailed,
    /// The guest could not run the command of an exec process, which is over: its exit.
    ExecFailed(String, Exit),
    /// The guest reports the exit of a process, or the VM has ended.
    Exited(String, Exit),
    /// Init's exit has been held for as long as allowed; the exit to report for exec processes that are still
    /// live.
    InitExitHoldExpired(Exit),
    /// All output of a process is written, or its deadline has passed.
    OutputDrained(String),
    /// Init has exited, and the rest of its output can't be written: its reader does not read, or a process of
    /// another container holds it open.
    InitOutputStalled,
    /// The caller called Delete.
    DeleteCalled(String),
    /// The caller called Pause.
    PauseCalled,
    /// The caller called Resume.
    ResumeCalled,
    /// The guest froze or thawed the container, as asked.
    FreezeDone,
    /// The guest could not.
    FreezeFailed,
    /// The VM has ended, and every process with it: the exit of each that was live.
    VmEnded(Exit),
}

/// What the sandbox must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Publish TaskCreate and answer Create.
    ReportCreated,
    /// Answer Create: it was cancelled by Delete.
    RefuseCreate,
    /// Stop what is under way for Create; [`Event::Created`] or [`Event::CreateFailed`] still comes.
    CancelCreate,
    /// Wait for the exit of a process in the guest.
    WatchExit(String),
    /// Ask the guest to run a process's command.
    StartInGuest(String),
    /// Publish the start and answer Start.
    ReportStarted(String),
    /// Answer Start with the guest's error.
    ReportStartFailed(String),
    /// Close standard input: nothing will read it.
    CloseStdin(String),
    /// Publish TaskExit.
    ReportExit(String, Exit),
    /// Answer Wait.
    AnswerWaiters(String, Exit),
    /// Report [`Event::OutputDrained`] when the process's output is written. For init, also report
    /// [`Event::InitOutputStalled`] if that takes too long.
    AwaitOutput(String),
    /// Report [`Event::OutputDrained`] when the deadline for output has passed.
    LimitOutput(String),
    /// Report [`Event::InitExitHoldExpired`] when the exec processes have passed their deadline.
    HoldInitExit,
    /// Kill an init process that was never started.
    KillInit,
    /// Everything that was started has exited, and its output is written.
    AllDrained,
    /// Forget an exec process and answer its Delete with how it ended; None if it was never started.
    RemoveExec(String, Option<Exit>),
    /// Forget the container and answer its Delete.
    RemoveContainer,
    /// Ask the guest to freeze the container's processes.
    FreezeInGuest,
    /// Ask the guest to thaw them.
    ThawInGuest,
    /// Publish TaskPaused.
    ReportPaused,
    /// Publish TaskResumed.
    ReportResumed,
}

/// The event is not possible in this state. For a call, the answer to its caller; otherwise a defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// The state, as an error message names it.
    pub state: &'static str,
}
