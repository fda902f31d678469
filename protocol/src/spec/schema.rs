//! The types of the field table: what a value must look like ([`Kind`]) and how a field is handled
//! ([`Handling`]).

/// Where a field has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppliedIn {
    /// In the guest, by its kernel or the agent.
    Guest,
    /// On the VM, from outside of the guest.
    Vm,
    /// On the host, by the shim.
    Host,
}

/// How a field is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// It has its effect.
    Applied(AppliedIn),
    /// It is removed from the spec, and reported with this reason if it is set.
    Ignored(&'static str),
    /// If it is set, the spec is refused with this reason. Empty strings, lists and objects, `null`, `false`,
    /// 0 and -1 count as not set.
    Refused(&'static str),
    /// As [`Handling::Refused`], but 0 and -1 count as set.
    RefusedWithZero(&'static str),
}

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string without NUL.
    String,
    /// An absolute path.
    AbsolutePath,
    /// `process.env[]`: NAME=VALUE with a name.
    Variable,
    /// `mounts[].destination`: a path that is not empty, relative to the container's root.
    MountDestination,
    /// `linux.devices[].path`: a path below /dev.
    DevicePath,
    /// `linux.resources.devices[].access`: letters r, w and m.
    DeviceAccess,
    /// A size of huge pages, such as "2MB".
    PageSize,
    /// A version of the specification, 1.x.
    SpecVersion,
    /// A list of CPUs ([`crate::cpu_list`]), or an empty string.
    CpuList,
    /// `true` or `false`.
    Boolean,
    /// An integer from the first to the last number, both included.
    Integer(i128, i128),
    /// One of these names.
    OneOf(&'static [&'static str]),
    /// One of the first names; the second are names that the specification defines, each with the reason why
    /// it is refused.
    OneOfExcept(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// One of these names; other names are ignored and reported, as the specification requires for
    /// capabilities.
    OneOfOrIgnored(&'static [&'static str]),
    /// Anything, for fields of other platforms.
    Any,
}

/// A value without parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// What it must look like.
    pub kind: Kind,
    /// How it is handled.
    pub handling: Handling,
}

/// A value of the spec.
#[derive(Debug, Clone, Copy)]
pub enum Node {
    /// A value without parts.
    Leaf(Leaf),
    /// An object with these fields.
    Object(&'static [Field]),
    /// A list of such elements, and the most that it may have.
    List(&'static Node, usize),
    /// An object with any keys and such values.
    Map(&'static Node),
}

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// Whether an object without it is refused.
    pub is_required: bool,
    /// Its value.
    pub node: Node,
}

/// All leaves of `node`, each with its path: `[]` after a list, `.*` after a map, as in `mounts[].options[]`
/// and `annotations.*`. `path` is the path of `node`, empty for the whole spec.
#[must_use]
pub fn leaves(node: &Node, path: &str) -> Vec<(String, Leaf)> {
    match node {
        Node::Leaf(leaf) => vec![(path.to_owned(), *leaf)],
        Node::List(element, _) => leaves(element, &format!("{path}[]")),
        Node::Map(value) => leaves(value, &format!("{path}.*")),
        Node::Object(fields) => fields
            .iter()
            .flat_map(|field| leaves(&field.node, &join(path, field.name)))
            .collect(),
    }
}

/// The path of key `name` in the object at `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
