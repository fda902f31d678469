//! Checks of single values against the table: is a field set, and is its value of the right type and in range? Pure.

use serde_json::Value;

use super::findings::{quoted, shown};
use super::schema::Kind;

/// Whether `value` requests anything: generators write empty fields for what they do not want. 0 and -1 count as set if
/// `zero_is_set` is true.
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
        | Kind::MountDestination
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
        Kind::MountDestination => unless(!text.is_empty(), "a path"),
        Kind::SpecVersion => unless(text.starts_with("1."), "a version 1.x"),
        Kind::CpuList => unless(
            text.chars().all(|c| c.is_ascii_digit() || ", -".contains(c)),
            "a list of CPUs such as 0-3,7",
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

fn one_of(names: &[&str]) -> String {
    let names: Vec<&str> = names.iter().copied().filter(|name| !name.is_empty()).collect();
    format!("one of {}", names.join(", "))
}
