//! Finds invalid UTF-8 in JSON.

use serde_json::Value;

use super::findings::quoted;
use super::schema::join;

/// The path of the first string in `value` that contains U+FFFD, which stands for bytes that are not UTF-8.
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
