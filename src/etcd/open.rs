//! Opens a stored object with its opened DEK source: the last step of a read, as kube-apiserver does it.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use super::proto::{EncryptedDekSourceType, EncryptedObject};
use crate::secret::Plaintext;

/// Why an object does not open, though the KEK opened its DEK source.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OpenError {
    /// Neither under this key nor under another prefix.
    #[error("its data was changed, or it was written under another key than this one")]
    Authentication,
    /// The opened DEK source is not one.
    #[error("the opened DEK source has {0} bytes, which no API server makes")]
    Source(usize),
    /// There is less than an empty object needs.
    #[error("its data is cut off: {0} bytes")]
    Short(usize),
}

/// Decrypts what was stored under `key`, all of it as etcd has it (`aes/aes_extended_nonce.go` and `aes/aes.go` of the apiserver).
///
/// The seed form (Kubernetes 1.29 and later) derives a key for each object; the key form (1.27 and 1.28) is one. The full key is
/// the additional authenticated data in both.
pub fn open(key: &[u8], object: &EncryptedObject, source: &Plaintext) -> Result<Plaintext, OpenError> {
    let data = &object.encrypted_data[..];
    let short = OpenError::Short(data.len());
    let has_seed = object.encrypted_dek_source_type() == EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed;
    let (dek, rest) = if has_seed {
        let (info, rest) = data.split_at_checked(INFO_BYTES).ok_or(short)?;
        (derive(source, info)?, rest)
    } else {
        let dek = source.expose().try_into().map_err(|_| OpenError::Source(source.len()))?;
        (Zeroizing::new(dek), data)
    };
    let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES).ok_or(short)?;
    if sealed.len() < TAG_BYTES {
        return Err(short);
    }
    let nonce = Nonce::try_from(nonce).map_err(|_| short)?;
    let cipher = Aes256Gcm::new(&(*dek).into());
    let opened = cipher.decrypt(&nonce, Payload { msg: sealed, aad: key });
    opened.map(Plaintext::new).map_err(|_| OpenError::Authentication)
}

/// HKDF-Expand with SHA-256; the seed is the PRK (RFC 5869 section 2.3), there is no Extract.
fn derive(seed: &Plaintext, info: &[u8]) -> Result<Zeroizing<[u8; 32]>, OpenError> {
    let wrong = |_| OpenError::Source(seed.len());
    let mut dek = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::from_prk(seed.expose())
        .map_err(wrong)?
        .expand(info, &mut *dek)
        .map_err(|_| OpenError::Source(seed.len()))?;
    Ok(dek)
}

const INFO_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// The key under which the object opens, if it is the same object below another well-known prefix: it was copied from a store
/// with that prefix, or something between API server and etcd adds one.
pub fn original_key(key: &[u8], prefix: &[u8], object: &EncryptedObject, source: &Plaintext) -> Option<Vec<u8>> {
    let rest = key.strip_prefix(prefix.strip_suffix(b"/").unwrap_or(prefix))?;
    PREFIXES
        .iter()
        .map(|other| [*other, rest].concat())
        .find(|other| other != key && open(other, object, source).is_ok())
}

