//! What a stored value says about itself, without any key.

use std::fmt;

use prost::Message;
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::proto::{EncryptedDekSourceType, EncryptedObject};

/// How a value is stored: the transformers of kube-apiserver's `EncryptionConfiguration`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// In plain text.
    Identity,
    /// `kms` with `apiVersion: v2`.
    KmsV2,
    /// `kms` with `apiVersion: v1`.
    KmsV1,
    /// `aescbc`.
    Aescbc,
    /// `aesgcm`.
    Aesgcm,
    /// `secretbox`.
    Secretbox,
    /// Begins with `k8s:enc:` and then something else.
    Unknown,
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Identity => "plain text",
            Self::KmsV2 => "kms v2",
            Self::KmsV1 => "kms v1",
            Self::Aescbc => "aescbc",
            Self::Aesgcm => "aesgcm",
            Self::Secretbox => "secretbox",
            Self::Unknown => "unknown",
        })
    }
}

/// A stored value, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// How it is stored.
    pub form: Form,
    /// Name of the KMS provider, or of the key of the others; at most [`NAME_LIMIT`] bytes of it. Empty for plain text.
    pub name: String,
    /// What KMS v2 stored. `None` for every other form.
    pub object: Option<EncryptedObject>,
}

/// A KMS v2 value that kube-apiserver would not take, either.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("a value of the KMS v2 provider {provider:?} is damaged: {why}")]
pub struct ValueError {
    /// The provider's name.
    pub provider: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

/// Longest name that is kept, in bytes. Kubernetes sets no limit.
pub const NAME_LIMIT: usize = 253;

impl Stored {
    /// Takes a value apart. The prefixes are kube-apiserver's (`encryptionconfig/config.go`).
    pub fn parse(value: &Bytes) -> Result<Self, ValueError> {
        let Some(rest) = value.strip_prefix(b"k8s:enc:") else {
            return Ok(Self { form: Form::Identity, name: String::new(), object: None });
        };
        let known = PREFIXES.iter().find_map(|(prefix, form)| Some((*form, rest.strip_prefix(*prefix)?)));
        let Some((form, named)) = known else {
            return Ok(Self { form: Form::Unknown, name: printable(until_colon(rest).0), object: None });
        };
        let (name, sealed) = until_colon(named);
        let name = printable(name);
        if form != Form::KmsV2 {
            return Ok(Self { form, name, object: None });
        }
        let sealed = sealed.ok_or("its prefix has no end");
        let object = sealed.and_then(|sealed| read(value.slice_ref(sealed)));
        match object {
            Ok(object) => Ok(Self { form, name, object: Some(object) }),
            Err(why) => Err(ValueError { provider: name, why }),
        }
    }
}

const PREFIXES: [(&[u8], Form); 5] = [
    (b"kms:v2:", Form::KmsV2),
    (b"kms:v1:", Form::KmsV1),
    (b"aescbc:v1:", Form::Aescbc),
    (b"aesgcm:v1:", Form::Aesgcm),
    (b"secretbox:v1:", Form::Secretbox),
];

/// Decodes it by the apiserver's rules (`kmsv2/envelope.go`, `validateEncryptedObject`).
fn read(sealed: Bytes) -> Result<EncryptedObject, &'static str> {
    let object = EncryptedObject::decode(sealed).map_err(|_| "it is no EncryptedObject message")?;
    let sized = |length: usize| (1..=1024).contains(&length);
    if object.encrypted_data.is_empty() {
        Err("it holds no data")
    } else if !sized(object.key_id.len()) {
        Err("its key_id has not 1 to 1024 bytes")
    } else if !sized(object.encrypted_dek_source.len()) {
        Err("its encrypted DEK source has not 1 to 1024 bytes")
    } else if EncryptedDekSourceType::try_from(object.encrypted_dek_source_type).is_err() {
        Err("the type of its DEK source is unknown")
    } else {
        Ok(object)
    }
}

fn until_colon(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    match bytes.iter().position(|byte| *byte == b':') {
        Some(end) => (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..)),
        None => (bytes, None),
    }
}

