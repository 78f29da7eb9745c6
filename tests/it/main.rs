//! Integration tests: they drive the built program by its socket and its command line, on a real PKCS#11 module.
//!
//! `scripts/test` builds what they need and runs them all. `HSM_KMS_TEST_MODULE` names the module: `softhsm2` (default) or
//! `kryoptic`. The module is never loaded into this process, but only into a child that `another_program` makes.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "what the tests share is public to them")]

mod another_program;
mod api_server_stack;
mod attacks;
mod audit;
mod bad_config;
mod bad_kek;
mod bad_module;
mod bad_pin;
mod bad_plan;
mod bad_request;
mod bad_socket;
mod bad_token;
mod ceremony;
mod conformance;
mod docs;
mod doctor;
mod door;
mod drills;
mod emulator;
mod emulator_and_stack;
mod etcd;
mod evidence;
mod failover;
mod fault_module;
mod faults;
mod grpc_clients;
mod handover;
mod harness;
mod health;
mod hostile_peers;
mod imitations;
mod imports;
mod init;
mod inventory;
mod ivs;
mod kubernetes_api_server;
mod lost_kek;
mod memory;
mod metrics;
mod module_faults;
mod monitoring;
mod network;
mod packages;
mod paper;
mod parts;
mod probe;
mod processes;
mod profiles;
mod recovery_keys;
mod refusal;
mod resilience;
mod rotation;
mod sandbox;
mod seals;
mod setup;
mod supply_chain;
mod traps;
mod vectors;
mod worker_loss;
mod yubihsm;
