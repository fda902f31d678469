//! The table of `linux.resources`.

use super::*;
use crate::spec::MAX_DEVICE_RULES;
use crate::spec::schema::AppliedIn::Vm;
use crate::spec::schema::Handling::Ignored;
use crate::spec::schema::Kind::{CpuList, DeviceAccess, OneOf, PageSize};

/// A limit; -1 means no limit.
const LIMIT: Kind = Integer(-1, i64::MAX as i128);
/// The major or minor number of a device rule; -1 matches all.
const DEVICE_NUMBER: Kind = Integer(-1, u32::MAX as i128);

const V1: &str = "exists in cgroup v1 only; the guest uses cgroup v2";
const WEIGHTS: &str =
    "shares of a disk's time against other pods can't be given from inside a VM; limits can";

/// `linux.resources`, of a container and of each Update.
pub const RESOURCES: Node = Node::Object(&[
    key!("devices", false, Node::List(&DEVICE_RULE, MAX_DEVICE_RULES)),
    object!(
        "memory",
        &[
            field!("limit", LIMIT, GUEST),
            field!("reservation", LIMIT, GUEST),
            field!("swap", LIMIT, GUEST),
            field!("kernel", LIMIT, Refused(V1)),
            field!("kernelTCP", LIMIT, Refused(V1)),
            field!("swappiness", U64, RefusedWithZero(V1)),
            field!("disableOOMKiller", Boolean, Refused(V1)),
            field!(
                "useHierarchy",
                Boolean,
                Ignored("cgroup v2 is always hierarchical")
            ),
            field!("checkBeforeUpdate", Boolean, GUEST),
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
            field!("cpus", CpuList, Applied(Vm)),
            field!("mems", CpuList, Refused(NUMA)),
            field!("idle", Integer(0, 1), GUEST),
        ],
    ),
    object!("pids", &[field!("limit", LIMIT, GUEST)]),
    object!(
        "blockIO",
        &[
            field!("weight", U16, Refused(WEIGHTS)),
            field!("leafWeight", U16, Refused(V1)),
            list!(
                "weightDevice",
                &Node::Object(&[
                    field!("major", I64, RefusedWithZero(WEIGHTS)),
                    field!("minor", I64, RefusedWithZero(WEIGHTS)),
                    field!("weight", U16, RefusedWithZero(WEIGHTS)),
                    field!("leafWeight", U16, RefusedWithZero(V1)),
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
            required!("pageSize", PageSize, GUEST),
            required!("limit", Integer(0, i64::MAX as i128), GUEST),
        ]),
    ),
    object!(
        "network",
        &[
            field!("classID", U32, Refused(V1)),
            list!(
                "priorities",
                &Node::Object(&[
                    field!("name", String, Refused(V1)),
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
    key!("unified", false, Node::Map(&GUEST_STRING)),
]);

const DEVICE_RULE: Node = Node::Object(&[
    required!("allow", Boolean, GUEST),
    field!("type", OneOf(&["a", "b", "c"]), GUEST),
    field!("major", DEVICE_NUMBER, GUEST),
    field!("minor", DEVICE_NUMBER, GUEST),
    field!("access", DeviceAccess, GUEST),
]);

/// Of a block device of the container, which is a disk of the VM. The agent refuses other ones.
const THROTTLE: Node = Node::Object(&[
    required!("major", U32, GUEST),
    required!("minor", U32, GUEST),
    field!("rate", U64, GUEST),
]);
