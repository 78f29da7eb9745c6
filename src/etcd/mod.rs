//! What kube-apiserver keeps in etcd: read from a live etcd or from a snapshot file, counted, and opened with a seed.
//!
//! Everything here is read-only, and takes what it reads for hostile.

pub mod client;
pub mod inventory;
pub mod need;
pub mod open;
pub mod resource;
pub mod seeds;
pub mod snapshot;
pub mod value;

use prost::bytes::Bytes;

/// The message of `proto/encrypted_object.proto`: the stored value of an object that KMS v2 encrypted, after the prefix
/// `k8s:enc:kms:v2:<provider name>:` (Kubernetes apiserver, `encrypt/envelope/kmsv2/v2/api.proto`).
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod proto {
    tonic::include_proto!("etcd.v2");
}

/// The messages and client of `proto/etcd_kv.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod kv {
    tonic::include_proto!("etcdserverpb");
}

/// A key and its newest value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The whole key, such as `/registry/secrets/default/a`.
    pub key: Bytes,
    /// The stored value.
    pub value: Bytes,
    /// The store's revision that wrote it.
    pub mod_revision: u64,
}
