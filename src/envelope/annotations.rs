//! Annotations: public bytes that the API server stores beside a sealed blob. All of them are bound to it.

use std::collections::HashMap;

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The annotations of one sealed seed, as the KMS v2 messages carry them.
pub type Annotations = HashMap<String, Bytes>;

/// Most bytes that all keys and values of one object may have together (Kubernetes `kmsv2/envelope.go`).
pub const MAX_ANNOTATION_BYTES: usize = 32 * 1024;

/// Annotations that the API server would never have stored.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AnnotationError {
    /// A key is not a fully qualified domain name.
    #[error("annotation key {} is not a fully qualified domain name", shown(key))]
    Key {
        /// The first such key in byte order.
        key: String,
    },
    /// Keys and values together are too long.
    #[error("annotations have {bytes} bytes, at most {MAX_ANNOTATION_BYTES} are allowed")]
    TooLong {
        /// Bytes of all keys and values.
        bytes: usize,
    },
}

impl AnnotationError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Key { .. } => {
                "use lower-case names with at least two labels, such as name.example.com; '/', '_' and upper case are refused"
            }
            Self::TooLong { .. } => "send the annotations exactly as Encrypt returned them",
        }
    }
}

/// Checks annotations by the rules of the API server: domain names as keys, 32 KiB together.
pub fn check(annotations: &Annotations) -> Result<(), AnnotationError> {
    let bytes = annotations.iter().map(|(key, value)| key.len().saturating_add(value.len())).sum();
    if bytes > MAX_ANNOTATION_BYTES {
        return Err(AnnotationError::TooLong { bytes });
    }
    match annotations.keys().filter(|key| !is_domain_name(key)).min() {
        Some(key) => Err(AnnotationError::Key { key: key.clone() }),
        None => Ok(()),
    }
}

/// SHA-256 over the number of annotations and then each key and value in byte order of the keys, all length-prefixed.
pub fn hash(annotations: &Annotations) -> [u8; 32] {
    let mut sorted: Vec<_> = annotations.iter().collect();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(u64::try_from(sorted.len()).unwrap_or(u64::MAX).to_be_bytes());
    for (key, value) in sorted {
        super::update_prefixed(&mut hash, key.as_bytes());
        super::update_prefixed(&mut hash, value);
    }
    hash.finalize().into()
}

/// Kubernetes' `IsFullyQualifiedDomainName`: one trailing dot is tolerated, and not counted.
fn is_domain_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

/// An RFC 1123 label: 1 to 63 of lower-case letters, digits and inner hyphens.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// A key from outside, made safe and short enough to print.
fn shown(key: &str) -> String {
    let short: String = key.chars().take(64).collect();
    let dots = if short.len() < key.len() { "..." } else { "" };
    format!("{short:?}{dots}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn annotations(pairs: &[(&str, usize)]) -> Annotations {
        pairs.iter().map(|(key, length)| ((*key).to_owned(), vec![0; *length].into())).collect()
    }

    #[test]
    fn domain_names_are_accepted() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert_eq!(longest.len(), 253);
        for key in [
            "a.b",
            "local-kek.kms.kubernetes.io",
            "version.encryption.remote.io",
            "0.1",
            "a--b.c",
            "trailing.dot.",
            &longest,
            &format!("{longest}."),
        ] {
            assert_eq!(check(&annotations(&[(key, 0)])), Ok(()), "{key}");
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let label = "a".repeat(63);
        for key in [
            "",
            ".",
            "..",
            "single",
            "single.",
            ".a.b",
            "a..b",
            "a.b..",
            "A.b",
            "a.B",
            "a_b.c",
            "kms.example.io/remote-kms-auditid",
            "*.a.b",
            "a@b.c",
            "-a.b",
            "a-.b",
            "a.b-",
            "a. b",
            "é.b",
            "a.b\n",
            &format!("{label}a.b"),
            &format!("{label}.{label}.{label}.{}", "b".repeat(62)),
        ] {
            assert_eq!(check(&annotations(&[(key, 0)])), Err(AnnotationError::Key { key: key.to_owned() }), "{key}");
        }
    }

    #[test]
    fn size_counts_keys_and_values() {
        assert_eq!(check(&annotations(&[])), Ok(()));
        assert_eq!(check(&annotations(&[("a.b", MAX_ANNOTATION_BYTES - 3)])), Ok(()));
        assert_eq!(
            check(&annotations(&[("a.b", 1000), ("c.d", MAX_ANNOTATION_BYTES - 1005)])),
            Err(AnnotationError::TooLong { bytes: MAX_ANNOTATION_BYTES + 1 })
        );
    }

    #[test]
    fn errors_show_little_of_a_hostile_key() {
        let error = check(&annotations(&[(&format!("\u{1b}[31m{}", "x".repeat(1000)), 0)])).unwrap_err();
        assert!(error.to_string().len() < 160, "{error}");
        assert!(!error.to_string().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn no_two_sets_of_annotations_have_one_hash(
            one in prop::collection::hash_map("[a-b]{1,3}", prop::collection::vec(0_u8..3, 0..3), 0..3),
            other in prop::collection::hash_map("[a-b]{1,3}", prop::collection::vec(0_u8..3, 0..3), 0..3),
        ) {
            let owned = |map: HashMap<String, Vec<u8>>| -> Annotations {
                map.into_iter().map(|(key, value)| (key, value.into())).collect()
            };
            let (one, other) = (owned(one), owned(other));
            prop_assert_eq!(hash(&one) == hash(&other), one == other);
        }

        #[test]
        fn a_name_that_is_accepted_keeps_the_rules(name in "[a-z0-9.A_-]{0,12}") {
            if check(&[(name.clone(), Bytes::new())].into()).is_ok() {
                prop_assert!(name.contains('.') && !name.contains("..") && !name.contains(['A', '_']));
                prop_assert!(!name.split('.').any(|label| label.starts_with('-') || label.ends_with('-')));
            }
        }
    }
}
