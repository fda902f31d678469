//! Checks of single values against the table: is a field set, and is its value of the right type and in
//! range? Pure.

use std::path::Path;

use serde_json::Value;

use super::findings::{quoted, shown};
use super::schema::Kind;
use crate::cpu_list;

/// Whether `value` requests anything: generators write empty fields for what they do not want. 0 and -1 count
/// as set if `zero_is_set` is true.
pub fn is_set(value: &Value, zero_is_set: bool) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        // As a limit, -1 means no limit.
        Value::Number(number) => zero_is_set || !matches!(number.as_i64(), Some(-1 | 0)),
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(object) => object.values().any(|value| is_set(value, zero_is_set)),
    }
}

/// What is wrong with `value`; None if it is of `kind`.
pub fn type_error(kind: Kind, value: &Value) -> Option<String> {
    let expected = |what: &str| Some(format!("expected {what}, got {}", shown(value)));
    match kind {
        Kind::Any => None,
        Kind::Boolean if value.is_boolean() => None,
        Kind::Boolean => expected("true or false"),
        Kind::Integer(min, max) => {
            let number = value
                .as_i64()
                .map(i128::from)
                .or_else(|| value.as_u64().map(i128::from));
            match number {
                Some(number) if (min..=max).contains(&number) => None,
                _ => expected(&format!("an integer in {min}..={max}")),
            }
        }
        Kind::String
        | Kind::AbsolutePath
        | Kind::Variable
        | Kind::MountDestination
        | Kind::DevicePath
        | Kind::DeviceAccess
        | Kind::PageSize
        | Kind::SpecVersion
        | Kind::CpuList
        | Kind::OneOf(_)
        | Kind::OneOfExcept(..)
        | Kind::OneOfOrIgnored(_) => match value.as_str() {
            None => expected("a string"),
            Some(text) if text.contains('\0') => Some("contains a NUL character".to_owned()),
            Some(text) => string_error(kind, text),
        },
    }
}

fn string_error(kind: Kind, text: &str) -> Option<String> {
    let unless =
        |is_valid: bool, what: &str| (!is_valid).then(|| format!("expected {what}, got {}", quoted(text)));
    match kind {
        Kind::AbsolutePath => unless(text.starts_with('/'), "an absolute path"),
        Kind::Variable => unless(text.find('=').is_some_and(|at| at > 0), "NAME=VALUE"),
        Kind::MountDestination => unless(!text.is_empty(), "a path"),
        Kind::SpecVersion => unless(text.starts_with("1."), "a version 1.x"),
        Kind::DevicePath => unless(is_device_path(text), "a path below /dev"),
        Kind::DeviceAccess => unless(text.chars().all(|c| "rwm".contains(c)), "the letters r, w and m"),
        Kind::PageSize => unless(is_page_size(text), "a page size such as 2MB"),
        Kind::CpuList => unless(
            text.is_empty() || cpu_list::parse(text).is_some(),
            &format!("a list of CPUs below {} such as 0-3,7", cpu_list::MAX_CPUS),
        ),
        Kind::OneOf(names) => unless(names.contains(&text), &one_of(names)),
        Kind::OneOfExcept(names, refused) => match refused.iter().find(|(name, _)| *name == text) {
            Some((name, reason)) => Some(format!("{name}: {reason}")),
            None => unless(names.contains(&text), &one_of(names)),
        },
        Kind::OneOfOrIgnored(names) => (!names.contains(&text)).then(|| format!("unknown: {}", quoted(text))),
        Kind::String | Kind::Boolean | Kind::Integer(..) | Kind::Any => None,
    }
}

fn is_device_path(text: &str) -> bool {
    let path = Path::new(text);
    path.starts_with("/dev") && path != Path::new("/dev")
}

/// Whether `text` has the form of the sizes in the names of the kernel's files: a number without leading
/// zeros, and a unit.
fn is_page_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| text.strip_suffix(unit))
        .unwrap_or_default();
    (1..10).contains(&number.len()) && number.chars().all(|c| c.is_ascii_digit()) && !number.starts_with('0')
}

fn one_of(names: &[&str]) -> String {
    let names: Vec<&str> = names.iter().copied().filter(|name| !name.is_empty()).collect();
    format!("one of {}", names.join(", "))
}
