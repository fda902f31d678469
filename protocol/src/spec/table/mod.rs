//! The field table: every field of `config.json` in the OCI runtime specification 1.3, what its value must
//! look like and how it is handled. [`super::filter`] applies the table to a spec; docs/conformance.md is
//! generated from it.

use super::schema::AppliedIn::{Guest, Host};
use super::schema::Handling::{Applied, Refused, RefusedWithZero};
use super::schema::Kind::{AbsolutePath, Any, Boolean, Integer, MountDestination, SpecVersion, String};
use super::schema::{Field, Handling, Kind, Leaf, Node};

// Macros, because functions that are not `const` cannot be used in a static table.
macro_rules! leaf {
    ($kind:expr, $handling:expr) => {
        Node::Leaf(Leaf {
            kind: $kind,
            handling: $handling,
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
    ($name:expr, $kind:expr, $handling:expr $(,)?) => {
        key!($name, false, leaf!($kind, $handling))
    };
}
macro_rules! required {
    ($name:expr, $kind:expr, $handling:expr $(,)?) => {
        key!($name, true, leaf!($kind, $handling))
    };
}
macro_rules! object {
    ($name:expr, $fields:expr $(,)?) => {
        key!($name, false, Node::Object($fields))
    };
}
macro_rules! list {
    ($name:expr, $of:expr $(,)?) => {
        key!($name, false, Node::List($of, MAX_LIST_LEN))
    };
}

mod linux;
mod process;
mod resources;

use linux::LINUX;
pub use process::PROCESS;
pub use resources::RESOURCES;

/// Most elements of a list: far more than any real spec has, and few enough to check each.
const MAX_LIST_LEN: usize = 65_536;

const U16: Kind = Integer(0, u16::MAX as i128);
const U32: Kind = Integer(0, u32::MAX as i128);
/// A uid or gid. The largest u32 is not an id: setresuid(2) reads it as "no change".
const ID: Kind = Integer(0, u32::MAX as i128 - 1);
const U64: Kind = Integer(0, u64::MAX as i128);
const I64: Kind = Integer(i64::MIN as i128, i64::MAX as i128);

const GUEST: Handling = Applied(Guest);
const HOST: Handling = Applied(Host);

const NOT_LINUX: &str = "applies to another platform";
const NUMA: &str = "the guest has a single NUMA node";
const HOST_NET: &str = "refers to devices of the host, which the guest does not have";
const CREATE_HOOKS: &str =
    "would run a host program in the container's namespaces, which exist only in the guest";

const GUEST_STRING: Node = leaf!(String, GUEST);
const GUEST_PATH: Node = leaf!(AbsolutePath, GUEST);
const HOST_STRING: Node = leaf!(String, HOST);

/// `config.json`.
pub static SPEC: Node = Node::Object(&[
    required!("ociVersion", SpecVersion, GUEST),
    key!(
        "root",
        true,
        Node::Object(&[
            required!("path", String, HOST),
            field!("readonly", Boolean, GUEST)
        ]),
    ),
    key!("process", true, PROCESS),
    field!("hostname", String, GUEST),
    field!("domainname", String, GUEST),
    key!("mounts", false, Node::List(&MOUNT, crate::spec::MAX_MOUNTS)),
    object!(
        "hooks",
        &[
            list!("prestart", &HOOK_ON_HOST),
            list!("createRuntime", &HOOK_ON_HOST),
            list!("createContainer", &REFUSED_HOOK),
            list!("startContainer", &HOOK_IN_GUEST),
            list!("poststart", &HOOK_ON_HOST),
            list!("poststop", &HOOK_ON_HOST),
        ],
    ),
    key!("annotations", false, Node::Map(&HOST_STRING)),
    key!("linux", true, Node::Object(LINUX)),
    field!("solaris", Any, Refused(NOT_LINUX)),
    field!("windows", Any, Refused(NOT_LINUX)),
    field!("vm", Any, Refused("the VM is configured in config.toml")),
    field!("zos", Any, Refused(NOT_LINUX)),
    field!("freebsd", Any, Refused(NOT_LINUX)),
]);

const MOUNT: Node = Node::Object(&[
    required!("destination", MountDestination, GUEST),
    field!("type", String, GUEST),
    field!("source", String, HOST),
    // Each option has a row in the table of `crate::spec::mounts`.
    list!("options", &GUEST_STRING),
    list!("uidMappings", &MOUNT_ID_MAP),
    list!("gidMappings", &MOUNT_ID_MAP),
]);

const MOUNT_ID_MAP: Node = Node::Object(&[
    field!("containerID", U32, HOST),
    field!("hostID", U32, HOST),
    field!("size", U32, HOST),
]);

macro_rules! hook {
    ($handling:expr, $text:expr) => {
        Node::Object(&[
            required!("path", AbsolutePath, $handling),
            list!("args", $text),
            list!("env", $text),
            field!("timeout", Integer(1, i32::MAX as i128), $handling),
        ])
    };
}

const HOOK_ON_HOST: Node = hook!(HOST, &HOST_STRING);
const HOOK_IN_GUEST: Node = hook!(GUEST, &GUEST_STRING);
const REFUSED_HOOK: Node = Node::Object(&[
    field!("path", AbsolutePath, Refused(CREATE_HOOKS)),
    list!("args", &leaf!(String, Refused(CREATE_HOOKS))),
    list!("env", &leaf!(String, Refused(CREATE_HOOKS))),
    field!(
        "timeout",
        Integer(i32::MIN as i128, i32::MAX as i128),
        Refused(CREATE_HOOKS)
    ),
]);
