//! The table.

use super::node::Fate::{Applied, Ignored, Refused, RefusedWithZero};
use super::node::Kind::{
    Cpus, Flag, Foreign, KnownWord, Number, Path, Place, Text, Version, Word, WordExcept,
};
use super::node::Where::{Guest, Host, Vm};
use super::node::{Fate, Field, Kind, Leaf, Node};
use super::words::{
    ACTIONS, ARCHITECTURES, CAPABILITIES, NAMESPACES, NO_LISTENER, NOTIFY, OF_LISTENERS, OPERATORS, POLICIES,
    PROPAGATIONS, RLIMITS, SCHEDULER_FLAGS, SECCOMP_FLAGS,
};

// Macros and no functions: what they make can be part of a constant.
macro_rules! leaf {
    ($kind:expr, $fate:expr) => {
        Node::Leaf(Leaf {
            kind: $kind,
            fate: $fate,
        })
    };
}
macro_rules! key {
    ($name:expr, $is_required:expr, $node:expr $(,)?) => {
        Field {
            name: $name,
            is_required: $is_required,
            node: $node,
        }
    };
}
macro_rules! field {
    ($name:expr, $kind:expr, $fate:expr $(,)?) => {
        key!($name, false, leaf!($kind, $fate))
    };
}
macro_rules! required {
    ($name:expr, $kind:expr, $fate:expr $(,)?) => {
        key!($name, true, leaf!($kind, $fate))
    };
}
macro_rules! object {
    ($name:expr, $fields:expr $(,)?) => {
        key!($name, false, Node::Object($fields))
    };
}
macro_rules! list {
    ($name:expr, $of:expr $(,)?) => {
        key!($name, false, Node::List($of, MANY))
    };
}

/// Most elements of a list: many more than any spec has, few enough to be walked.
const MANY: usize = 65_536;

const U16: Kind = Number(0, u16::MAX as i128);
const U32: Kind = Number(0, u32::MAX as i128);
/// A user or group. The largest number is none: to setuid(2) it says "no change".
const ID: Kind = Number(0, u32::MAX as i128 - 1);
const U64: Kind = Number(0, u64::MAX as i128);
const I32: Kind = Number(i32::MIN as i128, i32::MAX as i128);
const I64: Kind = Number(i64::MIN as i128, i64::MAX as i128);
/// A limit: -1 is none.
const LIMIT: Kind = Number(-1, i64::MAX as i128);

const GUEST: Fate = Applied(Guest);
const HOST: Fate = Applied(Host);

const NOT_LINUX: &str = "for another platform";
const V1: &str = "a control of cgroup v1; the guest has cgroup v2";
const HOST_DISKS: &str = "it weighs or limits disks by numbers of the host, and the guest has none of them";
const RDT: &str = "the guest's kernel can't divide the host's caches";
const NUMA: &str = "the guest's memory is one node, wherever the host has put it";
const HOST_NET: &str = "the devices are the host's, and the guest has none of them";
const NO_ID_MAPS: &str = "files shared with a guest can't be mapped to other ids by its kernel";
const CREATE_HOOKS: &str =
    "it would run the host's program in the container's namespaces, which are in the guest";

const GUEST_TEXT: Node = leaf!(Text, GUEST);
const GUEST_PATH: Node = leaf!(Path, GUEST);
const HOST_TEXT: Node = leaf!(Text, HOST);

/// `config.json`.
pub static SPEC: Node = Node::Object(&[
    required!("ociVersion", Version, GUEST),
    object!(
        "root",
        &[required!("path", Text, HOST), field!("readonly", Flag, GUEST),],
    ),
    key!("process", true, PROCESS),
    field!("hostname", Text, GUEST),
    field!("domainname", Text, GUEST),
    key!("mounts", false, Node::List(&MOUNT, super::MAX_MOUNTS)),
    object!(
        "hooks",
        &[
            list!("prestart", &HOOK_ON_HOST),
            list!("createRuntime", &HOOK_ON_HOST),
            list!("createContainer", &HOOK_NOWHERE),
            list!("startContainer", &HOOK_IN_GUEST),
            list!("poststart", &HOOK_ON_HOST),
            list!("poststop", &HOOK_ON_HOST),
        ],
    ),
    key!("annotations", false, Node::Map(&HOST_TEXT)),
    object!("linux", LINUX),
    field!("solaris", Foreign, Refused(NOT_LINUX)),
    field!("windows", Foreign, Refused(NOT_LINUX)),
    field!("vm", Foreign, Refused("the VM is configured in config.toml")),
    field!("zos", Foreign, Refused(NOT_LINUX)),
    field!("freebsd", Foreign, Refused(NOT_LINUX)),
]);

