//! Version 1 of a profile file: the raw form of `Profile`.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::codes::{code_name, code_number, function_name};
use super::{CodeOverride, Evidence, Module, Profile};
use crate::class::Class;
use crate::seal::Sealing;
use crate::strict::{self, AbsolutePath, EnvironmentName, Fault};

pub(super) const VERSION: u64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(rename = "version")]
    _version: u64,
    #[serde(deserialize_with = "strict::from_text")]
    name: Name,
    #[serde(deserialize_with = "strict::line")]
    title: String,
    module: FileModule,
    seal: FileSeal,
    #[serde(default)]
    codes: BTreeMap<Code, ClassWord>,
    evidence: FileEvidence,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModule {
    paths: Vec<AbsolutePath>,
    #[serde(deserialize_with = "strict::line")]
    manufacturer: String,
    environment: Option<EnvironmentName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSeal {
    mechanism: Mechanism,
    iv: FileIv,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIv {
    layout: Layout,
    /// The only length that the one mechanism takes.
    #[serde(rename = "bytes", deserialize_with = "strict::number::<12, 12, _>")]
    _bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mechanism {
    AesGcm,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Layout {
    Sent,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileEvidence {
    Ci,
    Device,
    Documents,
    Unconfirmed,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ClassWord {
    Busy,
    Data,
    Gone,
    Login,
    PinOrConfig,
    Session,
}

impl File {
    pub(super) fn check(self) -> Result<Profile, Fault> {
        let Self { _version: _, name, title, module, seal, codes, evidence } = self;
        let FileModule { paths, manufacturer, environment } = module;
        let FileSeal { mechanism: Mechanism::AesGcm, iv: FileIv { layout: Layout::Sent, _bytes: _ } } = seal;
        Ok(Profile {
            name: name.0,
            title,
            module: Module {
                paths: paths.into_iter().map(|path| path.0).collect(),
                manufacturer,
                environment: environment.map(|name| name.0),
            },
            seal: Sealing::AES_GCM_SENT,
            codes: check_codes(codes)?,
            evidence: match evidence {
                FileEvidence::Ci => Evidence::Ci,
                FileEvidence::Device => Evidence::Device,
                FileEvidence::Documents => Evidence::Documents,
                FileEvidence::Unconfirmed => Evidence::Unconfirmed,
            },
        })
    }
}

/// A code may be written by name and by number: it must still stand only once.
fn check_codes(codes: BTreeMap<Code, ClassWord>) -> Result<Vec<CodeOverride>, Fault> {
    let mut checked: Vec<CodeOverride> = Vec::new();
    for (Code { number: code, function, text: _ }, class) in codes {
        if checked.iter().any(|other| (other.code, other.function) == (code, function)) {
            let name = code_name(code).map_or_else(|| format!("{code:#x}"), str::to_owned);
            let function = function.map(|function| format!("@{function}")).unwrap_or_default();
            let problem = format!("{name}{function} stands twice, by name and by number");
            return Err(Fault::Rule { field: "codes", problem, hint: "keep one of the two".to_owned() });
        }
        checked.push(CodeOverride { code, function, class: class.into() });
    }
    Ok(checked)
}

impl From<ClassWord> for Class {
    fn from(word: ClassWord) -> Self {
        match word {
            ClassWord::Busy => Self::Busy,
            ClassWord::Data => Self::Data,
            ClassWord::Gone => Self::Gone,
            ClassWord::Login => Self::Login,
            ClassWord::PinOrConfig => Self::PinOrConfig,
            ClassWord::Session => Self::Session,
        }
    }
}

struct Name(String);

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let fits = letters && (1..=63).contains(&text.len());
        fits.then(|| Self(text.to_owned())).ok_or("expected 1 to 63 of a-z, 0-9 and '-'")
    }
}

/// `CODE` or `CODE@FUNCTION`; the code is a `CKR_` name or a number such as `0x80000123`.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Code {
    number: u64,
    function: Option<&'static str>,
    /// Keeps the same code written in two ways apart, so that both are seen.
    text: String,
}

impl FromStr for Code {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (code, function) = text.split_once('@').map_or((text, None), |(code, name)| (code, Some(name)));
        let number = match code.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+')),
            None => code_number(code),
        };
        let number = number.ok_or("not a return code of PKCS#11 (a CKR_ name, or a number such as 0x80000123)")?;
        if number == 0 {
            return Err("CKR_OK is no failure");
        }
        let known = |name| function_name(name).ok_or("not a function of PKCS#11, such as C_Decrypt");
        Ok(Self { number, function: function.map(known).transpose()?, text: text.to_owned() })
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}
