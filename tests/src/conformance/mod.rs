//! Generates docs/conformance.md: how Nacre handles each field of the OCI runtime specification and each call
//! of the Task service, and which tests cover it. The sources are the table of fields that shim and agent use
//! (`nacre_protocol::spec`), the behaviours compared with runc (`crate::parity`), and the other tests by name
//! ([`elsewhere`]). `nacre-conformance` writes the page. A test of this crate fails if the page is stale, or
//! if no test covers a field or call.

mod calls;
mod elsewhere;
mod page;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::spec::{Handling, Leaf, SPEC, leaves};

pub use page::page;

/// A field of the specification and the tests that cover it.
pub struct Row {
    /// The field's path, with `[]` after lists and `.*` after maps.
    pub path: String,
    /// How Nacre handles it.
    pub leaf: Leaf,
    /// Names of the tests that cover it.
    pub covered_by: Vec<String>,
}

/// Path of docs/conformance.md in this checkout.
pub fn page_path() -> PathBuf {
    checkout().join("docs/conformance.md")
}

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// `path` without the marks of lists and maps, which `covers` may leave out.
fn without_marks(path: &str) -> String {
    path.replace("[]", "").replace(".*", "")
}

/// Names of tests by the field or call that they cover.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for behaviour in crate::parity::behaviours() {
        for covered in behaviour.covers {
            let name = format!("parity: {}", behaviour.name);
            tests.entry(without_marks(covered)).or_default().push(name);
        }
    }
    for test in elsewhere::TESTS {
        for covered in test.covers {
            let name = format!("`{}` {}", test.file, test.name);
            tests.entry(without_marks(covered)).or_default().push(name);
        }
    }
    tests
}

/// All fields of the specification, each with the tests that cover it.
pub fn rows() -> Vec<Row> {
    let mut tests = tests();
    leaves(&SPEC, "")
        .into_iter()
        .map(|(path, leaf)| {
            let mut covered_by = tests.remove(&without_marks(&path)).unwrap_or_default();
            let table_test = match leaf.handling {
                Handling::Applied(_) => None,
                Handling::Ignored(_) => Some(elsewhere::EVERY_IGNORED_FIELD),
                Handling::Refused(_) | Handling::RefusedWithZero(_) => Some(elsewhere::EVERY_REFUSED_FIELD),
            };
            covered_by.extend(table_test.map(|(file, name)| format!("`{file}` {name}")));
            Row {
                path,
                leaf,
                covered_by,
            }
        })
        .collect()
}

/// Fields and calls that no test covers.
pub fn uncovered() -> Vec<String> {
    let fields = rows()
        .into_iter()
        .filter(|row| row.covered_by.is_empty())
        .map(|row| row.path);
    let calls = calls::rows()
        .into_iter()
        .filter(|row| row.covered_by.is_empty())
        .map(|row| row.name.to_owned());
    fields.chain(calls).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_up_to_date() {
        let page_now = std::fs::read_to_string(page_path()).unwrap_or_default();
        assert!(
            page_now == page(),
            "docs/conformance.md is stale; run `cargo run -p nacre-tests --bin nacre-conformance`"
        );
    }

    #[test]
    fn a_test_covers_each_field_and_call() {
        assert_eq!(uncovered(), Vec::<String>::new());
    }

    #[test]
    fn each_covered_name_is_a_field_or_call() {
        let all: Vec<String> = leaves(&SPEC, "")
            .into_iter()
            .map(|(path, _)| without_marks(&path))
            .collect();
        let calls: Vec<&str> = calls::rows().iter().map(|row| row.name).collect();
        for covered in tests().into_keys() {
            let inside = |path: &String| *path == covered || path.starts_with(&format!("{covered}."));
            assert!(
                all.iter().any(inside) || calls.contains(&covered.as_str()),
                "{covered} is neither a field nor a call"
            );
        }
    }

    #[test]
    fn tests_named_in_elsewhere_exist() {
        let named = elsewhere::TESTS.iter().map(|test| (test.file, test.name));
        for (file, name) in named.chain([elsewhere::EVERY_IGNORED_FIELD, elsewhere::EVERY_REFUSED_FIELD]) {
            let text = std::fs::read_to_string(checkout().join(file)).unwrap();
            assert!(
                text.contains(&format!("fn {name}(")) || text.contains(&format!("\"{name}\"")),
                "{file} has no {name}"
            );
        }
    }
}
