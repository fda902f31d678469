//! The table of calls of containerd's Task service (task.v2 and task.v3), for docs/conformance.md.

/// A call and the tests that cover it.
pub struct Row {
    /// `Task.` and the call's name.
    pub name: &'static str,
    /// Whether Nacre supports it, and with which limits.
    pub support: &'static str,
    /// Names of the tests that cover it.
    pub covered_by: Vec<String>,
}

const CALLS: [(&str, &str); 17] = [
    ("Task.Create", "works; restoring a checkpoint is refused"),
    ("Task.Start", "works for containers and exec processes"),
    ("Task.State", "works"),
    ("Task.Wait", "works"),
    ("Task.Kill", "works for one process or all processes"),
    ("Task.Exec", "works"),
    ("Task.ResizePty", "works"),
    ("Task.CloseIO", "works"),
    (
        "Task.Pause",
        "works: freezes the container's processes, not the VM",
    ),
    ("Task.Resume", "works"),
    (
        "Task.Update",
        "works for the resources of the guest's cgroup v2, and for the CPUs of the VM",
    ),
    ("Task.Stats", "works: returns cgroup v2 metrics"),
    (
        "Task.Pids",
        "works: init and the exec processes that run, each with the VMM's PID",
    ),
    ("Task.Delete", "works for containers and exec processes"),
    ("Task.Connect", "works"),
    ("Task.Shutdown", "works"),
    ("Task.Checkpoint", "refused with UNIMPLEMENTED"),
];

/// All calls of the service, each with the tests that cover it.
pub fn rows() -> Vec<Row> {
    let mut tests = super::tests();
    CALLS
        .into_iter()
        .map(|(name, support)| Row {
            name,
            support,
            covered_by: tests.remove(name).unwrap_or_default(),
        })
        .collect()
}
