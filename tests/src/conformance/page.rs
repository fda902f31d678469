//! The page's text.

use std::fmt::Write as _;

use nacre_protocol::spec::{FILE_SYSTEMS, Fate, Kind, OPTIONS, OptionFate, Where};

use super::{Row, calls, rows, unshown};

/// How many tests are named in a row.
const NAMED: usize = 3;

const HEAD: &str = "\
# What Nacre does with each field and each call

Generated from the table that shim and agent decide by (`protocol/src/spec/`) and from the tests, by
`cargo run -p nacre-tests --bin nacre-conformance`; do not edit. A test fails where this page is not what it generates, or where
something is said to work and no test shows it.

- **works** says where a field has its effect: in the guest (its kernel and the agent), on the VM (from outside), on the host.
- **ignored** fields are taken out of what the guest gets and named in the shim's log, with their path and this reason.
- **refused** fields fail Create (or Exec) with INVALID_ARGUMENT, their path and this reason, where they ask for something: empty
  texts, lists and objects, `null`, `false`, and 0 and -1 where those mean \"none\" do not.
- Keys that no OCI specification has are ignored, as the specification wants, and named in the log with their path. So are
  capabilities of unknown names.
- Values of the wrong type or out of range, unknown words, missing keys, text that is no UTF-8 are refused by path; so are specs of
  more than 3 MiB, more than 1,024 mounts, masked or read-only paths, more than 65,536 elements in any list.
- `parity:` tests are compared with runc, in one run under the same containerd (`tests/src/parity/`).
";

const NOTES: &str = "\
## How

- **root.path**: the root file system is mounted on the host and shared with the guest; `root.readonly` is the guest's.
- **process.env**: HOME is completed from the container's /etc/passwd where it is missing or empty. A command is looked for, and
  refused, as runc does it.
- **process.capabilities**: a set that is missing is empty.
- **process.execCPUAffinity**: of execs; the last word is the only one, since an exec is born in its container's cgroup. As
  under runc, it does nothing for a container's first process.
- **linux.namespaces**: each kind is the guest's own. mount, pid, network, ipc and uts must be in the list: without one of them
  the host's would be meant, which no guest can share. A `path` may name those of the pod's first container,
  `/proc/<pid of the task>/ns/<kind>`, as Kubernetes does; any other is refused. A cgroup namespace is added where it is missing. A new
  network is the guest's own, unless `linux.sysctl` has `net.…` settings or the container has users of its own: then it
  is one more, with a loopback device that is up.
- **linux.uidMappings, gidMappings**: ids are those of the guest, and of the host's files that it shares.
- **linux.devices**: character devices that the guest's kernel has, and fifos, below /dev. null, zero, full, random, urandom, tty and
  ptmx are always there. A container that may use every device (`--privileged`) is given a list of all that the host has: what
  of it the guest does not have, disks before all, is left out and named in the log.
- **linux.resources.devices**: a program of the agent's own; the last rule that speaks of a permission decides, the usual
  devices are allowed after all.
- **linux.resources.cpu.shares**: as `cpu.weight`, by the curve of runc 1.4 (1,024 is 100).
- **linux.resources.cpu.cpus**: the VM's threads run on these CPUs of the host, by the spec of the pod's first container; of
  other containers it is ignored, and named in the log.
- **linux.resources.memory.swap**: memory and swap together; a guest has no swap, so nothing can be used beyond memory.limit.
- **linux.resources.pids.limit**: -1 is none, 0 is 0.
- **linux.resources.hugepageLimits**: of page sizes that the guest has.
- **linux.resources.unified**: files of controllers that the guest's kernel has, written last. Of the cgroup itself only
  cgroup.max.depth, cgroup.max.descendants and cgroup.pressure.
- **linux.sysctl**: in the namespaces that the container has of its own, else refused by name.
- **linux.seccomp**: names of system calls that libseccomp does not know get the default action.
- **linux.cgroupsPath**: where the VM is, on the host; in the guest a container's cgroup has its id for a name.
- **hooks**: prestart and createRuntime run on the host before the container's first process is made, poststart after its command
  was started, poststop after it was deleted; startContainer runs in the container.
- **mounts[].destination**: resolved inside the root, symbolic links included; `..` is taken as text, and the root's is the root. Nothing but procfs goes on /proc.
- **annotations**: those of CRI tell pods from containers; all are kept with the container's state.
";

