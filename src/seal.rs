//! How a seed is sealed: the mechanism and where its IV lives. The codes are part of the sealed blob (docs/formats.md).

/// The sealing mechanism. The numbers are frozen: they are stored in etcd.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Seal {
    /// `CKM_AES_GCM` through `C_Encrypt`, 128-bit tag at the end of the ciphertext.
    AesGcm = 1,
}

impl Seal {
    /// The seal with this code, if this release knows it.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::AesGcm),
            _ => None,
        }
    }

    /// The code in the sealed blob.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Where the IV of a sealed blob came from. The numbers are frozen: they are stored in etcd.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum IvLayout {
    /// The caller made the IV and sent it in the mechanism parameter.
    Sent = 1,
}

impl IvLayout {
    /// The layout with this code, if this release knows it.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Sent),
            _ => None,
        }
    }

    /// The code in the sealed blob.
    pub fn code(self) -> u8 {
        self as u8
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
}
