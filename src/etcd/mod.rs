//! What kube-apiserver keeps in etcd.

/// The message of `proto/encrypted_object.proto`: the stored value of an object that KMS v2 encrypted, after the prefix
/// `k8s:enc:kms:v2:<provider name>:` (Kubernetes apiserver, `encrypt/envelope/kmsv2/v2/api.proto`).
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod proto {
    tonic::include_proto!("etcd.v2");
}
