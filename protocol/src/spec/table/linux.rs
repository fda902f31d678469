//! The table of `linux`, without `linux.resources`.

use super::*;
use crate::spec::MAX_MOUNTS;
use crate::spec::names::{
    LISTENER_FLAGS, NAMESPACE_TYPES, NO_LISTENER, NOTIFY_ACTION, PROPAGATION_TYPES, SECCOMP_ACTIONS,
    SECCOMP_ARCHITECTURES, SECCOMP_FLAGS, SECCOMP_OPERATORS,
};
use crate::spec::schema::Handling::Ignored;
use crate::spec::schema::Kind::{DevicePath, OneOf, OneOfExcept};

const RDT: &str = "the guest kernel cannot partition the host's caches";

/// `linux`.
pub const LINUX: &[Field] = &[
    list!("uidMappings", &ID_MAP),
    list!("gidMappings", &ID_MAP),
    object!(
        "timeOffsets",
        &[
            object!("boottime", TIME_OFFSET),
            object!("monotonic", TIME_OFFSET)
        ],
    ),
    key!("sysctl", false, Node::Map(&GUEST_STRING)),
    key!("resources", false, RESOURCES),
    field!("cgroupsPath", String, HOST),
    list!(
        "namespaces",
        &Node::Object(&[
            required!("type", OneOf(NAMESPACE_TYPES), GUEST),
            field!("path", String, GUEST),
        ]),
    ),
    list!(
        "devices",
        &Node::Object(&[
            required!("type", OneOf(&["c", "u", "p", "b"]), GUEST),
            required!("path", DevicePath, GUEST),
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
        Node::Map(&Node::Object(&[field!("name", String, Refused(HOST_NET))])),
    ),
    object!("seccomp", SECCOMP),
    field!("rootfsPropagation", OneOf(PROPAGATION_TYPES), GUEST),
    // Each is a mount.
    key!("maskedPaths", false, Node::List(&GUEST_PATH, MAX_MOUNTS)),
    key!("readonlyPaths", false, Node::List(&GUEST_PATH, MAX_MOUNTS)),
    field!(
        "mountLabel",
        String,
        Ignored("the guest's kernel has no SELinux; the VM isolates the container"),
    ),
    object!(
        "intelRdt",
        &[
            field!("closID", String, Refused(RDT)),
            list!("schemata", &leaf!(String, Refused(RDT))),
            field!("l3CacheSchema", String, Refused(RDT)),
            field!("memBwSchema", String, Refused(RDT)),
            field!("enableCMT", Boolean, Refused(RDT)),
            field!("enableMBM", Boolean, Refused(RDT)),
            field!("enableMonitoring", Boolean, Refused(RDT)),
        ],
    ),
    object!(
        "memoryPolicy",
        &[
            field!("mode", String, Refused(NUMA)),
            field!("nodes", String, Refused(NUMA)),
            list!("flags", &leaf!(String, Refused(NUMA))),
        ],
    ),
    object!(
        "personality",
        &[
            required!("domain", OneOf(&["LINUX", "LINUX32"]), GUEST),
            list!(
                "flags",
                &leaf!(String, Refused("the specification defines no flags")),
            ),
        ],
    ),
];

const ID_MAP: Node = Node::Object(&[
    required!("containerID", U32, GUEST),
    required!("hostID", U32, GUEST),
    required!("size", Integer(1, u32::MAX as i128), GUEST),
]);

const TIME_OFFSET: &[Field] = &[
    field!("secs", I64, GUEST),
    field!("nanosecs", Integer(0, 999_999_999), GUEST),
];

const SECCOMP: &[Field] = &[
    required!(
        "defaultAction",
        OneOfExcept(SECCOMP_ACTIONS, NOTIFY_ACTION),
        GUEST
    ),
    field!("defaultErrnoRet", Integer(0, 4095), GUEST),
    list!("architectures", &leaf!(OneOf(SECCOMP_ARCHITECTURES), GUEST)),
    list!("flags", &leaf!(OneOfExcept(SECCOMP_FLAGS, LISTENER_FLAGS), GUEST)),
    field!("listenerPath", String, Refused(NO_LISTENER)),
    field!("listenerMetadata", String, Refused(NO_LISTENER)),
    list!(
        "syscalls",
        &Node::Object(&[
            key!("names", true, Node::List(&GUEST_STRING, MAX_LIST_LEN)),
            required!("action", OneOfExcept(SECCOMP_ACTIONS, NOTIFY_ACTION), GUEST),
            field!("errnoRet", Integer(0, 4095), GUEST),
            list!(
                "args",
                &Node::Object(&[
                    required!("index", Integer(0, 5), GUEST),
                    required!("value", U64, GUEST),
                    field!("valueTwo", U64, GUEST),
                    required!("op", OneOf(SECCOMP_OPERATORS), GUEST),
                ]),
            ),
        ]),
    ),
];
