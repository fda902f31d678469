//! Generates the agent's ttrpc service from `proto/agent.proto`, and the build id that both sides compare.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

const SERVICE: &str = "proto/agent.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let version = std::env::var("CARGO_PKG_VERSION")?;
    println!(
        "cargo::rustc-env=NACRE_BUILD_ID={version}+{:016x}",
        hash_sources()?
    );
    if std::env::var_os("CARGO_FEATURE_AGENT").is_some() {
        generate_service(&PathBuf::from(std::env::var("OUT_DIR")?))?;
    }
    Ok(())
}

/// A hash of this crate's sources without its tests: the messages, the table of spec fields, and all else
/// that shim, VMM and agent must have in common. A list of files would miss the next one.
fn hash_sources() -> std::io::Result<u64> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed={SERVICE}");
    let mut files = vec![PathBuf::from(SERVICE)];
    let mut directories = vec![PathBuf::from("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if !path.is_dir() {
                files.push(path);
            } else if !path.ends_with("tests") {
                directories.push(path);
            }
        }
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(&file)?.hash(&mut hasher);
        file.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Generates the messages and the ttrpc service for `src/agent.rs`.
fn generate_service(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let customize = ttrpc_codegen::Customize {
        async_all: true,
        gen_mod: false,
        ..Default::default()
    };
    ttrpc_codegen::Codegen::new()
        .out_dir(out)
        .input(SERVICE)
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .customize(customize)
        .run()?;
    // Generated files begin with inner attributes, which `include!` does not accept, so they become modules
    // with paths.
    let modules: String = ["agent", "agent_ttrpc"]
        .map(|name| {
            format!(
                "#[path = {:?}]\npub mod {name};\n",
                out.join(format!("{name}.rs"))
            )
        })
        .concat();
    std::fs::write(out.join("modules.rs"), modules)?;
    Ok(())
}
