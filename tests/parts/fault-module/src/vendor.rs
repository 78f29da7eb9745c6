//! The vendor that this module plays: the control file's `imitate`.

use cryptoki_sys::*;
use serde::Deserialize;

use crate::control::{AttributeName, Code};

/// Everything that is left out is as with the real module.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Imitate {
    pub iv: Option<IvLayout>,
    /// The return code for an IV of the wrong form.
    pub wrong_iv: Option<Code>,
    /// AES-GCM has this number, and CKM_AES_GCM does not exist.
    pub mechanism: Option<CK_MECHANISM_TYPE>,
    /// The return code for a wrong tag.
    pub bad_tag: Option<Code>,
    /// Most bytes that C_Encrypt takes.
    pub max_bytes: Option<CK_ULONG>,
    /// Most open sessions of one process.
    pub sessions: Option<usize>,
    /// Mechanisms that the real module has and this vendor does not.
    pub hidden: Vec<CK_MECHANISM_TYPE>,
    /// Mechanisms that are listed besides. They still do nothing.
    pub listed: Vec<CK_MECHANISM_TYPE>,
    pub login: Option<Login>,
    pub template: Option<Template>,
}

/// Who may log in, and how a PIN looks.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Login {
    /// Only this user type; the real module gets CKU_USER.
    User(CK_USER_TYPE),
    /// A PIN is this name, a colon and the real PIN.
    Name(NamedPin),
    /// Nobody needs to: the device knows its caller. The text is the real module's PIN.
    Needless(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPin {
    pub name: String,
    /// The return code for a wrong PIN, and for one of another form.
    pub wrong: Option<Code>,
}

/// What a vendor takes in the template of a token key.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Template {
    /// Refused.
    pub refuse: Vec<AttributeName>,
    /// The return code for that.
    pub refused: Option<Code>,
    /// Must be there: what is left out would not be false.
    pub explicit: Vec<AttributeName>,
    /// Nothing but these; the rest of a key that encrypts is the vendor's own doing.
    pub only: Option<Vec<AttributeName>>,
    /// Must be there, and true.
    pub need: Vec<AttributeName>,
    /// No second object with this CKA_ID, and no empty CKA_LABEL.
    pub unique: bool,
}

/// How a vendor's AES-GCM comes by its IV and where it puts it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum IvLayout {
    /// The one that was sent, with its length in `ulIvBits`, too.
    Sent,
    /// None sent; 16 bytes behind the tag (12 if `ulIvBits` is 96).
    LunaFips,
    /// None sent; 12 bytes behind the tag.
    Suffix,
    /// None sent; 12 bytes before the ciphertext.
    Prefix,
    /// As `prefix`, and decryption takes the whole, with no IV sent.
    Inside,
    /// Zeros sent, which C_Encrypt overwrites with the IV.
    Param,
    /// Zeros sent, which C_EncryptInit overwrites with the IV.
    Protectserver,
    /// Any IV sent, which is not used; another of its length behind the tag.
    ProtectserverOld,
}

impl Imitate {
    pub fn wrong_iv(&self) -> CK_RV {
        self.wrong_iv.map_or(CKR_MECHANISM_PARAM_INVALID, |code| code.0)
    }

    /// The real module's number for a mechanism of this vendor's. `None`: the vendor has no such.
    pub fn real_mechanism(&self, mechanism: CK_MECHANISM_TYPE) -> Option<CK_MECHANISM_TYPE> {
        match self.mechanism {
            _ if self.hidden.contains(&mechanism) => None,
            Some(number) if mechanism == number => Some(CKM_AES_GCM),
            Some(_) if mechanism == CKM_AES_GCM => None,
            _ => Some(mechanism),
        }
    }
}
