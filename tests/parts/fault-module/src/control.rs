//! The control file, named by `HSM_KMS_FAULT_CONTROL`: what this module changes. Read again whenever it changed.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cryptoki_sys::*;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::codes;
use crate::vendor::Imitate;

/// The content of the file. An absent file changes nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    pub rules: Vec<Rule>,
    pub imitate: Imitate,
    pub interface: Interface,
}

/// One change, for some calls of one function or of all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(deserialize_with = "function")]
    pub function: String,
    /// So many calls of the function pass before the first that is changed.
    #[serde(default)]
    pub after: u64,
    /// So many are changed then; without it all.
    pub times: Option<u64>,
    pub action: Action,
}

/// What happens to a call.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    // Instead of the call.
    Return(Code),
    Crash,
    Abort,
    Exit(i32),
    // Before the call.
    DelayMs(u64),
    Hang,
    HangForEver,
    DropSessions,
    LogOut,
    Noise(String),
    // To what the call gave.
    Attributes(BTreeMap<AttributeName, AttributeLie>),
    FindNothing,
    FlipBit(u64),
    Length(i64),
    ModuleInfo(ModuleInfo),
    NoSlots,
    Overrun(usize),
    SizeQuery(i64),
    TokenInfo(TokenInfo),
    Truncate(u64),
}

/// Fields of `CK_INFO` to replace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleInfo {
    pub manufacturer: Option<String>,
    pub description: Option<String>,
}

/// Fields of `CK_TOKEN_INFO` to replace, and flags to set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenInfo {
    pub label: Option<String>,
    pub manufacturer: Option<String>,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub flags: Vec<PinFlag>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub enum PinFlag {
    #[serde(rename = "CKF_USER_PIN_COUNT_LOW")]
    Low,
    #[serde(rename = "CKF_USER_PIN_FINAL_TRY")]
    FinalTry,
    #[serde(rename = "CKF_USER_PIN_LOCKED")]
    Locked,
    #[serde(rename = "CKF_USER_PIN_TO_BE_CHANGED")]
    ToBeChanged,
}

impl PinFlag {
    pub fn bit(self) -> CK_FLAGS {
        match self {
            Self::Low => CKF_USER_PIN_COUNT_LOW,
            Self::FinalTry => CKF_USER_PIN_FINAL_TRY,
            Self::Locked => CKF_USER_PIN_LOCKED,
            Self::ToBeChanged => CKF_USER_PIN_TO_BE_CHANGED,
        }
    }
}

/// A return code, by number or by its `CKR_` name.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub CK_RV);

/// An attribute by its `CKA_` name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct AttributeName(pub CK_ATTRIBUTE_TYPE);

/// What an attribute is said to hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum AttributeLie {
    Flag(bool),
    Number(CK_ULONG),
    List(Vec<CK_ULONG>),
    Unavailable(Unavailable),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unavailable {
    Unavailable,
}

/// What C_GetInterface hands out.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    /// The 2.40 list of this module.
    #[default]
    Own,
    /// CKR_FUNCTION_NOT_SUPPORTED.
    Absent,
    /// The real module's, which passes this one by.
    Real,
    /// That of the module that `HSM_KMS_FAULT_OTHER` names: another library's, found by its name.
    Other,
}

/// The control file as it was read, and which file that was.
#[derive(Debug, Default)]
pub struct Loaded {
    pub control: Control,
    pub identity: Identity,
}

/// Changes whenever the file does: inode, modification time, size. `None`: there is no file.
type Identity = Option<(u64, i64, i64, u64)>;

/// What holds now.
pub fn current() -> Arc<Loaded> {
    static CURRENT: LazyLock<Mutex<Arc<Loaded>>> = LazyLock::new(Mutex::default);
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let identity = PATH.as_ref().and_then(|path| fs::metadata(path).ok()).map(|file| identity(&file));
    if identity != current.identity {
        *current = Arc::new(load());
    }
    Arc::clone(&current)
}

