//! The sealed blob and what it is bound to: bytes in, bytes out, no I/O. docs/formats.md is the frozen description.

pub mod annotations;
pub mod blob;
#[cfg(test)]
mod vectors;

use std::fmt;

use sha2::{Digest, Sha256};

pub use self::annotations::{AnnotationError, Annotations};
pub use self::blob::{Blob, BlobError, MAX_BLOB_BYTES, MAX_PLAINTEXT_BYTES, OwnedBlob};
use crate::key_id::KeyId;
use crate::seal::SealForm;

/// What a seal is bound to, 32 bytes, passed as additional authenticated data (AAD).
///
/// A blob opens only under the very context it was sealed under. A context is public.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Context([u8; 32]);

impl Context {
    /// The context of a DEK seed: the blob's header, the cluster, the KEK's `key_id` and every annotation.
    pub fn seed(form: SealForm, cluster: &str, key_id: &KeyId, annotations: &Annotations) -> Self {
        let annotations = annotations::hash(annotations);
        Self::digest(SEED_DOMAIN, form, &[cluster.as_bytes(), key_id.as_str().as_bytes(), &annotations])
    }

    /// The context of a proof blob: the blob's header, the ceremony that made the KEK, the KEK's `CKA_ID`, and the fingerprint of each
    /// recovery recipient: a record in which one was exchanged is not proved by its KEK.
    pub fn proof<'a>(
        form: SealForm,
        ceremony_id: &'a str,
        cka_id: &'a [u8],
        recipients: impl IntoIterator<Item = &'a [u8; 32]>,
    ) -> Self {
        let mut parts = vec![ceremony_id.as_bytes(), cka_id];
        parts.extend(recipients.into_iter().map(<[u8; 32]>::as_slice));
        Self::digest(PROOF_DOMAIN, form, &parts)
    }

    /// The bytes to pass as AAD.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn digest(domain: &[u8], form: SealForm, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        hash.update(domain);
        hash.update(blob::header(form));
        for part in parts {
            update_prefixed(&mut hash, part);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Context({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Hashes a length (64 bits, big-endian) and then the bytes, so that no two lists of parts hash the same input.
pub(crate) fn update_prefixed(hash: &mut Sha256, part: &[u8]) {
    hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(part);
}

// Neither domain is a prefix of the other, so a seed never shares a context with a proof.
const SEED_DOMAIN: &[u8] = b"hsm-kms/seed/v1";
const PROOF_DOMAIN: &[u8] = b"hsm-kms/proof/v1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key_id(epoch: u64) -> KeyId {
        KeyId::derive("prod-eu-1", &[7; 16], "00112233445566778899aabbccddeeff", epoch)
    }

    fn seed(cluster: &str, epoch: u64, annotations: &[(&str, &str)]) -> Context {
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec().into())).collect();
        Context::seed(SealForm::AES_GCM_SENT, cluster, &key_id(epoch), &annotations)
    }

    #[test]
    fn every_part_of_a_seed_context_counts() {
        let base = seed("prod", 1, &[("a.b", "1"), ("c.d", "2")]);
        assert_eq!(base, seed("prod", 1, &[("c.d", "2"), ("a.b", "1")]));
        for other in [
            seed("prod2", 1, &[("a.b", "1"), ("c.d", "2")]),
            seed("prod", 2, &[("a.b", "1"), ("c.d", "2")]),
            seed("prod", 1, &[]),
            seed("prod", 1, &[("a.b", "1")]),
            seed("prod", 1, &[("a.b", "2"), ("c.d", "1")]),
            seed("prod", 1, &[("a.b1", ""), ("c.d", "2")]),
            seed("prod", 1, &[("a.b", "1"), ("c.d", "2"), ("e.f", "")]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn every_part_of_a_proof_context_counts() {
        let form = SealForm::AES_GCM_SENT;
        let proof =
            |ceremony, cka_id: &[u8], recipients: &[[u8; 32]]| Context::proof(form, ceremony, cka_id, recipients);
        let base = proof("ceremony", &[1, 2], &[[3; 32]]);
        for other in [
            proof("ceremony2", &[1, 2], &[[3; 32]]),
            proof("ceremony", &[1, 3], &[[3; 32]]),
            proof("ceremony\u{1}", &[2], &[[3; 32]]),
            proof("ceremony", &[1, 2], &[]),
            proof("ceremony", &[1, 2], &[[4; 32]]),
            proof("ceremony", &[1, 2], &[[3; 32], [4; 32]]),
            seed("ceremony", 1, &[]),
        ] {
            assert_ne!(base, other);
        }
    }

    proptest! {
        #[test]
        fn a_changed_header_never_keeps_its_meaning(bit in 0_usize..64, tail in prop::collection::vec(any::<u8>(), 29..200)) {
            let sealed = Blob::new(SealForm::AES_GCM_SENT, &tail[..12], &tail[12..]).unwrap().encode();
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(blob) = Blob::parse(&flipped) {
                let annotations = Annotations::new();
                prop_assert_ne!(
                    Context::seed(blob.form(), "prod", &key_id(1), &annotations),
                    Context::seed(SealForm::AES_GCM_SENT, "prod", &key_id(1), &annotations)
                );
            }
        }
    }
}
