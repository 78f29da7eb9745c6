//! Integration tests: they drive the built program by its socket and its command line, on a real PKCS#11 module.
//!
//! `scripts/test` builds what they need and runs them all. `HSM_KMS_TEST_MODULE` names the module: `softhsm2` (default) or `kryoptic`. The module is never loaded into this process.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "what the tests share is public to them")]

mod api_server_stack;
mod docs;
mod emulator;
mod emulator_and_stack;
mod etcd;
mod fault_module;
mod grpc_clients;
mod harness;
mod imports;
mod module_faults;
mod parts;
