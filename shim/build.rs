//! Generates containerd's messages and services that the crate containerd-shim-protos does not have, or not in
//! their newest form, from `proto/`.

use std::path::PathBuf;

/// Each becomes a module of its name; a service also one with the suffix `_ttrpc`.
const FILES: [&str; 5] = ["types", "bootstrap", "sandbox", "cri", "streaming"];
const SERVICES: [&str; 2] = ["sandbox", "streaming"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let customize = ttrpc_codegen::Customize {
        async_all: true,
        gen_mod: false,
        ..Default::default()
    };
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(FILES.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .customize(customize)
        .run()?;
    // Generated files begin with inner attributes, which `include!` does not accept, so they become modules
    // with paths.
    let services = SERVICES.map(|name| format!("{name}_ttrpc"));
    let modules: String = FILES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(services)
        .map(|name| {
            format!(
                "#[path = {:?}]\npub mod {name};\n",
                out.join(format!("{name}.rs"))
            )
        })
        .collect();
    std::fs::write(out.join("modules.rs"), modules)?;
    Ok(())
}
