//! Writes docs/conformance.md, and tells how many fields and calls are shown by no test.

use std::process::ExitCode;

use nacre_tests::conformance::{file, page, unshown};

fn main() -> ExitCode {
    if let Err(error) = std::fs::write(file(), page()) {
        eprintln!("{}: {error}", file().display());
        return ExitCode::FAILURE;
    }
    let unshown = unshown();
    for name in &unshown {
        println!("shown by no test: {name}");
    }
    println!("oci_fields_silently_dropped: {}", unshown.len());
    if unshown.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
