//! Writes docs/conformance.md and prints how many fields and calls no test covers. Fails if there are any.

use std::process::ExitCode;

use nacre_tests::conformance::{page, page_path, uncovered};

fn main() -> ExitCode {
    if let Err(error) = std::fs::write(page_path(), page()) {
        eprintln!("writing {}: {error}", page_path().display());
        return ExitCode::FAILURE;
    }
    let uncovered = uncovered();
    for name in &uncovered {
        println!("not covered by any test: {name}");
    }
    println!("oci_fields_silently_dropped: {}", uncovered.len());
    if uncovered.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
