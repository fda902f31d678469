//! What a field can be and what can become of it.

/// Where a field has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// In the guest, by its kernel.
    Guest,
    /// On the VM, from outside.
    Vm,
    /// On the host, by the shim.
    Host,
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has its effect.
    Applied(Where),
    /// Left out of what the guest gets, and named in the log with this reason.
    Ignored(&'static str),
    /// The spec is refused with this reason, where the field asks for something: empty texts, lists and objects, `false`
    /// and 0 do not.
    Refused(&'static str),
    /// As [`Fate::Refused`], but a 0 asks for something too.
    RefusedWithZero(&'static str),
}

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text without NUL.
    Text,
    /// An absolute path.
    Path,
    /// Where something goes in the container: a path that is not empty. A step up from the root stays there.
    Place,
    /// A version of the specification, 1.x.
    Version,
    /// A list of numbers and ranges, as "0-3,7".
    Cpus,
    /// `true` or `false`.
    Flag,
    /// A whole number from the first to the last.
    Number(i128, i128),
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of the first words; the others are known, too, and refused for their reasons.
    WordExcept(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// One of these words; another one is left out and named in the log (the specification wants it so).
    KnownWord(&'static [&'static str]),
    /// Anything: it is of another platform.
    Foreign,
}

/// A value that has no parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// What it must look like.
    pub kind: Kind,
    /// What becomes of it.
    pub fate: Fate,
}

/// A value.
#[derive(Debug, Clone, Copy)]
pub enum Node {
    /// Without parts.
    Leaf(Leaf),
    /// An object with these keys.
    Object(&'static [Field]),
    /// A list, of at most so many.
    List(&'static Node, usize),
    /// An object with any keys.
    Map(&'static Node),
}

/// A key of an object.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Whether an object without it is refused.
    pub is_required: bool,
    /// What it holds.
    pub node: Node,
}

/// All leaves below `node`, by path: `mounts[].options[]`, `annotations.*`.
#[must_use]
pub fn leaves(node: &Node, path: &str) -> Vec<(String, Leaf)> {
    match node {
        Node::Leaf(leaf) => vec![(path.to_owned(), *leaf)],
        Node::List(of, _) => leaves(of, &format!("{path}[]")),
        Node::Map(of) => leaves(of, &format!("{path}.*")),
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
