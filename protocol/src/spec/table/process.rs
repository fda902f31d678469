//! The table of `process`.

use super::*;
use crate::spec::names::{CAPABILITIES, RLIMIT_TYPES, SCHEDULER_FLAGS, SCHEDULER_POLICIES};
use crate::spec::schema::Handling::Ignored;
use crate::spec::schema::Kind::{CpuList, OneOf, OneOfExcept, OneOfOrIgnored, Variable};

/// `process`, of a container's init and of each exec process.
pub const PROCESS: Node = Node::Object(&[
    field!("terminal", Boolean, GUEST),
    object!(
        "consoleSize",
        &[required!("height", U16, GUEST), required!("width", U16, GUEST),],
    ),
    object!(
        "user",
        &[
            field!("uid", ID, GUEST),
            field!("gid", ID, GUEST),
            field!("umask", Integer(0, 0o7777), GUEST),
            list!("additionalGids", &leaf!(ID, GUEST)),
            field!(
                "username",
                String,
                Ignored("applies to Windows; on Linux, uid and gid select the user"),
            ),
        ],
    ),
    list!("args", &GUEST_STRING),
    field!("commandLine", String, Refused(NOT_LINUX)),
    list!("env", &leaf!(Variable, GUEST)),
    required!("cwd", AbsolutePath, GUEST),
    object!(
        "capabilities",
        &[
            list!("bounding", &CAPABILITY),
            list!("effective", &CAPABILITY),
            list!("inheritable", &CAPABILITY),
            list!("permitted", &CAPABILITY),
            list!("ambient", &CAPABILITY),
        ],
    ),
    list!(
        "rlimits",
        &Node::Object(&[
            required!("type", OneOf(RLIMIT_TYPES), GUEST),
            required!("hard", U64, GUEST),
            required!("soft", U64, GUEST),
        ]),
    ),
    field!("noNewPrivileges", Boolean, GUEST),
    field!(
        "apparmorProfile",
        String,
        Ignored("the guest's kernel has no AppArmor; the VM isolates the container"),
    ),
    field!("oomScoreAdj", Integer(-1000, 1000), GUEST),
    object!(
        "scheduler",
        &[
            required!(
                "policy",
                OneOfExcept(SCHEDULER_POLICIES, &[("SCHED_ISO", "not implemented in Linux")]),
                GUEST,
            ),
            field!("nice", Integer(-20, 19), GUEST),
            field!("priority", Integer(0, 99), GUEST),
            list!("flags", &leaf!(OneOf(SCHEDULER_FLAGS), GUEST)),
            field!("runtime", U64, GUEST),
            field!("deadline", U64, GUEST),
            field!("period", U64, GUEST),
        ],
    ),
    field!(
        "selinuxLabel",
        String,
        Ignored("the guest's kernel has no SELinux; the VM isolates the container"),
    ),
    object!(
        "ioPriority",
        &[
            required!(
                "class",
                OneOf(&["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"]),
                GUEST,
            ),
            field!("priority", Integer(0, 7), GUEST),
        ],
    ),
    object!(
        "execCPUAffinity",
        &[field!("initial", CpuList, GUEST), field!("final", CpuList, GUEST)],
    ),
]);

const CAPABILITY: Node = leaf!(OneOfOrIgnored(CAPABILITIES), GUEST);
