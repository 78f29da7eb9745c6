//! Compiles the messages in `proto/` without protoc on the machine.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["kms_v2.proto", "encrypted_object.proto", "etcd_kv.proto", "link.proto"]
        .map(|name| PathBuf::from("proto").join(name));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_transport(false)
        .bytes(".v2")
        .extern_path(".v2.DecryptResponse", "super::decrypt_response::DecryptResponse")
        .bytes(".etcd")
        .bytes(".etcdserverpb")
        .compile_fds(descriptors)?;
    Ok(())
}
