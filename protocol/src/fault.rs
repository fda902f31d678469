//! Fault points: the places at which the tests end a program, to see that whatever dies wherever, nothing is lost and
//! nothing is left. This is the one list of them. `nacre-faults` arms one, and a program that reaches it ends itself,
//! its VMM or containerd, once.
//!
//! Only programs that were built with the feature `fault-points` have them (`make faults`): in every other build
//! [`reach`] is empty, and no armed point is looked for.
//!
//! A point of the host's programs is armed by a line in [`ARMED_FILE`], `POINT VICTIM`; one of the agent by the kernel
//! parameter [`ARMED_PARAMETER`]`=POINT:VICTIM`. Victims are `self`, `vmm` (the shim's), `panic` (the guest's kernel)
//! and the pid of a process.

/// The file that arms a point of shim or VMM. Whoever reaches the point removes it first.
pub const ARMED_FILE: &str = "/run/nacre-fault";
/// The kernel parameter that arms a point of the agent.
pub const ARMED_PARAMETER: &str = "nacre.fault";

/// Whether this build has fault points.
pub const ENABLED: bool = cfg!(feature = "fault-points");

/// A program with fault points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The shim: its commands and its daemon.
    Shim,
    /// The VMM.
    Vmm,
    /// The guest's agent.
    Agent,
}

macro_rules! points {
    ($($variant:ident, $program:ident, $name:literal, $place:literal;)*) => {
        /// A fault point.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum FaultPoint {
            $(#[doc = $place] $variant,)*
        }

        impl FaultPoint {
            /// All of them, in the order in which a container's life reaches them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name that arms it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Where it is.
            #[must_use]
            pub fn place(self) -> &'static str {
                match self { $(Self::$variant => $place,)* }
            }

            /// Whose it is.
            #[must_use]
            pub fn program(self) -> Program {
                match self { $(Self::$variant => Program::$program,)* }
            }
        }
    };
}

points! {
    StartDirectory, Shim, "start.directory", "the daemon has made the pod's directory";
    StartBound, Shim, "start.bound", "the daemon has bound the socket and written the address into the bundle";
    StartForked, Shim, "start.forked", "`start` has forked the daemon and not printed its address";
    VmPlanned, Shim, "vm.planned", "pod.json names the cgroup, which is not made";
    VmSpawned, Shim, "vm.spawned", "the VMM runs in its cgroup, and pod.json has no pid";
    VmRecorded, Shim, "vm.recorded", "pod.json has the VMM's pid";
    VmmConfigured, Vmm, "vmm.configured", "the VMM has its configuration and is not in its jail";
    VmmJailed, Vmm, "vmm.jailed", "the jail is closed";
    VmmBuilt, Vmm, "vmm.built", "the VM is built, and the guest has not run";
    VmmRuns, Vmm, "vmm.runs", "the guest runs";
    CreateCalled, Shim, "create.called", "Create was called";
    CreateMounts, Shim, "create.mounts", "the container's mounts are made and not placed";
    CreatePlaced, Shim, "create.placed", "the mounts are in the VMM's namespace";
    AgentConnected, Shim, "agent.connected", "the agent has connected, before Setup";
    AgentSetUp, Agent, "agent.set-up", "the agent has carried out Setup and not answered";
    AgentReady, Shim, "agent.ready", "the agent has answered Setup";
    CreateAsks, Shim, "create.asks", "before CreateContainer is sent";
    AgentCreates, Agent, "agent.creates", "the agent has CreateContainer and made nothing";
    AgentCreated, Agent, "agent.created", "the container is made, and CreateContainer not answered";
    CreateAnswered, Shim, "create.answered", "CreateContainer was answered, and containerd does not know";
    CreateReported, Shim, "create.reported", "TaskCreate is published and Create answered";
    StartAsks, Shim, "start.asks", "before StartContainer is sent";
    AgentStarts, Agent, "agent.starts", "the agent has StartContainer, and the command does not run";
    AgentStarted, Agent, "agent.started", "the command runs, and StartContainer is not answered";
    StartAnswered, Shim, "start.answered", "StartContainer was answered, and containerd does not know";
    StartReported, Shim, "start.reported", "TaskStart is published and Start answered";
    ExecAdded, Shim, "exec.added", "the exec process is known, and its streams are open";
    ExecAsks, Shim, "exec.asks", "before StartExec is sent";
    AgentExecutes, Agent, "agent.executes", "the agent has StartExec and forked nothing";
    AgentExecuted, Agent, "agent.executed", "the exec process runs, and StartExec is not answered";
    ExecAnswered, Shim, "exec.answered", "StartExec was answered, and containerd does not know";
    ExecReported, Shim, "exec.reported", "TaskExecStarted is published and Start answered";
    KillAsks, Shim, "kill.asks", "before KillProcess is sent";
    AgentKills, Agent, "agent.kills", "the agent has KillProcess and sent nothing";
    AgentExits, Agent, "agent.exits", "a process has exited, and WaitProcess is not answered";
    ExitKnown, Shim, "exit.known", "the guest has reported an exit, and containerd does not know";
    ExitReported, Shim, "exit.reported", "TaskExit is published";
    VmEnded, Shim, "vm.ended", "the VMM has exited, and its cgroup is there";
    DeleteCalled, Shim, "delete.called", "Delete was called";
    DeleteAnswered, Shim, "delete.answered", "Delete was answered";
    ShutdownCalled, Shim, "shutdown.called", "Shutdown was called";
    ShutdownCgroup, Shim, "shutdown.cgroup", "the cgroup is removed, and the pod's directory is there";
    CleanUpCalled, Shim, "clean-up.called", "`delete` has read pod.json";
    CleanUpKilled, Shim, "clean-up.killed", "`delete` has killed the pod's processes and removed its cgroup";
}

/// Ends the victim, if this point is armed.
#[cfg(feature = "fault-points")]
pub fn reach(point: FaultPoint) {
    armed::reach(point);
}

/// Does nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub const fn reach(_: FaultPoint) {}

/// Reads what is armed, for a program that can't do it later. Called by the VMM before it closes its jail.
#[cfg(feature = "fault-points")]
pub fn prepare() {
    armed::prepare();
}

/// Does nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub const fn prepare() {}

#[cfg(feature = "fault-points")]
mod armed;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_whose_they_are() {
        let names: BTreeSet<&str> = FaultPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), FaultPoint::ALL.len());
        for point in FaultPoint::ALL {
            let name = point.name();
            assert!(!name.contains([' ', ':']) && !point.place().is_empty(), "{name}");
            let is_shim = !name.starts_with("vmm.")
                && (!name.starts_with("agent.")
                    || matches!(point, FaultPoint::AgentConnected | FaultPoint::AgentReady));
            assert_eq!(is_shim, point.program() == Program::Shim, "{name}");
        }
    }
}
