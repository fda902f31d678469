//! What the check of a spec finds: fields that are refused and fields that are ignored. Both lists are
//! bounded in number and length, because a spec chooses what is in them.

use serde_json::Value;

/// Most refused and most ignored fields that are reported.
const MAX_FINDINGS: usize = 64;
/// Most characters of a key or value that a finding quotes.
const MAX_QUOTED: usize = 64;

/// A field that is refused or ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The field's JSON path.
    pub path: String,
    /// Why it is refused or ignored.
    pub reason: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// The findings of a check, in the order of the spec.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Fields that cannot be honoured. If there are any, the spec must not be used.
    pub refused: Vec<Finding>,
    /// Fields that were removed from the spec.
    pub ignored: Vec<Finding>,
}

impl Findings {
    /// Adds a field that is refused.
    pub fn refuse(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        push(&mut self.refused, path.into(), reason.into());
    }

    /// Adds a field that is ignored.
    pub fn ignore(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        push(&mut self.ignored, path.into(), reason.into());
    }

    /// The ignored fields, if no field is refused.
    ///
    /// # Errors
    /// The refused fields.
    pub fn into_ignored(self) -> Result<Vec<Finding>, Refused> {
        if self.refused.is_empty() {
            Ok(self.ignored)
        } else {
            Err(Refused(self.refused))
        }
    }

    /// The refused fields as one text, as [`Refused`] shows them.
    #[must_use]
    pub fn refusals(&self) -> String {
        joined(&self.refused)
    }
}

/// Why a spec is refused: at least one field with a reason. Its text is "path: reason; path: reason".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", joined(.0))]
pub struct Refused(Vec<Finding>);

impl Refused {
    /// A spec that is refused for one field.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        let (path, reason) = (path.into(), reason.into());
        Self(vec![Finding { path, reason }])
    }

    /// The refused fields.
    #[must_use]
    pub fn into_findings(self) -> Vec<Finding> {
        self.0
    }
}

fn joined(findings: &[Finding]) -> String {
    let parts: Vec<String> = findings.iter().map(Finding::to_string).collect();
    parts.join("; ")
}

fn push(list: &mut Vec<Finding>, path: String, reason: String) {
    if list.len() < MAX_FINDINGS {
        list.push(Finding { path, reason });
    }
}

/// The start of `text` in quotes.
#[must_use]
pub fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED).collect();
    let rest = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{rest}")
}

/// A value as findings show it.
#[must_use]
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Number(number) => number.to_string(),
        Value::Null => "null".to_owned(),
        Value::Bool(boolean) => boolean.to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// A key of an object as a part of a path: in quotes unless it is short and plain.
pub(super) fn key(key: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if key.len() <= MAX_QUOTED && !key.is_empty() && key.chars().all(is_plain) {
        key.to_owned()
    } else {
        quoted(key)
    }
}