/// `process`: of a container, and of each Exec.
pub const PROCESS: Node = Node::Object(&[
    field!("terminal", Flag, GUEST),
    object!(
        "consoleSize",
        &[required!("height", U16, GUEST), required!("width", U16, GUEST),],
    ),
    object!(
        "user",
        &[
            field!("uid", ID, GUEST),
            field!("gid", ID, GUEST),
            field!("umask", Number(0, 0o7777), GUEST),
            list!("additionalGids", &leaf!(ID, GUEST)),
            field!(
                "username",
                Text,
                Ignored("it is for Windows: uid and gid name the user"),
            ),
        ],
    ),
    list!("args", &GUEST_TEXT),
    field!("commandLine", Text, Refused(NOT_LINUX)),
    list!("env", &GUEST_TEXT),
    required!("cwd", Path, GUEST),
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
            required!("type", Word(RLIMITS), GUEST),
            required!("hard", U64, GUEST),
            required!("soft", U64, GUEST),
        ]),
    ),
    field!("noNewPrivileges", Flag, GUEST),
    field!(
        "apparmorProfile",
        Text,
        Ignored("the guest's kernel has no AppArmor; the VM confines the container"),
    ),
    field!("oomScoreAdj", Number(-1000, 1000), GUEST),
    object!(
        "scheduler",
        &[
            required!(
                "policy",
                WordExcept(POLICIES, &[("SCHED_ISO", "no kernel has it")]),
                GUEST,
            ),
            field!("nice", Number(-20, 19), GUEST),
            field!("priority", Number(0, 99), GUEST),
            list!("flags", &leaf!(Word(SCHEDULER_FLAGS), GUEST)),
            field!("runtime", U64, GUEST),
            field!("deadline", U64, GUEST),
            field!("period", U64, GUEST),
        ],
    ),
    field!(
        "selinuxLabel",
        Text,
        Ignored("the guest's kernel has no SELinux; the VM confines the container"),
    ),
    object!(
        "ioPriority",
        &[
            required!(
                "class",
                Word(&["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"]),
                GUEST,
            ),
            field!("priority", Number(0, 7), GUEST),
        ],
    ),
    object!(
        "execCPUAffinity",
        &[field!("initial", Cpus, GUEST), field!("final", Cpus, GUEST)],
    ),
]);

const CAPABILITY: Node = leaf!(KnownWord(CAPABILITIES), GUEST);

const MOUNT: Node = Node::Object(&[
    required!("destination", Place, GUEST),
    field!("type", Text, GUEST),
    field!("source", Text, HOST),
    // Its words have a table of their own.
    list!("options", &GUEST_TEXT),
    list!("uidMappings", &MOUNT_ID_MAP),
    list!("gidMappings", &MOUNT_ID_MAP),
]);

const MOUNT_ID_MAP: Node = Node::Object(&[
    field!("containerID", U32, RefusedWithZero(NO_ID_MAPS)),
    field!("hostID", U32, RefusedWithZero(NO_ID_MAPS)),
    field!("size", U32, RefusedWithZero(NO_ID_MAPS)),
]);

macro_rules! hook {
    ($fate:expr, $text:expr) => {
        Node::Object(&[
            required!("path", Path, $fate),
            list!("args", $text),
            list!("env", $text),
            field!("timeout", Number(1, i32::MAX as i128), $fate),
        ])
    };
}

