//! The walk over a spec by the table.

use serde_json::{Map, Value};

use super::devices::leave_out_disks;
use super::node::{Fate, Field, Kind, Leaf, Node, join};
use super::options::{FILE_SYSTEMS, MountKind, OptionFate, option};
use super::table::{PROCESS, RESOURCES, SPEC};

/// Most findings of one kind that are kept: enough for a person, and bounded.
const MAX_FINDINGS: usize = 64;
/// Most characters of a key or value that are repeated in a finding.
const MAX_QUOTED: usize = 64;
const UNKNOWN: &str = "in no OCI specification";

/// A field, and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its JSON path.
    pub path: String,
    /// Why it is refused or ignored.
    pub reason: String,
}

/// What the walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why the spec can't be honoured; where it is not empty, what is left of the spec means nothing.
    pub refused: Vec<Finding>,
    /// What was taken out of the spec.
    pub ignored: Vec<Finding>,
}

impl Findings {
    /// One more reason against the spec.
    pub fn refuse(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        push(&mut self.refused, path, reason);
    }

    /// One more thing that is left out.
    pub fn ignore(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        push(&mut self.ignored, path, reason);
    }

    /// The refusals as one text.
    #[must_use]
    pub fn refusals(&self) -> String {
        let parts: Vec<String> = self
            .refused
            .iter()
            .map(|finding| format!("{}: {}", finding.path, finding.reason))
            .collect();
        parts.join("; ")
    }
}

fn push(list: &mut Vec<Finding>, path: impl Into<String>, reason: impl Into<String>) {
    if list.len() < MAX_FINDINGS {
        let (path, reason) = (path.into(), reason.into());
        list.push(Finding { path, reason });
    }
}

/// Looks at every field of `spec`, and leaves in it only what is applied.
pub fn sift(spec: &mut Value) -> Findings {
    let mut findings = Findings::default();
    leave_out_disks(spec, &mut findings);
    walk(&SPEC, spec, "", &mut findings);
    if findings.refused.is_empty() {
        check_command(&spec["process"], "process", &mut findings);
    }
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        sift_mount(mount, &format!("mounts[{index}]"), &mut findings);
    }
    findings
}

/// As [`sift`], of a `process` object alone.
pub fn sift_process(process: &mut Value) -> Findings {
    let mut findings = Findings::default();
    walk(&PROCESS, process, "process", &mut findings);
    if findings.refused.is_empty() {
        check_command(process, "process", &mut findings);
    }
    findings
}

/// As [`sift`], of a `linux.resources` object that changes a container which lives.
pub fn sift_update(resources: &mut Value) -> Findings {
    let mut findings = Findings::default();
    walk(&RESOURCES, resources, "linux.resources", &mut findings);
    let mut leave_out = |parent: &str, key: &str, reason: &str| {
        let object = resources.pointer_mut(parent).and_then(Value::as_object_mut);
        if object
            .and_then(|object| object.remove(key))
            .is_some_and(|value| asks(&value, true))
        {
            let path = format!("linux.resources{}.{key}", parent.replace('/', "."));
            findings.ignore(path, reason);
        }
    };
    // Kubernetes sends all that there is with each change.
    leave_out(
        "",
        "devices",
        "the rules stay as they were when the container was made",
    );
    leave_out("/cpu", "cpus", "the VM stays on the CPUs that it was started on");
    findings
}

fn check_command(process: &Value, path: &str, findings: &mut Findings) {
    let name = process["args"].get(0).and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        findings.refuse(join(path, "args"), "names no command");
    }
}

fn sift_mount(mount: &mut Value, path: &str, findings: &mut Findings) {
    let mut kind = MountKind::InGuest;
    let of_type = mount["type"].as_str().unwrap_or_default();
    let options = mount["options"].as_array();
    let is_bind = |word: &Value| word == "bind" || word == "rbind";
    if of_type == "bind" || options.into_iter().flatten().any(is_bind) {
        kind = MountKind::HostBind;
    } else if !FILE_SYSTEMS.contains(&of_type) {
        let reason = format!("a guest makes no file system {} for a container", quoted(of_type));
        findings.refuse(join(path, "type"), reason);
    }
    let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) else {
        return;
    };
    let mut index = 0;
    options.retain(|word| {
        let place = format!("{path}.options[{index}]");
        index += 1;
        let word = word.as_str().unwrap_or_default();
        match option(word, kind) {
            OptionFate::Applied => true,
            OptionFate::Ignored(reason) => {
                findings.ignore(place, format!("{}: {reason}", quoted(word)));
                false
            }
            OptionFate::Refused(reason) => {
                findings.refuse(place, format!("{}: {reason}", quoted(word)));
                false
            }
        }
    });
}

