//! Generates the agent's ttrpc service from `proto/agent.proto` and the build id that both sides compare.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sources = [
        "proto/agent.proto",
        "src/console.rs",
        "src/control.rs",
        "src/guest.rs",
        "src/vsock.rs",
    ];
    let mut hasher = DefaultHasher::new();
    for source in sources {
        println!("cargo::rerun-if-changed={source}");
        std::fs::read(source)?.hash(&mut hasher);
    }
    let version = std::env::var("CARGO_PKG_VERSION")?;
    println!(
        "cargo::rustc-env=NACRE_BUILD_ID={version}+{:016x}",
        hasher.finish()
    );

    if std::env::var_os("CARGO_FEATURE_AGENT").is_some() {
        generate_service(&PathBuf::from(std::env::var("OUT_DIR")?))?;
    }
    Ok(())
}

fn generate_service(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let customize = ttrpc_codegen::Customize {
        async_all: true,
        gen_mod: false,
        ..Default::default()
    };
    ttrpc_codegen::Codegen::new()
        .out_dir(out)
        .input("proto/agent.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .customize(customize)
        .run()?;
    // Generated files open with inner attributes, which `include!` does not take: they are modules with paths.
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