/// kubeadm and most others, OpenShift, and a store behind etcd's own namespaces.
const PREFIXES: [&[u8]; 3] = [b"/registry", b"/kubernetes.io", b""];

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use prost::bytes::Bytes;

    use super::*;

    fn object(encrypted_data: &[u8], kind: EncryptedDekSourceType) -> EncryptedObject {
        EncryptedObject {
            encrypted_data: Bytes::copy_from_slice(encrypted_data),
            encrypted_dek_source_type: kind.into(),
            ..EncryptedObject::default()
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    const SEED: EncryptedDekSourceType = EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed;
    const KEY: EncryptedDekSourceType = EncryptedDekSourceType::AesGcmKey;

    /// The apiserver's recorded vector (`aes_test.go`, `TestExtendedNonceGCMLegacyDataCompatibility`).
    fn recorded() -> (EncryptedObject, Plaintext) {
        let data = "2442759e33945fbad709db577a0f037fd8a709fc76979b8942209debcecb9d57efe3d6ff6a1ef6ee9a5003b9833b3043\
                    cec1e47b35175b151107a8d2416b0e296bbf66b5d102fcefdf9a78f293d271";
        let seed = "5d40323a820ff95561675e3b95e81867c5fdd561d35a88a2d08b08aa9d4fcf5c";
        (object(&hex(data), SEED), Plaintext::new(hex(seed)))
    }

    #[test]
    fn the_api_servers_own_vector_opens() {
        let (object, seed) = recorded();
        assert_eq!(open(b"bamboo", &object, &seed).unwrap().expose(), b"pandas are the best");
    }

    #[test]
    fn the_key_form_opens() {
        let cipher = Aes256Gcm::new(&[7; 32].into());
        let nonce = [9; 12];
        let sealed = cipher.encrypt(&nonce.into(), Payload { msg: b"text", aad: b"/registry/a" }).unwrap();
        let object = object(&[&nonce[..], &sealed].concat(), KEY);
        assert_eq!(open(b"/registry/a", &object, &Plaintext::new(vec![7; 32])).unwrap().expose(), b"text");
        let wrong = open(b"/registry/a", &object, &Plaintext::new(vec![7; 33]));
        assert_eq!(wrong.unwrap_err(), OpenError::Source(33));
    }

    #[test]
    fn any_change_is_found() {
        let (object, seed) = recorded();
        assert_eq!(open(b"bambou", &object, &seed).unwrap_err(), OpenError::Authentication);
        for position in 0..object.encrypted_data.len() {
            let mut data = object.encrypted_data.to_vec();
            data[position] ^= 1;
            let changed = EncryptedObject { encrypted_data: data.into(), ..object.clone() };
            assert_eq!(open(b"bamboo", &changed, &seed).unwrap_err(), OpenError::Authentication);
        }
        for length in 0..object.encrypted_data.len() {
            let changed = EncryptedObject { encrypted_data: object.encrypted_data.slice(..length), ..object.clone() };
            assert!(open(b"bamboo", &changed, &seed).is_err());
        }
        assert_eq!(open(b"bamboo", &object, &Plaintext::new(vec![0; 31])).unwrap_err(), OpenError::Source(31));
    }

    #[test]
    fn another_prefix_is_found() {
        let cipher = Aes256Gcm::new(&[7; 32].into());
        let sealed =
            cipher.encrypt(&[9; 12].into(), Payload { msg: b"x", aad: b"/kubernetes.io/secrets/a/b" }).unwrap();
        let object = object(&[&[9; 12][..], &sealed].concat(), KEY);
        let source = Plaintext::new(vec![7; 32]);
        let find = |key: &[u8]| original_key(key, b"/registry/", &object, &source);
        assert_eq!(find(b"/registry/secrets/a/b").unwrap(), b"/kubernetes.io/secrets/a/b");
        assert_eq!(find(b"/registry/secrets/a/c"), None);
        assert_eq!(find(b"/other/secrets/a/b"), None);
    }

    proptest! {
        #[test]
        fn no_object_panics(key: Vec<u8>, data: Vec<u8>, source: Vec<u8>, kind in 0..3) {
            let object = EncryptedObject {
                encrypted_data: data.into(), encrypted_dek_source_type: kind, ..EncryptedObject::default()
            };
            prop_assert!(open(&key, &object, &Plaintext::new(source)).is_err());
        }
    }

    /// The vectors of one of Wycheproof's files.
    fn wycheproof(name: &str) -> Vec<serde_json::Value> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wycheproof");
        let bytes = std::fs::read(folder.join(format!("{name}_test.json"))).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let groups = file["testGroups"].as_array().unwrap().iter();
        groups.flat_map(|group| group["tests"].as_array().unwrap().clone()).collect()
    }

    #[test]
    fn wycheproofs_gcm_vectors_open_or_are_refused() {
        let (mut opened, mut refused) = (0, 0);
        for vector in wycheproof("aes_gcm") {
            let part = |name: &str| hex(vector[name].as_str().unwrap());
            let (key, iv) = (part("key"), part("iv"));
            if key.len() != 32 || iv.len() != NONCE_BYTES {
                continue;
            }
            let object = object(&[iv, part("ct"), part("tag")].concat(), KEY);
            let found = open(&part("aad"), &object, &Plaintext::new(key)).map(|text| text.expose().to_vec());
            if vector["result"] == "valid" {
                assert_eq!(found, Ok(part("msg")), "{}", vector["tcId"]);
                opened += 1;
            } else {
                assert_eq!(found, Err(OpenError::Authentication), "{}", vector["tcId"]);
                refused += 1;
            }
        }
        // The others have keys and IVs of lengths that no API server uses.
        assert_eq!((opened, refused), (39, 27));
    }

    /// Extract is done by the test, since the product has Expand alone; a longer output begins with the 32 bytes of ours.
    #[test]
    fn wycheproofs_hkdf_vectors_expand() {
        let mut expanded = 0;
        for vector in wycheproof("hkdf_sha256").iter().filter(|vector| vector["result"] == "valid") {
            let part = |name: &str| hex(vector[name].as_str().unwrap());
            let (prk, _) = Hkdf::<Sha256>::extract(Some(&part("salt")), &part("ikm"));
            let found = derive(&Plaintext::new(prk.to_vec()), &part("info")).unwrap();
            let expected = part("okm");
            let length = expected.len().min(found.len());
            assert_eq!(found[..length], expected[..length], "{}", vector["tcId"]);
            expanded += 1;
        }
        assert_eq!(expanded, 83);
    }
}
