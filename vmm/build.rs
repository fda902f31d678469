//! Generates the id of this build that snapshots have: a hash of what decides how a machine's state is read
//! and written. No type of the protocol is part of that state.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

/// The versions of all dependencies, which have a part of the state.
const LOCK: &str = "../Cargo.lock";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed={LOCK}");
    let mut files = vec![PathBuf::from(LOCK)];
    let mut directories = vec![PathBuf::from("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(&file)?.hash(&mut hasher);
        file.hash(&mut hasher);
    }
    println!("cargo::rustc-env=NACRE_VMM_SOURCES={:016x}", hasher.finish());
    Ok(())
}
