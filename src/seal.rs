//! How a seed is sealed: the mechanism and where its IV lives. The codes are part of the sealed blob (docs/formats.md).

/// The sealing mechanism. The numbers are frozen: they are stored in etcd.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Seal {
    /// `CKM_AES_GCM` through `C_Encrypt`, 128-bit tag at the end of the ciphertext. The context is the AAD.
    AesGcm = 1,
    /// AES key wrap with padding (RFC 5649) through `C_Encrypt`. The context stands in front of the plaintext.
    AesKwp = 2,
    /// Yubico's AES-CCM wrap. The device makes the nonce; the context stands in front of the plaintext.
    YubicoCcm = 3,
}

impl Seal {
    /// All seals, in the order of their codes.
    pub const ALL: [Self; 3] = [Self::AesGcm, Self::AesKwp, Self::YubicoCcm];

    /// The seal with this code, if this release knows it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|seal| seal.code() == code)
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
    /// The module wrote its own IV over the one in the mechanism parameter.
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

    /// The layout with this code, if this release knows it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.code() == code)
    }

    /// The code in the sealed blob.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// What stands in the mechanism parameter's IV when a seal begins. Not stored: opening does not need it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum IvSend {
    /// Random bytes from the kernel.
    Random = 1,
    /// Zeros: the module writes its own over them.
    Zeros = 2,
    /// A NULL pointer and length 0: the module makes its own.
    Null = 3,
}

impl IvSend {
    /// The value with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Random, Self::Zeros, Self::Null].into_iter().find(|send| *send as u32 == number)
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

    /// Whether seal, layout and length go together.
    pub fn is_consistent(self) -> bool {
        match (self.seal, self.iv_layout) {
            (_, IvLayout::Inside) => self.iv_length == 0,
            (Seal::AesGcm, _) => matches!(self.iv_length, 12 | 16),
            (Seal::AesKwp | Seal::YubicoCcm, _) => false,
        }
    }

    /// The shortest ciphertext of one byte of plaintext, in bytes, with tag and whatever else the seal adds.
    pub fn shortest_ciphertext(self) -> usize {
        match (self.seal, self.iv_layout) {
            (Seal::AesGcm, IvLayout::Inside) => 1 + 12 + 16,
            (Seal::AesGcm, _) => 1 + 16,
            // The context of 32 bytes and one more, padded to 40, and one block of 8.
            (Seal::AesKwp, _) => 48,
            (Seal::YubicoCcm, _) => 32 + 1 + 30,
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
    /// `CK_MECHANISM_TYPE` of the seal: vendors have numbers of their own.
    pub mechanism: u64,
}

impl Sealing {
    /// `CKM_AES_GCM` (0x1087), a random 12-byte IV sent by us.
    pub const AES_GCM_SENT: Self = Self { form: SealForm::AES_GCM_SENT, send: IvSend::Random, mechanism: 0x1087 };
}