/// The path of the first text in `value` with a character that stands for bytes that are no UTF-8.
#[must_use]
pub fn find_broken_text(value: &Value, path: &str) -> Option<String> {
    let is_broken = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
    match value {
        Value::String(text) => is_broken(text).then(|| path.to_owned()),
        Value::Array(elements) => elements
            .iter()
            .enumerate()
            .find_map(|(index, value)| find_broken_text(value, &format!("{path}[{index}]"))),
        Value::Object(object) => object.iter().find_map(|(key, value)| {
            if is_broken(key) {
                return Some(join(path, &quoted(key)));
            }
            find_broken_text(value, &join(path, key))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Whether the value stays.
fn walk(node: &Node, value: &mut Value, path: &str, findings: &mut Findings) -> bool {
    let here = if path.is_empty() { "the spec" } else { path };
    match (node, value) {
        (Node::Leaf(leaf), value) => check_leaf(*leaf, value, here, findings),
        (Node::Object(fields), Value::Object(object)) => {
            walk_object(fields, object, path, findings);
            true
        }
        (Node::List(of, most), Value::Array(elements)) => {
            if elements.len() > *most {
                findings.refuse(here, format!("{} elements; at most {most}", elements.len()));
                return false;
            }
            let mut index = 0;
            elements.retain_mut(|value| {
                let path = format!("{path}[{index}]");
                index += 1;
                walk(of, value, &path, findings)
            });
            true
        }
        (Node::Map(of), Value::Object(object)) => {
            object.retain(|key, value| {
                !value.is_null() && walk(of, value, &format!("{path}[{}]", quoted(key)), findings)
            });
            true
        }
        (Node::Object(_) | Node::Map(_), _) => {
            findings.refuse(here, "is no object");
            false
        }
        (Node::List(..), _) => {
            findings.refuse(here, "is no list");
            false
        }
    }
}

fn walk_object(fields: &[Field], object: &mut Map<String, Value>, path: &str, findings: &mut Findings) {
    object.retain(|key, value| {
        let Some(field) = fields.iter().find(|field| field.name == key) else {
            findings.ignore(join(path, &plain(key)), UNKNOWN);
            return false;
        };
        // Generators write what is absent as null, too.
        !value.is_null() && walk(&field.node, value, &join(path, key), findings)
    });
    for field in fields.iter().filter(|field| field.is_required) {
        if !object.contains_key(field.name) {
            let path = join(path, field.name);
            // One that was there is refused already.
            if !findings.refused.iter().any(|finding| finding.path == path) {
                findings.refuse(path, "is missing");
            }
        }
    }
}

fn check_leaf(leaf: Leaf, value: &Value, path: &str, findings: &mut Findings) -> bool {
    match leaf.fate {
        Fate::Applied(_) => match misfit(leaf.kind, value) {
            Ok(()) => true,
            Err(reason) if matches!(leaf.kind, Kind::KnownWord(_)) && value.is_string() => {
                findings.ignore(path, reason);
                false
            }
            Err(reason) => {
                findings.refuse(path, reason);
                false
            }
        },
        Fate::Ignored(reason) => {
            if asks(value, false) {
                findings.ignore(path, reason);
            }
            false
        }
        Fate::Refused(reason) | Fate::RefusedWithZero(reason) => {
            if asks(value, matches!(leaf.fate, Fate::RefusedWithZero(_))) {
                findings.refuse(path, reason);
            }
            false
        }
    }
}

/// Whether `value` asks for anything: generators write empty fields for what they don't want.
fn asks(value: &Value, zero_asks: bool) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        // A limit of -1 is none.
        Value::Number(number) => zero_asks || !matches!(number.as_i64(), Some(-1 | 0)),
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(object) => object.values().any(|value| asks(value, zero_asks)),
    }
}

/// Whether `value` is of `kind`. The error is what the field says.
fn misfit(kind: Kind, value: &Value) -> Result<(), String> {
    match kind {
        Kind::Foreign => Ok(()),
        Kind::Flag => value
            .as_bool()
            .map(|_| ())
            .ok_or_else(|| "is neither true nor false".to_owned()),
        Kind::Number(least, most) => {
            let number = value
                .as_i64()
                .map(i128::from)
                .or_else(|| value.as_u64().map(i128::from));
            match number {
                Some(number) if (least..=most).contains(&number) => Ok(()),
                _ => Err(format!(
                    "{} is no whole number from {least} to {most}",
                    shown(value)
                )),
            }
        }
        Kind::Text
        | Kind::Path
        | Kind::Place
        | Kind::Version
        | Kind::Cpus
        | Kind::Word(_)
        | Kind::WordExcept(..)
        | Kind::KnownWord(_) => {
            let text = value
                .as_str()
                .ok_or_else(|| format!("{} is no text", shown(value)))?;
            if text.contains('\0') {
                return Err("has a NUL".to_owned());
            }
            misfit_text(kind, text)
        }
    }
}

fn misfit_text(kind: Kind, text: &str) -> Result<(), String> {
    let fits = |fits: bool, what: &str| {
        if fits {
            Ok(())
        } else {
            Err(format!("{} {what}", quoted(text)))
        }
    };
    match kind {
        Kind::Path => fits(text.starts_with('/'), "is no absolute path"),
        Kind::Place => fits(!text.is_empty(), "is no path"),
        Kind::Version => fits(text.starts_with("1."), "is no version 1.x"),
        Kind::Cpus => fits(
            text.chars().all(|c| c.is_ascii_digit() || ", -".contains(c)),
            "is no list of numbers",
        ),
        Kind::Word(words) => fits(words.contains(&text), &none_of(words)),
        Kind::WordExcept(words, refused) => match refused.iter().find(|(word, _)| *word == text) {
            Some((word, reason)) => Err(format!("{word}: {reason}")),
            None => fits(words.contains(&text), &none_of(words)),
        },
        Kind::KnownWord(words) => fits(words.contains(&text), "is not known"),
        Kind::Text | Kind::Flag | Kind::Number(..) | Kind::Foreign => Ok(()),
    }
}

fn none_of(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
    format!("is none of {}", words.join(", "))
}

/// A value that is not what it should be, in short.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Number(number) => number.to_string(),
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED).collect();
    let rest = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{rest}")
}

/// A key as a part of a path.
fn plain(key: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if key.len() <= MAX_QUOTED && !key.is_empty() && key.chars().all(is_plain) {
        key.to_owned()
    } else {
        quoted(key)
    }
}