const HOOK_ON_HOST: Node = hook!(HOST, &HOST_TEXT);
const HOOK_IN_GUEST: Node = hook!(GUEST, &GUEST_TEXT);
const HOOK_NOWHERE: Node = Node::Object(&[
    field!("path", Path, Refused(CREATE_HOOKS)),
    list!("args", &leaf!(Text, Refused(CREATE_HOOKS))),
    list!("env", &leaf!(Text, Refused(CREATE_HOOKS))),
    field!("timeout", I32, Refused(CREATE_HOOKS)),
]);

const LINUX: &[Field] = &[
    list!("uidMappings", &ID_MAP),
    list!("gidMappings", &ID_MAP),
    object!(
        "timeOffsets",
        &[
            object!("boottime", TIME_OFFSET),
            object!("monotonic", TIME_OFFSET)
        ],
    ),
    key!("sysctl", false, Node::Map(&GUEST_TEXT)),
    key!("resources", false, RESOURCES),
    field!("cgroupsPath", Text, HOST),
    list!(
        "namespaces",
        &Node::Object(&[
            required!("type", Word(NAMESPACES), GUEST),
            field!("path", Text, GUEST),
        ]),
    ),
    list!(
        "devices",
        &Node::Object(&[
            required!(
                "type",
                WordExcept(
                    &["c", "u", "p"],
                    &[("b", "a disk of the host, which the guest does not have")],
                ),
                GUEST,
            ),
            required!("path", Path, GUEST),
            field!("major", I64, GUEST),
            field!("minor", I64, GUEST),
            field!("fileMode", U32, GUEST),
            field!("uid", ID, GUEST),
            field!("gid", ID, GUEST),
        ]),
    ),
    key!(
        "netDevices",
        false,
        Node::Map(&Node::Object(&[field!("name", Text, Refused(HOST_NET))])),
    ),
    object!("seccomp", SECCOMP),
    field!("rootfsPropagation", Word(PROPAGATIONS), GUEST),
    // Each is a mount.
    key!("maskedPaths", false, Node::List(&GUEST_PATH, super::MAX_MOUNTS)),
    key!("readonlyPaths", false, Node::List(&GUEST_PATH, super::MAX_MOUNTS)),
    field!(
        "mountLabel",
        Text,
        Ignored("the guest's kernel has no SELinux; the VM confines the container"),
    ),
    object!(
        "intelRdt",
        &[
            field!("closID", Text, Refused(RDT)),
            list!("schemata", &leaf!(Text, Refused(RDT))),
            field!("l3CacheSchema", Text, Refused(RDT)),
            field!("memBwSchema", Text, Refused(RDT)),
            field!("enableCMT", Flag, Refused(RDT)),
            field!("enableMBM", Flag, Refused(RDT)),
            field!("enableMonitoring", Flag, Refused(RDT)),
        ],
    ),
    object!(
        "memoryPolicy",
        &[
            field!("mode", Text, Refused(NUMA)),
            field!("nodes", Text, Refused(NUMA)),
            list!("flags", &leaf!(Text, Refused(NUMA))),
        ],
    ),
    object!(
        "personality",
        &[
            required!("domain", Word(&["LINUX", "LINUX32"]), GUEST),
            list!("flags", &leaf!(Text, Refused("the specification defines none")),),
        ],
    ),
];

const ID_MAP: Node = Node::Object(&[
    required!("containerID", U32, GUEST),
    required!("hostID", U32, GUEST),
    required!("size", Number(1, u32::MAX as i128), GUEST),
]);

const TIME_OFFSET: &[Field] = &[
    field!("secs", I64, GUEST),
    field!("nanosecs", Number(0, 999_999_999), GUEST),
];

const SECCOMP: &[Field] = &[
    required!("defaultAction", WordExcept(ACTIONS, NOTIFY), GUEST),
    field!("defaultErrnoRet", Number(0, 4095), GUEST),
    list!("architectures", &leaf!(Word(ARCHITECTURES), GUEST)),
    list!("flags", &leaf!(WordExcept(SECCOMP_FLAGS, OF_LISTENERS), GUEST)),
    field!("listenerPath", Text, Refused(NO_LISTENER)),
    field!("listenerMetadata", Text, Refused(NO_LISTENER)),
    list!(
        "syscalls",
        &Node::Object(&[
            key!("names", true, Node::List(&GUEST_TEXT, MANY)),
            required!("action", WordExcept(ACTIONS, NOTIFY), GUEST),
            field!("errnoRet", Number(0, 4095), GUEST),
            list!(
                "args",
                &Node::Object(&[
                    required!("index", Number(0, 5), GUEST),
                    required!("value", U64, GUEST),
                    field!("valueTwo", U64, GUEST),
                    required!("op", Word(OPERATORS), GUEST),
                ]),
            ),
        ]),
    ),
];

