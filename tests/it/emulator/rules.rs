//! What the API server accepts from a plugin and from etcd.

use std::collections::HashMap;

use data_encoding::HEXLOWER;
use prost::bytes::Bytes;

pub const KEY_ID_LIMIT: usize = 1024;
pub const CIPHERTEXT_LIMIT: usize = 1024;
/// Names and values together.
pub const ANNOTATIONS_LIMIT: usize = 32 * 1024;

pub fn check_key_id(key_id: &str) -> Result<(), String> {
    check_length("key_id", key_id.len(), KEY_ID_LIMIT)
}

pub fn check_sealed(ciphertext: &[u8], key_id: &str, annotations: &HashMap<String, Bytes>) -> Result<(), String> {
    check_length("ciphertext", ciphertext.len(), CIPHERTEXT_LIMIT)?;
    check_key_id(key_id)?;
    if let Some(name) = annotations.keys().find(|name| !is_domain_name(name)) {
        return Err(format!("annotation {name:?} is not a fully qualified domain name"));
    }
    let total: usize = annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > ANNOTATIONS_LIMIT {
        return Err(format!("the annotations have {total} bytes"));
    }
    Ok(())
}

fn check_length(what: &str, length: usize, limit: usize) -> Result<(), String> {
    if (1..=limit).contains(&length) { Ok(()) } else { Err(format!("{what} has {length} bytes")) }
}

/// Kubernetes' fully qualified domain name: lower case, two labels or more, one dot may end it.
pub fn is_domain_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

/// A correlation id.
pub fn uid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    HEXLOWER.encode(&bytes)
}
