//! The rows of the table: each fault point with each victim that it can end.

use nacre_protocol::fault::{ARMED_FILE, ARMED_PARAMETER, FaultPoint, Program};

/// What dies at a fault point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The program that reaches it: by SIGKILL, or, as PID 1 of its PID namespace, by a crash.
    Itself,
    /// The shim's VMM, by SIGKILL.
    Vmm,
    /// containerd, by SIGKILL.
    Containerd,
    /// The guest's kernel, by a panic.
    Kernel,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Where.
    pub point: FaultPoint,
    /// What.
    pub victim: Victim,
    /// Whether it is in `make test`.
    pub core: bool,
}

/// At these points of the shim its VMM is ended, too.
const VMM_DIES: &[FaultPoint] = &[
    FaultPoint::CreateMounts,
    FaultPoint::CreateAsks,
    FaultPoint::CreateAnswered,
    FaultPoint::StartAsks,
    FaultPoint::StartReported,
    FaultPoint::ExecAdded,
    FaultPoint::ExecAsks,
    FaultPoint::ExecReported,
    FaultPoint::KillAsks,
    FaultPoint::ExitKnown,
    FaultPoint::DeleteCalled,
];

/// At these points of the shim containerd is ended, too.
const CONTAINERD_DIES: &[FaultPoint] = &[
    FaultPoint::StartForked,
    FaultPoint::CreateCalled,
    FaultPoint::CreateAsks,
    FaultPoint::CreateAnswered,
    FaultPoint::CreateReported,
    FaultPoint::StartAsks,
    FaultPoint::StartReported,
    FaultPoint::ExecAsks,
    FaultPoint::ExecReported,
    FaultPoint::KillAsks,
    FaultPoint::ExitKnown,
    FaultPoint::DeleteCalled,
    FaultPoint::DeleteAnswered,
    FaultPoint::ShutdownCalled,
];

/// A death of each program in each step, for `make test`.
const CORE: &[(FaultPoint, Victim)] = &[
    (FaultPoint::StartForked, Victim::Itself),
    (FaultPoint::VmSpawned, Victim::Itself),
    (FaultPoint::VmmJailed, Victim::Itself),
    (FaultPoint::CreatePlaced, Victim::Itself),
    (FaultPoint::CreateAsks, Victim::Containerd),
    (FaultPoint::CreateAnswered, Victim::Vmm),
    (FaultPoint::AgentCreated, Victim::Itself),
    (FaultPoint::AgentStarts, Victim::Kernel),
    (FaultPoint::StartAnswered, Victim::Itself),
    (FaultPoint::ExecAsks, Victim::Vmm),
    (FaultPoint::AgentExecuted, Victim::Kernel),
    (FaultPoint::ExecReported, Victim::Containerd),
    (FaultPoint::ExitKnown, Victim::Itself),
    (FaultPoint::DeleteCalled, Victim::Containerd),
    (FaultPoint::ShutdownCgroup, Victim::Itself),
    (FaultPoint::CleanUpKilled, Victim::Itself),
];

/// All rows, in the order in which a container's life reaches the points.
pub fn rows() -> Vec<Row> {
    let victims = |point: FaultPoint| {
        let mut victims = vec![Victim::Itself];
        if VMM_DIES.contains(&point) {
            victims.push(Victim::Vmm);
        }
        if CONTAINERD_DIES.contains(&point) {
            victims.push(Victim::Containerd);
        }
        if point.program() == Program::Agent {
            victims.push(Victim::Kernel);
        }
        victims.into_iter().map(move |victim| Row {
            point,
            victim,
            core: CORE.contains(&(point, victim)),
        })
    };
    FaultPoint::ALL.iter().flat_map(|point| victims(*point)).collect()
}

impl Row {
    /// The test's name.
    pub fn name(&self) -> String {
        format!("{}: {}", self.point.name(), self.victim_name())
    }

    /// Who dies.
    pub fn victim_name(&self) -> &'static str {
        match (self.victim, self.point.program()) {
            (Victim::Itself, Program::Shim) => "shim",
            (Victim::Itself, Program::Vmm) | (Victim::Vmm, _) => "VMM",
            (Victim::Itself, Program::Agent) => "agent",
            (Victim::Containerd, _) => "containerd",
            (Victim::Kernel, _) => "guest kernel",
        }
    }

    /// Whether the point is one of the command `delete`, which runs only after the shim has died.
    pub fn is_clean_up(&self) -> bool {
        matches!(self.point, FaultPoint::CleanUpCalled | FaultPoint::CleanUpKilled)
    }

    /// The line of [`ARMED_FILE`]; None for a point of the agent.
    pub fn line(&self, containerd: u32) -> Option<String> {
        let victim = match self.victim {
            Victim::Itself => "self".to_owned(),
            Victim::Vmm => "vmm".to_owned(),
            Victim::Containerd => containerd.to_string(),
            Victim::Kernel => return None,
        };
        (self.point.program() != Program::Agent).then(|| format!("{} {victim}\n", self.point.name()))
    }

    /// The configuration that arms a point of the agent.
    pub fn config(&self) -> Option<String> {
        let victim = match self.victim {
            Victim::Kernel => "panic",
            Victim::Itself | Victim::Vmm | Victim::Containerd => "self",
        };
        let name = self.point.name();
        (self.point.program() == Program::Agent)
            .then(|| format!("kernel_params = \"{ARMED_PARAMETER}={name}:{victim}\"\n"))
    }

    /// Whether a point of the host's programs was not reached.
    pub fn is_armed() -> bool {
        std::path::Path::new(ARMED_FILE).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_row_and_every_core_row_is_one() {
        let rows = rows();
        for point in FaultPoint::ALL {
            assert!(rows.iter().any(|row| row.point == *point), "{point:?}");
        }
        assert_eq!(rows.iter().filter(|row| row.core).count(), CORE.len());
        let names: std::collections::BTreeSet<String> = rows.iter().map(Row::name).collect();
        assert_eq!(names.len(), rows.len());
        assert!(rows.len() >= 24);
    }
}
