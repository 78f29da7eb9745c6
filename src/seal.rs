//! How a seed is sealed: the mechanism and where its IV lives. The codes are part of the sealed blob (docs/formats.md).

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};

use crate::attributes::KeyUse;

/// The sealing mechanism. The numbers are frozen: they are stored in etcd. Serialised by the word that profiles use.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Seal {
    /// AES-256-GCM with a 128-bit tag. The context is the AAD.
    AesGcm = 1,
    /// AES key wrap with padding (RFC 5649). It has no AAD: the context stands in front of the plaintext.
    AesKwp = 2,
    /// Yubico's AES-CCM wrap. The device makes the nonce; the context stands in front of the plaintext.
    YubicoCcm = 3,
    /// AES-CBC, then HMAC-SHA-256 with a second key over context, IV and ciphertext.
    AesCbcHmac = 4,
}

impl Seal {
    /// All seals, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::AesGcm, Self::AesKwp, Self::YubicoCcm, Self::AesCbcHmac];

    /// The seal with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|seal| seal.code() == code)
    }

    /// The code in the sealed blob.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The word that profiles use.
    pub fn word(self) -> &'static str {
        match self {
            Self::AesGcm => "aes-gcm",
            Self::AesKwp => "aes-kwp",
            Self::YubicoCcm => "yubico-ccm",
            Self::AesCbcHmac => "aes-cbc-hmac",
        }
    }
}

/// Where the IV of a sealed blob came from. The numbers are frozen: they are stored in etcd.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum IvLayout {
    /// The caller made the IV and sent it in the mechanism parameter.
    Sent = 1,
    /// The module wrote its own IV into the mechanism parameter.
    Param = 2,
    /// The module put its IV behind the ciphertext and tag.
    Suffix = 3,
    /// The module put its IV in front of the ciphertext.
    Prefix = 4,
    /// There is no IV, or it lies in the ciphertext where only the module finds it.
    Inside = 5,
}

impl IvLayout {
    /// All layouts, in the order of their codes.
    pub const ALL: [Self; 5] = [Self::Sent, Self::Param, Self::Suffix, Self::Prefix, Self::Inside];

    /// The layout with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.code() == code)
    }

    /// The code in the sealed blob.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// What stands in the mechanism parameter's IV when a seal begins. Not stored: opening does not need it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IvSend {
    /// Random bytes from the kernel.
    Random,
    /// Zeros: the module writes its own IV over them.
    Zeros,
    /// A NULL pointer and length 0: the module makes its own IV, or the mechanism has none.
    #[serde(rename = "none")]
    Null,
}

impl IvSend {
    /// The value with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Random, Self::Zeros, Self::Null].into_iter().find(|send| *send as u32 == number)
    }
}

/// The PKCS#11 functions that seal and open.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SealCall {
    /// `C_Encrypt` and `C_Decrypt`.
    Encrypt,
    /// `C_EncryptMessage` and `C_DecryptMessage` (PKCS#11 3.0), if the mechanism's flags say so, too. The module makes the IV.
    Message,
    /// `C_WrapKey` and `C_UnwrapKey`.
    Wrap,
}

impl SealCall {
    /// The value with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Encrypt, Self::Message, Self::Wrap].into_iter().find(|call| *call as u32 == number)
    }
}

/// A seal with its IV layout and IV length: what a profile chooses and a blob records.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SealForm {
    /// The mechanism.
    pub seal: Seal,
    /// Where the IV comes from.
    pub iv_layout: IvLayout,
    /// IV length in bytes.
    pub iv_length: u8,
}

impl SealForm {
    /// AES-GCM with a random 12-byte IV made by the worker: the form every GCM token takes (NIST SP 800-38D 8.2.2).
    pub const AES_GCM_SENT: Self = Self { seal: Seal::AesGcm, iv_layout: IvLayout::Sent, iv_length: 12 };

    /// Whether seal, layout and length go together, and this release opens such blobs.
    pub fn is_consistent(self) -> bool {
        match (self.seal, self.iv_layout) {
            (Seal::AesGcm | Seal::AesKwp | Seal::YubicoCcm, IvLayout::Inside) => self.iv_length == 0,
            (Seal::AesGcm, IvLayout::Sent | IvLayout::Param | IvLayout::Suffix | IvLayout::Prefix) => {
                matches!(self.iv_length, 12 | 16)
            }
            (Seal::AesCbcHmac, IvLayout::Sent) => self.iv_length == 16,
            _ => false,
        }
    }

    /// The shortest ciphertext of one byte of plaintext, in bytes, with tag and whatever else the seal adds.
    pub fn shortest_ciphertext(self) -> usize {
        match self.seal {
            // The shortest IV that a module may have put into it.
            Seal::AesGcm if self.iv_layout == IvLayout::Inside => 1 + 16 + 12,
            Seal::AesGcm => 1 + 16,
            // Key wrap: 32 bytes of context and one more, padded to 40, and 8. CBC: one block of 16, and a MAC of 32.
            Seal::AesKwp | Seal::AesCbcHmac => 48,
            Seal::YubicoCcm => 32 + 1 + 30,
        }
    }
}

/// How new seeds are sealed on a token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Sealing {
    /// What the blob records.
    pub form: SealForm,
    /// What stands in the IV when a seal begins.
    pub send: IvSend,
    /// `CK_MECHANISM_TYPE`: vendors have numbers of their own.
    pub mechanism: u64,
    /// The functions that do it.
    pub call: SealCall,
}

impl Sealing {
    /// `CKM_AES_GCM` (0x1087) by `C_Encrypt`, with a random 12-byte IV sent by us.
    pub const AES_GCM_SENT: Self = Self {
        form: SealForm::AES_GCM_SENT,
        send: IvSend::Random,
        mechanism: sys::CKM_AES_GCM,
        call: SealCall::Encrypt,
    };

    /// Whether this release can seal and open so. The one place that decides it: a start with anything else is refused.
    pub fn is_supported(&self) -> bool {
        let by_call = match self.call {
            SealCall::Encrypt => true,
            // The module makes the IV: one that the caller chose would not need these functions.
            SealCall::Message => self.form.seal == Seal::AesGcm && self.form.iv_layout == IvLayout::Param,
            SealCall::Wrap => self.form.seal == Seal::AesKwp,
        };
        by_call && self.form.is_consistent()
    }

    /// What the KEK is used for.
    pub fn kek_use(&self) -> KeyUse {
        match self.call {
            SealCall::Encrypt | SealCall::Message => KeyUse::Encrypt,
            SealCall::Wrap => KeyUse::Wrap,
        }
    }

    /// The mechanisms that it takes, with the `CKF_...` flags of their use.
    pub fn mechanisms(&self) -> Vec<(u64, u64)> {
        let flags = match self.call {
            SealCall::Encrypt => sys::CKF_ENCRYPT | sys::CKF_DECRYPT,
            SealCall::Message => sys::CKF_MESSAGE_ENCRYPT | sys::CKF_MESSAGE_DECRYPT,
            SealCall::Wrap => sys::CKF_WRAP | sys::CKF_UNWRAP,
        };
        let mac = self.mac_mechanism().map(|mechanism| (mechanism, sys::CKF_SIGN));
        [(self.mechanism, flags)].into_iter().chain(mac).collect()
    }

    /// The mechanism of the MAC key that stands beside the KEK, if the seal needs one.
    pub fn mac_mechanism(&self) -> Option<u64> {
        (self.form.seal == Seal::AesCbcHmac).then_some(sys::CKM_SHA256_HMAC)
    }
}
