//! Annotations as a KMS v2 message carries them: what is accepted keeps Kubernetes' rules, and the hash tells any two apart.
#![no_main]

use hsm_kms::envelope::annotations::{self, Annotations};
use hsm_kms::kms::proto::DecryptRequest;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(DecryptRequest { annotations, .. }) = DecryptRequest::decode(bytes) else { return };
    let hash = annotations::hash(&annotations);
    let mut pairs: Vec<_> = annotations.clone().into_iter().collect();
    pairs.reverse();
    assert_eq!(annotations::hash(&pairs.iter().cloned().collect::<Annotations>()), hash, "the order plays a part");
    if let Some((key, value)) = pairs.pop() {
        let mut other: Annotations = pairs.into_iter().collect();
        assert_ne!(annotations::hash(&other), hash, "one is gone");
        other.insert(format!("{key}."), value);
        assert!(annotations::hash(&other) != hash, "one has another name");
    }
    if annotations::check(&annotations).is_ok() {
        let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(bytes <= 32 * 1024);
        assert!(annotations.keys().all(|key| is_domain_name(key)));
    } else {
        let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(bytes > 32 * 1024 || !annotations.keys().all(|key| is_domain_name(key)));
    }
});

/// Kubernetes' `IsFullyQualifiedDomainName`, written a second time.
fn is_domain_name(key: &str) -> bool {
    let key = key.strip_suffix('.').unwrap_or(key);
    let labels: Vec<&[u8]> = key.as_bytes().split(|byte| *byte == b'.').collect();
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &&[u8]| match label {
        [only] => plain(only),
        [first, inner @ .., last] => {
            label.len() < 64 && plain(first) && plain(last) && inner.iter().all(|byte| plain(byte) || *byte == b'-')
        }
        [] => false,
    };
    key.len() < 254 && labels.len() > 1 && labels.iter().all(is_label)
}
