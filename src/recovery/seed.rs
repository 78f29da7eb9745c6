//! A seed as the API server keeps it, named by a digest, and the form in which it is sealed anew under another KEK.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::envelope::{Annotations, MAX_PLAINTEXT_BYTES, annotations, update_prefixed};
use crate::secret::Plaintext;

/// The name of a sealed seed: SHA-256 over all that Decrypt is given of it, each part with its length before it.
pub fn seed_digest(ciphertext: &[u8], key_id: &str, annotations: &Annotations) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    for part in [ciphertext, key_id.as_bytes(), &annotations::hash(annotations)] {
        update_prefixed(&mut hash, part);
    }
    hash.finalize().into()
}

/// What is sealed under the new KEK in place of the seed: a mark, the digest of the sealed seed that it stands for, and the seed.
/// `None`: the seed is longer than fits, which no API server's is.
pub fn rewrapped(seed: &Plaintext, digest: &[u8; DIGEST_BYTES]) -> Option<Plaintext> {
    let length = MARK.len() + DIGEST_BYTES + seed.len();
    if length > MAX_PLAINTEXT_BYTES || seed.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(length);
    for part in [MARK, digest, seed.expose()] {
        bytes.extend_from_slice(part);
    }
    Some(Plaintext::new(bytes))
}

/// What the new KEK opened stands for another seed than the one that was asked for.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("it was sealed for another seed")]
pub struct OtherSeed;

/// The seed in what the new KEK opened, if it stands for the sealed seed of this digest.
pub fn unwrapped(opened: &Plaintext, digest: &[u8; DIGEST_BYTES]) -> Result<Plaintext, OtherSeed> {
    let rest = opened.expose().strip_prefix(MARK).ok_or(OtherSeed)?;
    let (found, seed) = rest.split_first_chunk::<DIGEST_BYTES>().ok_or(OtherSeed)?;
    let is_asked_for = bool::from(found.ct_eq(digest)) && !seed.is_empty();
    is_asked_for.then(|| Plaintext::new(seed.to_vec())).ok_or(OtherSeed)
}

const DIGEST_BYTES: usize = 32;
const DOMAIN: &[u8] = b"hsm-kms/sealed-seed/v1";
const MARK: &[u8] = b"hsm-kms/rewrap/v1";

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec().into())).collect()
    }

    #[test]
    fn every_part_of_a_sealed_seed_counts() {
        let base = seed_digest(b"blob", "key", &annotations(&[("a.b", "1"), ("c.d", "2")]));
        assert_eq!(base, seed_digest(b"blob", "key", &annotations(&[("c.d", "2"), ("a.b", "1")])));
        for other in [
            seed_digest(b"blo", "bkey", &annotations(&[("a.b", "1"), ("c.d", "2")])),
            seed_digest(b"blob", "kez", &annotations(&[("a.b", "1"), ("c.d", "2")])),
            seed_digest(b"blob", "key", &annotations(&[("a.b", "2"), ("c.d", "1")])),
            seed_digest(b"blob", "key", &annotations(&[("a.b", "1")])),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_seed_comes_back_for_its_own_digest_alone() {
        let seed = Plaintext::new(vec![7; 32]);
        let framed = rewrapped(&seed, &[1; 32]).unwrap();
        assert_eq!(framed.len(), 17 + 32 + 32);
        assert_eq!(unwrapped(&framed, &[1; 32]).unwrap().expose(), seed.expose());
        assert_eq!(unwrapped(&framed, &[2; 32]).unwrap_err(), OtherSeed);
        for length in 0..=49 {
            let cut = Plaintext::new(framed.expose()[..length].to_vec());
            assert_eq!(unwrapped(&cut, &[1; 32]).unwrap_err(), OtherSeed);
        }
        assert_eq!(unwrapped(&seed, &[7; 32]).unwrap_err(), OtherSeed);
        assert!(rewrapped(&Plaintext::new(vec![7; 880]), &[1; 32]).is_none());
        assert!(rewrapped(&Plaintext::new(Vec::new()), &[1; 32]).is_none());
    }
}