/// Text from the store for people and reports: no control characters, at most [`NAME_LIMIT`] bytes.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..NAME_LIMIT).unwrap_or(bytes));
    // Letters that turn the direction of writing can make a name look like another.
    let hidden = |character: char| {
        character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|character| if hidden(character) { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(value: &[u8]) -> Result<Stored, ValueError> {
        Stored::parse(&Bytes::copy_from_slice(value))
    }

    fn object() -> EncryptedObject {
        EncryptedObject {
            encrypted_data: Bytes::from_static(b"data"),
            key_id: "key-1".to_owned(),
            encrypted_dek_source: Bytes::from_static(b"seed"),
            annotations: [("a.b".to_owned(), Bytes::from_static(b"1"))].into(),
            encrypted_dek_source_type: 1,
        }
    }

    fn with_prefix(object: &EncryptedObject) -> Vec<u8> {
        [b"k8s:enc:kms:v2:hsm:", &object.encode_to_vec()[..]].concat()
    }

    #[test]
    fn each_form_is_known_by_its_prefix() {
        for (value, form, name) in [
            (&b"k8s\0x"[..], Form::Identity, ""),
            (b"{}", Form::Identity, ""),
            (b"", Form::Identity, ""),
            (b"k8s:enc:aescbc:v1:key1:\0\x01", Form::Aescbc, "key1"),
            (b"k8s:enc:aesgcm:v1:key1:\0", Form::Aesgcm, "key1"),
            (b"k8s:enc:secretbox:v1:key2:\0", Form::Secretbox, "key2"),
            (b"k8s:enc:kms:v1:old:\0\x02ab", Form::KmsV1, "old"),
            (b"k8s:enc:rot13:v1:x:y", Form::Unknown, "rot13"),
            (b"k8s:enc:kms:v3:x:y", Form::Unknown, "kms"),
            (b"k8s:enc:", Form::Unknown, ""),
            (b"k8s:enc:aescbc:v1:\x1b[2J:", Form::Aescbc, "\u{fffd}[2J"),
        ] {
            let stored = parse(value).unwrap();
            assert_eq!((stored.form, stored.name.as_str()), (form, name));
            assert_eq!(stored.object, None);
        }
    }

    #[test]
    fn a_kms_v2_value_is_decoded() {
        let stored = parse(&with_prefix(&object())).unwrap();
        assert_eq!((stored.form, stored.name.as_str(), stored.object), (Form::KmsV2, "hsm", Some(object())));
    }

    #[test]
    fn what_the_api_server_refuses_is_damaged() {
        type Change = fn(&mut EncryptedObject);
        let changes: [(&str, Change); 6] = [
            ("it holds no data", |object| object.encrypted_data.clear()),
            ("its key_id has not 1 to 1024 bytes", |object| object.key_id.clear()),
            ("its key_id has not 1 to 1024 bytes", |object| object.key_id = "k".repeat(1025)),
            ("its encrypted DEK source has not 1 to 1024 bytes", |object| object.encrypted_dek_source.clear()),
            ("its encrypted DEK source has not 1 to 1024 bytes", |object| {
                object.encrypted_dek_source = vec![0; 1025].into();
            }),
            ("the type of its DEK source is unknown", |object| object.encrypted_dek_source_type = 2),
        ];
        for (why, change) in changes {
            let mut object = object();
            change(&mut object);
            assert_eq!(parse(&with_prefix(&object)).unwrap_err(), ValueError { provider: "hsm".to_owned(), why });
        }
        assert_eq!(parse(b"k8s:enc:kms:v2:hsm").unwrap_err().why, "its prefix has no end");
        assert_eq!(parse(b"k8s:enc:kms:v2:hsm:\xff").unwrap_err().why, "it is no EncryptedObject message");
    }

    proptest! {
        #[test]
        fn any_value_is_taken_apart_or_refused(prefix in 0_usize..6, rest: Vec<u8>) {
            let prefix = PREFIXES.get(prefix).map_or(&b""[..], |(prefix, _)| prefix);
            if let Ok(stored) = parse(&[b"k8s:enc:", prefix, &rest].concat()) {
                prop_assert!(!stored.name.chars().any(char::is_control));
            }
        }
    }
}
