//! The vendors' modules, as their documents describe them.

use std::fs;

use serde_json::{Value, json};

use crate::harness::TestToken;

/// One profile, and what its vendor's module does.
pub struct Vendor {
    pub profile: &'static str,
    /// The fault module's `imitate`.
    pub imitate: fn(&TestToken) -> Value,
    /// Attributes of the KEK that may deviate, since the real module behind it knows nothing of this vendor.
    pub permit: &'static [&'static str],
    /// Fields of the seal that no document settles.
    pub guessed: &'static [&'static str],
    /// Return codes of the vendor's: function, code, and the class that the profile gives it.
    pub codes: &'static [(&'static str, u64, &'static str)],
}

pub const VENDORS: [Vendor; 15] = [
    Vendor {
        imitate: |_| {
            json!({"iv": "param", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "max_bytes": 16384, "hidden": [KWP],
                "login": {"name": {"name": USER}}, "template": {"unique": true}})
        },
        codes: &[("C_OpenSession", ARGUMENTS_BAD, "busy")],
        ..Vendor::of("aws-cloudhsm")
    },
    Vendor {
        imitate: |_| {
            json!({"iv": "param", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "hidden": [KWP],
                "login": {"name": {"name": USER, "wrong": "CKR_PIN_EXPIRED"}},
                "template": {"need": ["CKA_PRIVATE", "CKA_SENSITIVE"]}})
        },
        guessed: &["seal.iv"],
        codes: &[("C_Initialize", GENERAL_ERROR, "gone"), ("C_Login", PIN_EXPIRED, "pin-or-config")],
        ..Vendor::of("azure-cloudhsm")
    },
    // It has key wrap, too.
    Vendor {
        imitate: |_| json!({"iv": "sent", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID"}),
        guessed: &["seal.iv"],
        ..Vendor::of("entrust-nshield/gcm")
    },
    // The free module that has this mechanism by C_Encrypt is Kryoptic.
    Vendor { imitate: |_| json!({"bad_tag": "CKR_ENCRYPTED_DATA_INVALID"}), ..Vendor::of("entrust-nshield/kwp") },
    Vendor {
        imitate: sent,
        guessed: &["seal.number", "seal.call", "seal.params", "seal.iv", "seal.aad"],
        ..Vendor::of("fortanix-dsm")
    },
    // Only a template with a label and the vendor's algorithm; no C_Login at all; its own mechanism in place of the usual one.
    Vendor {
        imitate: |token| {
            json!({"iv": "param", "mechanism": 0x8001_E101_u64, "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "max_bytes": 65536,
                "hidden": [KWP], "login": {"needless": fs::read_to_string(&token.pin).unwrap()},
                "template": {"only": ["CKA_LABEL", "0x8001E101"]}})
        },
        permit: &["CKA_ALLOWED_MECHANISMS"],
        ..Vendor::of("google-kms")
    },
    Vendor { imitate: sent, ..Vendor::of("opencryptoki-cca") },
    Vendor {
        imitate: sent,
        codes: &[
            ("C_Login", 0x8000_000B, "pin-or-config"),
            ("C_OpenSession", 0x8000_000B, "pin-or-config"),
            ("C_OpenSession", 0x8000_0037, "pin-or-config"),
            ("C_FindObjectsInit", 0x8000_000C, "login"),
            ("C_OpenSession", 0x8000_0018, "busy"),
            ("C_OpenSession", 0x8000_003B, "gone"),
        ],
        ..Vendor::of("securosys-primus")
    },
    Vendor { imitate: luna_fips, ..Vendor::of("thales-luna/fips") },
    Vendor { imitate: sent, ..Vendor::of("thales-luna/nonfips") },
    Vendor {
        imitate: |token| {
            let mut cloud = luna_fips(token);
            cloud["template"] = json!({"need": ["CKA_PRIVATE", "CKA_SENSITIVE"]});
            cloud
        },
        ..Vendor::of("thales-luna-cloud")
    },
    Vendor {
        imitate: |_| json!({"iv": "protectserver-old", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "hidden": [KWP]}),
        ..Vendor::of("thales-protectserver3/ptk-7-0")
    },
    Vendor {
        imitate: |_| json!({"iv": "protectserver", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "hidden": [KWP]}),
        ..Vendor::of("thales-protectserver3/ptk-7-1")
    },
    Vendor {
        imitate: |token| {
            let mut cp5 = sent(token);
            cp5["template"] = json!({"refuse": ["CKA_SIGN", "CKA_VERIFY"]});
            cp5
        },
        ..Vendor::of("utimaco/cp5")
    },
    Vendor { imitate: sent, ..Vendor::of("utimaco/gp") },
];

/// A caller's IV, with its bits.
fn sent(_: &TestToken) -> Value {
    json!({"iv": "sent", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "hidden": [KWP]})
}

fn luna_fips(_: &TestToken) -> Value {
    json!({"iv": "luna-fips", "bad_tag": "CKR_ENCRYPTED_DATA_INVALID", "hidden": [KWP]})
}

/// `CKM_AES_KEY_WRAP_KWP`.
const KWP: u64 = 0x210B;
const GENERAL_ERROR: u64 = 0x05;
const ARGUMENTS_BAD: u64 = 0x07;
const PIN_EXPIRED: u64 = 0xA3;
/// Where a PIN has a user's name in it.
pub const USER: &str = "kms";

impl Vendor {
    const fn of(profile: &'static str) -> Self {
        Self { profile, imitate: |_| json!({}), permit: &[], guessed: &[], codes: &[] }
    }

    /// Whether nothing of the vendor's settles this field.
    pub fn guesses(&self, field: &str) -> bool {
        self.guessed
            .iter()
            .any(|guessed| field.strip_prefix(guessed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }
}
