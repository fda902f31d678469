//! The calls of containerd's Task service (task.v2 and task.v3).

/// A call, and what shows how it answers.
pub struct Row {
    /// `Task.` and its name.
    pub name: &'static str,
    /// What it does.
    pub answer: &'static str,
    /// Names of tests.
    pub shown_by: Vec<String>,
}

const CALLS: [(&str, &str); 17] = [
    ("Task.Create", "works; a checkpoint to start from is refused"),
    ("Task.Start", "works, for a container and for an exec"),
    ("Task.State", "works"),
    ("Task.Wait", "works"),
    ("Task.Kill", "works, for one process or all"),
    ("Task.Exec", "works"),
    ("Task.ResizePty", "works"),
    ("Task.CloseIO", "works"),
    (
        "Task.Pause",
        "works: every process of the container stands still, the VM does not",
    ),
    ("Task.Resume", "works"),
    ("Task.Update", "works, for what cgroup v2 has in the guest"),
    ("Task.Stats", "works, in the form of cgroup v2"),
    ("Task.Pids", "works: processes by their numbers in the guest"),
    ("Task.Delete", "works, for a container and for an exec"),
    ("Task.Connect", "works"),
    ("Task.Shutdown", "works"),
    ("Task.Checkpoint", "refused: UNIMPLEMENTED"),
];

/// Every call.
pub fn rows() -> Vec<Row> {
    let mut tests = super::tests();
    CALLS
        .into_iter()
        .map(|(name, answer)| Row {
            name,
            answer,
            shown_by: tests.remove(name).unwrap_or_default(),
        })
        .collect()
}