fn load() -> Loaded {
    let Some(path) = PATH.as_ref() else { return Loaded::default() };
    let Ok(mut file) = File::open(path) else { return Loaded::default() };
    let mut read = || -> Result<Loaded, String> {
        let identity = Some(identity(&file.metadata().map_err(|error| error.to_string())?));
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(Loaded { control: serde_json::from_str(&text).map_err(|error| error.to_string())?, identity })
    };
    read().unwrap_or_else(|error| give_up(&format!("{}: {error}", path.display())))
}

fn identity(file: &fs::Metadata) -> (u64, i64, i64, u64) {
    (file.ino(), file.mtime(), file.mtime_nsec(), file.size())
}

static PATH: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os("HSM_KMS_FAULT_CONTROL").map(PathBuf::from));

impl Loaded {
    /// Whether the rule holds for this call of its function. Counts the call.
    pub fn fires(&self, index: usize) -> bool {
        let rule = &self.control.rules[index];
        if rule.after == 0 && rule.times.is_none() {
            return true;
        }
        let before = self.count_call(index).unwrap_or_else(|error| give_up(&format!("the counters: {error}")));
        before >= rule.after && rule.times.is_none_or(|times| before - rule.after < times)
    }

    /// How many calls this rule met before. Kept in a file beside the control file, since a fault "once" is meant for all the
    /// processes that load this module; a new control file counts anew.
    fn count_call(&self, index: usize) -> std::io::Result<u64> {
        let Some(path) = PATH.as_ref() else { return Ok(0) };
        let mut name = OsString::from(path);
        name.push(".counters");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(name)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let (identity, mut counters): (Identity, Vec<u64>) = serde_json::from_str(&text).unwrap_or_default();
        if identity != self.identity {
            counters.clear();
        }
        counters.resize(self.control.rules.len(), 0);
        let before = counters[index];
        counters[index] += 1;
        // In one write of one length: another thread may be about to kill this process, and must not leave half a file behind.
        let text = serde_json::to_string(&(&self.identity, &counters))?;
        file.rewind()?;
        file.write_all(format!("{text:<COUNTERS$}").as_bytes())?;
        Ok(before)
    }
}

/// Bytes of the file with the counters, blanks included.
const COUNTERS: usize = 1024;

/// A test that is wrong must not look like a fault that was asked for.
pub fn give_up(reason: &str) -> ! {
    eprintln!("fault module: {reason}");
    std::process::exit(99);
}

fn function<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name == "*" || codes::function_name(&name).is_some() {
        return Ok(name);
    }
    Err(D::Error::custom(format!("{name} is no PKCS#11 function")))
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(CK_RV),
            Name(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Name(name) => codes::code_number(&name)
                .map(Self)
                .ok_or_else(|| D::Error::custom(format!("{name} is no PKCS#11 return code"))),
        }
    }
}

impl<'de> Deserialize<'de> for AttributeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = ATTRIBUTES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        // A vendor's own, by its number.
        let number = || CK_ATTRIBUTE_TYPE::from_str_radix(name.strip_prefix("0x")?, 16).ok();
        known.or_else(number).map(Self).ok_or_else(|| D::Error::custom(format!("{name} is no attribute known here")))
    }
}

macro_rules! attributes {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

const ATTRIBUTES: &[(&str, CK_ATTRIBUTE_TYPE)] = attributes! {
    CKA_ALLOWED_MECHANISMS CKA_ALWAYS_AUTHENTICATE CKA_ALWAYS_SENSITIVE CKA_CLASS CKA_COPYABLE CKA_DECRYPT CKA_DERIVE
    CKA_DESTROYABLE CKA_ENCRYPT CKA_EXTRACTABLE CKA_ID CKA_KEY_GEN_MECHANISM CKA_KEY_TYPE CKA_LABEL CKA_LOCAL
    CKA_MODIFIABLE CKA_NEVER_EXTRACTABLE CKA_PRIVATE CKA_SENSITIVE CKA_SIGN CKA_TOKEN CKA_TRUSTED CKA_UNWRAP CKA_VALUE_LEN
    CKA_VERIFY CKA_WRAP CKA_WRAP_WITH_TRUSTED
};
