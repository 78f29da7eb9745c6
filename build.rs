//! Compiles the messages in `proto/` without protoc on the machine.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    compile(&["kms_v2.proto", "encrypted_object.proto", "link.proto"], true)?;
    // Of etcd only a client is wanted.
    compile(&["etcd_kv.proto"], false)
}

fn compile(names: &[&str], server: bool) -> Result<(), Box<dyn Error>> {
    let files: Vec<PathBuf> = names.iter().map(|name| PathBuf::from("proto").join(name)).collect();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(server)
        .build_transport(false)
        .bytes(".v2")
        .bytes(".etcd")
        .bytes(".etcdserverpb")
        .compile_fds(descriptors)?;
    Ok(())
}
