//! Generates the ttrpc bindings of `proto/shim.proto`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=proto/shim.proto");
    Codegen::new()
        .out_dir(&out)
        .input("proto/shim.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(
            ProtobufCustomize::default().gen_mod_rs(false).generate_accessors(false),
        )
        .customize(Customize { async_all: true, gen_mod: false, ..Customize::default() })
        .run()?;
    // A mod.rs of our own: the generated one starts with inner attributes,
    // which `include!` cannot take.
    fs::write(
        out.join("mod.rs"),
        "/// Messages of `shim.proto`.\npub mod shim;\n/// Client and service of `shim.proto`.\npub mod shim_ttrpc;\n",
    )?;
    Ok(())
}
