//! The KMS v2 service on its Unix socket.

pub mod client;
pub mod connection;
mod decrypt_response;
pub mod peers;
mod seals;
pub mod service;
pub mod socket;
pub mod status;

/// The messages, server and client of `proto/kms_v2.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod proto {
    pub use super::decrypt_response::DecryptResponse;
    tonic::include_proto!("v2");
}