/// All of it.
pub fn page() -> String {
    let mut text = String::from(HEAD);
    let rows = rows();
    fields(&mut text, &rows);
    mounts(&mut text);
    text.push('\n');
    text.push_str(NOTES);
    differences(&mut text);
    task_calls(&mut text);
    let count = |is: fn(&Fate) -> bool| rows.iter().filter(|row| is(&row.leaf.fate)).count();
    let (works, ignored) = (
        count(|fate| matches!(fate, Fate::Applied(_))),
        count(|fate| matches!(fate, Fate::Ignored(_))),
    );
    let refused = rows.len() - works - ignored;
    line(
        &mut text,
        format_args!(
            "\n{works} fields work, {ignored} are ignored with a reason, {refused} are refused with a reason."
        ),
    );
    line(
        &mut text,
        format_args!("\noci_fields_silently_dropped: {}", unshown().len()),
    );
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

fn fields(text: &mut String, rows: &[Row]) {
    text.push_str("\n## Fields\n\n| field | | shown by |\n|---|---|---|\n");
    for row in rows {
        let fate = match row.leaf.fate {
            Fate::Applied(Where::Guest) => "works, in the guest".to_owned(),
            Fate::Applied(Where::Vm) => "works, on the VM".to_owned(),
            Fate::Applied(Where::Host) => "works, on the host".to_owned(),
            Fate::Ignored(reason) => format!("ignored: {reason}"),
            Fate::Refused(reason) | Fate::RefusedWithZero(reason) => format!("refused: {reason}"),
        };
        let except = match row.leaf.kind {
            Kind::WordExcept(_, words) => words
                .iter()
                .map(|(word, reason)| format!("; {word} is refused: {reason}"))
                .collect(),
            Kind::Text
            | Kind::Path
            | Kind::Place
            | Kind::Version
            | Kind::Cpus
            | Kind::Flag
            | Kind::Number(..)
            | Kind::Word(_)
            | Kind::KnownWord(_)
            | Kind::Foreign => String::new(),
        };
        line(
            text,
            format_args!("| `{}` | {fate}{except} | {} |", row.path, names(&row.shown_by)),
        );
    }
}

fn names(tests: &[String]) -> String {
    let mut text = tests.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if tests.len() > NAMED {
        text.push_str(&format!("; and {} more", tests.len() - NAMED));
    }
    text
}

fn mounts(text: &mut String) {
    line(
        text,
        format_args!(
            "\n## Mounts\n\nBinds (`type` \"bind\", or an option \"bind\" or \"rbind\") are of the host's files. A guest makes the file systems {}; \
            others are refused by `mounts[].type`.\nOptions that are not in this table are settings of the file system; a bind has none, and they are \
            ignored with a line in the log.\nShown by `agent/tests/fields.rs` options_of_mounts and `protocol/src/spec/tests.rs` \
            mount_options_by_kind_of_mount.\n\n| option | on a file system of the guest | on a bind of the host's files |\n|---|---|---|",
            FILE_SYSTEMS.join(", ")
        ),
    );
    let fate = |fate: OptionFate| match fate {
        OptionFate::Applied => "works".to_owned(),
        OptionFate::Ignored(reason) => format!("ignored: {reason}"),
        OptionFate::Refused(reason) => format!("refused: {reason}"),
    };
    for option in OPTIONS {
        let word = if option.word == "idmap" {
            "idmap`, `ridmap"
        } else {
            option.word
        };
        line(
            text,
            format_args!(
                "| `{word}` | {} | {} |",
                fate(option.in_guest),
                fate(option.host_bind)
            ),
        );
    }
}

fn differences(text: &mut String) {
    text.push_str("\n## Where Nacre is otherwise than runc\n\n| behaviour | because |\n|---|---|\n");
    for behaviour in crate::parity::behaviours() {
        if let Some(differs) = &behaviour.differs {
            line(text, format_args!("| {} | {} |", behaviour.name, differs.because));
        }
    }
}

fn task_calls(text: &mut String) {
    text.push_str("\n## Calls of the Task service\n\n| call | | shown by |\n|---|---|---|\n");
    for row in calls::rows() {
        line(
            text,
            format_args!("| {} | {} | {} |", row.name, row.answer, names(&row.shown_by)),
        );
    }
}