/// `linux.resources`: of a container, and of each Update.
pub const RESOURCES: Node = Node::Object(&[
    list!(
        "devices",
        &Node::Object(&[
            required!("allow", Flag, GUEST),
            field!("type", Word(&["a", "b", "c"]), GUEST),
            field!("major", I64, GUEST),
            field!("minor", I64, GUEST),
            field!("access", Text, GUEST),
        ]),
    ),
    object!(
        "memory",
        &[
            field!("limit", LIMIT, GUEST),
            field!("reservation", LIMIT, GUEST),
            field!("swap", LIMIT, GUEST),
            field!("kernel", LIMIT, Refused(V1)),
            field!("kernelTCP", LIMIT, Refused(V1)),
            field!("swappiness", U64, RefusedWithZero(V1)),
            field!("disableOOMKiller", Flag, Refused(V1)),
            field!("useHierarchy", Flag, Ignored("cgroup v2 is always a hierarchy")),
            field!("checkBeforeUpdate", Flag, GUEST),
        ],
    ),
    object!(
        "cpu",
        &[
            field!("shares", U64, GUEST),
            field!("quota", LIMIT, GUEST),
            field!("burst", U64, GUEST),
            field!("period", U64, GUEST),
            field!("realtimeRuntime", I64, Refused(V1)),
            field!("realtimePeriod", U64, Refused(V1)),
            field!("cpus", Cpus, Applied(Vm)),
            field!("mems", Cpus, Refused(NUMA)),
            field!("idle", Number(0, 1), GUEST),
        ],
    ),
    object!("pids", &[field!("limit", LIMIT, GUEST)]),
    object!(
        "blockIO",
        &[
            field!("weight", U16, Refused(HOST_DISKS)),
            field!("leafWeight", U16, Refused(HOST_DISKS)),
            list!(
                "weightDevice",
                &Node::Object(&[
                    field!("major", I64, RefusedWithZero(HOST_DISKS)),
                    field!("minor", I64, RefusedWithZero(HOST_DISKS)),
                    field!("weight", U16, RefusedWithZero(HOST_DISKS)),
                    field!("leafWeight", U16, RefusedWithZero(HOST_DISKS)),
                ]),
            ),
            list!("throttleReadBpsDevice", &THROTTLE),
            list!("throttleWriteBpsDevice", &THROTTLE),
            list!("throttleReadIOPSDevice", &THROTTLE),
            list!("throttleWriteIOPSDevice", &THROTTLE),
        ],
    ),
    list!(
        "hugepageLimits",
        &Node::Object(&[
            required!("pageSize", Text, GUEST),
            required!("limit", Number(0, i64::MAX as i128), GUEST),
        ]),
    ),
    object!(
        "network",
        &[
            field!("classID", U32, Refused(V1)),
            list!(
                "priorities",
                &Node::Object(&[
                    field!("name", Text, Refused(V1)),
                    field!("priority", U32, RefusedWithZero(V1)),
                ]),
            ),
        ],
    ),
    key!(
        "rdma",
        false,
        Node::Map(&Node::Object(&[
            field!("hcaHandles", U32, RefusedWithZero(HOST_NET)),
            field!("hcaObjects", U32, RefusedWithZero(HOST_NET)),
        ])),
    ),
    key!("unified", false, Node::Map(&GUEST_TEXT)),
]);

const THROTTLE: Node = Node::Object(&[
    field!("major", I64, RefusedWithZero(HOST_DISKS)),
    field!("minor", I64, RefusedWithZero(HOST_DISKS)),
    field!("rate", U64, RefusedWithZero(HOST_DISKS)),
]);
