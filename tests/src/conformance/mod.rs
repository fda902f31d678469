//! docs/conformance.md: what becomes of each field of the OCI runtime specification and of each call of the Task service,
//! and which test shows it. Joined from the table that shim and agent decide by (`nacre_protocol::spec`), the behaviours
//! compared with runc (`crate::parity`), and the other tests by name ([`elsewhere`]). `nacre-conformance` writes it; a
//! test of this crate fails where it is stale, or where something is said to work that no test shows.

mod calls;
mod elsewhere;
mod page;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::spec::{Fate, Leaf, SPEC, leaves};

pub use page::page;

/// A field, and what shows what becomes of it.
pub struct Row {
    /// Its path.
    pub path: String,
    /// What becomes of it.
    pub leaf: Leaf,
    /// Names of tests.
    pub shown_by: Vec<String>,
}

/// The page's file in a checkout.
pub fn file() -> PathBuf {
    checkout().join("docs/conformance.md")
}

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Paths are written with and without the marks of lists and maps.
fn plain(path: &str) -> String {
    path.replace("[]", "").replace(".*", "")
}

/// Names of tests by what they cover.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for behaviour in crate::parity::behaviours() {
        for covered in behaviour.covers {
            let name = format!("parity: {}", behaviour.name);
            tests.entry(plain(covered)).or_default().push(name);
        }
    }
    for test in elsewhere::TESTS {
        for covered in test.covers {
            let name = format!("`{}` {}", test.file, test.name);
            tests.entry(plain(covered)).or_default().push(name);
        }
    }
    tests
}

/// Every field.
pub fn rows() -> Vec<Row> {
    let mut tests = tests();
    leaves(&SPEC, "")
        .into_iter()
        .map(|(path, leaf)| {
            let mut shown_by = tests.remove(&plain(&path)).unwrap_or_default();
            let of_all = match leaf.fate {
                Fate::Applied(_) => None,
                Fate::Ignored(_) => Some(elsewhere::OF_EACH_IGNORED),
                Fate::Refused(_) | Fate::RefusedWithZero(_) => Some(elsewhere::OF_EACH_REFUSED),
            };
            shown_by.extend(of_all.map(|(file, name)| format!("`{file}` {name}")));
            Row { path, leaf, shown_by }
        })
        .collect()
}

/// What is said to work, or to be answered, and is shown by nothing.
pub fn unshown() -> Vec<String> {
    let fields = rows()
        .into_iter()
        .filter(|row| row.shown_by.is_empty())
        .map(|row| row.path);
    let calls = calls::rows()
        .into_iter()
        .filter(|row| row.shown_by.is_empty())
        .map(|row| row.name.to_owned());
    fields.chain(calls).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_tests_say() {
        let page_now = std::fs::read_to_string(file()).unwrap_or_default();
        assert!(
            page_now == page(),
            "docs/conformance.md is stale: run cargo run -p nacre-tests --bin nacre-conformance"
        );
    }

    #[test]
    fn nothing_is_dropped_silently() {
        assert_eq!(unshown(), Vec::<String>::new());
    }

    #[test]
    fn what_is_covered_exists() {
        let all: Vec<String> = leaves(&SPEC, "")
            .into_iter()
            .map(|(path, _)| plain(&path))
            .collect();
        let calls: Vec<&str> = calls::rows().iter().map(|row| row.name).collect();
        for covered in tests().into_keys() {
            let inside = |path: &String| *path == covered || path.starts_with(&format!("{covered}."));
            assert!(
                all.iter().any(inside) || calls.contains(&covered.as_str()),
                "{covered} is nothing"
            );
        }
    }

    #[test]
    fn the_tests_named_elsewhere_exist() {
        let named = elsewhere::TESTS.iter().map(|test| (test.file, test.name));
        for (file, name) in named.chain([elsewhere::OF_EACH_IGNORED, elsewhere::OF_EACH_REFUSED]) {
            let text = std::fs::read_to_string(checkout().join(file)).unwrap();
            assert!(
                text.contains(&format!("fn {name}(")) || text.contains(&format!("\"{name}\"")),
                "{file} has no {name}"
            );
        }
    }
}
