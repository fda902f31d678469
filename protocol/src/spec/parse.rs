//! Parses the JSON of a spec, once, with an error that names the field or the position. Never looks at what a
//! field means.

use serde_json::Value;

use super::MAX_SPEC;
use super::findings::{Refused, quoted};
use super::schema::join;

/// Parses `json`. `name` is the document's name in errors; `path` is the path of its fields, empty for a
/// config.json.
pub fn parse(name: &str, path: &str, json: &[u8]) -> Result<Value, Refused> {
    if json.len() > MAX_SPEC {
        let reason = format!("expected at most {MAX_SPEC} bytes, got {}", json.len());
        return Err(Refused::new(name, reason));
    }
    let invalid = |error: serde_json::Error| Refused::new(name, error.to_string());
    match std::str::from_utf8(json) {
        Ok(text) => serde_json::from_str(text).map_err(invalid),
        Err(_) => {
            let value = serde_json::from_str(&String::from_utf8_lossy(json)).map_err(invalid)?;
            let field = find_replaced(&value, path).unwrap_or_else(|| name.to_owned());
            Err(Refused::new(field, "is not UTF-8"))
        }
    }
}

/// The path of the first string in `value` that contains U+FFFD, which replaced bytes that are not UTF-8.
fn find_replaced(value: &Value, path: &str) -> Option<String> {
    let is_replaced = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
    match value {
        Value::String(text) => is_replaced(text).then(|| path.to_owned()),
        Value::Array(elements) => elements
            .iter()
            .enumerate()
            .find_map(|(index, value)| find_replaced(value, &format!("{path}[{index}]"))),
        Value::Object(object) => object.iter().find_map(|(key, value)| {
            if is_replaced(key) {
                return Some(join(path, &quoted(key)));
            }
            find_replaced(value, &join(path, key))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}
