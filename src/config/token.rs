//! The `token` section, which the configuration and a ceremony's plan share: which HSM token, and how it is reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::pin::PinSource;
use crate::profile::{Profile, ProfileError, UserKind};
use crate::sandbox::{Connect, WorkerRules};
use crate::seal::Sealing;
use crate::strict::{self, AbsolutePath, EnvironmentName, Fault};

/// An HSM token and how it is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// The vendor profile.
    pub profile: Profile,
    /// How new seeds are sealed, as the profile says.
    pub sealing: Sealing,
    /// Absolute path of the PKCS#11 module.
    pub module: PathBuf,
    /// The token's label, 1 to 32 bytes.
    pub label: String,
    /// Where the PIN is. `None` where nobody logs in.
    pub pin: Option<PinSource>,
    /// Variables that the module needs.
    pub environment: BTreeMap<String, String>,
    /// The text that the module takes at `C_Initialize` (`pReserved`).
    pub init_reserved: Option<String>,
    /// What its worker may do beside what the profile says.
    pub sandbox: WorkerRules,
}

/// The raw form of [`Token`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileToken {
    #[serde(deserialize_with = "strict::from_text")]
    profile: ProfileSource,
    module: Option<AbsolutePath>,
    #[serde(deserialize_with = "strict::from_text")]
    label: TokenLabel,
    pin: Option<FilePin>,
    #[serde(default)]
    environment: BTreeMap<EnvironmentName, PlainText>,
    init_reserved: Option<Reserved>,
    #[serde(default)]
    sandbox: FileSandbox,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileSandbox {
    read: Vec<AbsolutePath>,
    write: Vec<AbsolutePath>,
    connect: Connect,
}

/// Where the profile of a token comes from.
enum ProfileSource {
    BuiltIn(String),
    File(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePin {
    file: Option<AbsolutePath>,
    environment: Option<EnvironmentName>,
    credential: Option<CredentialName>,
    descriptor: Option<Descriptor>,
}

impl FileToken {
    /// The profile that the section names.
    pub fn profile(&self) -> Result<Profile, ProfileError> {
        match &self.profile {
            ProfileSource::BuiltIn(name) => Profile::by_name(name),
            ProfileSource::File(path) => Profile::load(path),
        }
    }

    /// The checked section, given the profile that it names. Without a module path, the first of the profile's that exists.
    pub fn check(mut self, profile: Profile) -> Result<Token, Fault> {
        let pin = check_pin(self.pin.take(), &profile)?;
        self.checked(profile, pin)
    }

    /// The checked section of a token whose PIN is typed by those who keep it: it has no source.
    pub fn check_without_pin(mut self, profile: Profile) -> Result<Token, Fault> {
        if self.pin.take().is_some() {
            return Err(Fault::Rule {
                field: "token.pin",
                problem: "the PIN of a ceremony has no source: two people type a half of it each".to_owned(),
                hint: "remove it".to_owned(),
            });
        }
        self.checked(profile, None)
    }

    /// The checked section of a token whose PIN may be typed: it has a source or none.
    pub fn check_with_any_pin(self, profile: Profile) -> Result<Token, Fault> {
        if self.pin.is_some() { self.check(profile) } else { self.check_without_pin(profile) }
    }

    fn checked(self, profile: Profile, pin: Option<PinSource>) -> Result<Token, Fault> {
        let Self { profile: _, module, label, pin: _, environment, init_reserved, sandbox } = self;
        let plain = |paths: Vec<AbsolutePath>| paths.into_iter().map(|path| path.0).collect();
        let FileSandbox { read, write, connect } = sandbox;
        let sealing = profile.usable().map_err(|unusable| Fault::Rule {
            field: "token.profile",
            problem: unusable.to_string(),
            hint: unusable.hint().to_owned(),
        })?;
        let environment: BTreeMap<_, _> = environment.into_iter().map(|(name, value)| (name.0, value.0)).collect();
        if let Some(PinSource::Environment(name)) = &pin
            && environment.contains_key(name)
        {
            return Err(Fault::Rule {
                field: "token.environment",
                problem: format!("{name} holds the PIN, and a PIN must not stand in this file"),
                hint: format!("remove {name} here and set it where hsm-kms is started, or use `pin: {{ file: ... }}`"),
            });
        }
        if init_reserved.is_none() {
            check_files(&profile, &environment)?;
        }
        Ok(Token {
            sealing,
            module: module.map_or_else(|| installed_module(&profile), |path| Ok(path.0))?,
            profile,
            label: label.0,
            pin,
            environment,
            init_reserved: init_reserved.map(|text| text.0),
            sandbox: WorkerRules { read: plain(read), write: plain(write), connect },
        })
    }
}

/// A source where somebody logs in, and none where nobody does.
fn check_pin(pin: Option<FilePin>, profile: &Profile) -> Result<Option<PinSource>, Fault> {
    let fault = |problem: String, hint: &str| Fault::Rule { field: "token.pin", problem, hint: hint.to_owned() };
    let name = profile.full_name();
    match (pin, profile.login.user) {
        (None, UserKind::None) => Ok(None),
        (Some(_), UserKind::None) => {
            Err(fault(format!("nobody logs in with profile {name}"), "remove it: the module has other means"))
        }
        (Some(pin), _) => pin.check().map(Some),
        (None, _) => {
            Err(fault("it is missing".to_owned(), "say where the PIN is, such as `pin: { file: /etc/hsm-kms/pin }`"))
        }
    }
}

impl FilePin {
    fn check(self) -> Result<PinSource, Fault> {
        let Self { file, environment, credential, descriptor } = self;
        let fault = |problem: &str| Fault::Rule {
            field: "token.pin",
            problem: problem.to_owned(),
            hint: "keep exactly one of file, environment, credential, descriptor".to_owned(),
        };
        let mut sources = [
            file.map(|path| PinSource::File(path.0)),
            environment.map(|name| PinSource::Environment(name.0)),
            credential.map(|name| PinSource::Credential(name.0)),
            descriptor.map(|number| PinSource::Descriptor(number.0)),
        ]
        .into_iter()
        .flatten();
        match (sources.next(), sources.next()) {
            (Some(source), None) => Ok(source),
            (None, _) => Err(fault("the PIN has no source")),
            (Some(_), Some(_)) => Err(fault("the PIN has more than one source")),
        }
    }
}

/// The module's own files must be there, unless a variable sends it to others: modules answer a missing one vaguely.
fn check_files(profile: &Profile, environment: &BTreeMap<String, String>) -> Result<(), Fault> {
    let module = &profile.module;
    if module.environment.iter().any(|name| environment.contains_key(name)) {
        return Ok(());
    }
    let missing = module.files.iter().find(|path| !path.is_file());
    missing.map_or(Ok(()), |path| {
        let variables = match module.environment.as_slice() {
            [] => String::new(),
            names => format!(", or set {} under token.environment", names.join(" or ")),
        };
        Err(Fault::Rule {
            field: "token.profile",
            problem: format!(
                "the module of profile {} needs {}, and it is not there",
                profile.full_name(),
                path.display()
            ),
            hint: format!("set the HSM's client up with the vendor's tool{variables}"),
        })
    })
}

/// The first of the profile's paths where there is a file.
fn installed_module(profile: &Profile) -> Result<PathBuf, Fault> {
    let paths = &profile.module.paths;
    paths.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let tried: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Fault::Rule {
            field: "token.module",
            problem: format!("no module of profile {} is installed", profile.full_name()),
            hint: match tried.as_slice() {
                [] => "name its path: the profile knows none".to_owned(),
                tried => format!("install it or name its path; tried: {}", tried.join(", ")),
            },
        }
    })
}

impl FromStr for ProfileSource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_variant = text.split_once('/').is_some_and(|(name, variant)| is_word(name) && is_word(variant));
        if text.contains('/') && !is_variant {
            text.parse::<AbsolutePath>().map(|path| Self::File(path.0))
        } else {
            Ok(Self::BuiltIn(text.to_owned()))
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

struct TokenLabel(String);

impl FromStr for TokenLabel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = !text.chars().any(char::is_control) && !text.ends_with(' ');
        let fits = plain && (1..=32).contains(&text.len());
        fits.then(|| Self(text.to_owned())).ok_or("expected a token label of 1 to 32 bytes, without blanks at the end")
    }
}

struct CredentialName(String);

impl FromStr for CredentialName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
        let fits = letters && (1..=255).contains(&text.len()) && text != "." && text != "..";
        fits.then(|| Self(text.to_owned())).ok_or("expected the name of a systemd credential, not a path")
    }
}

impl<'de> Deserialize<'de> for CredentialName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

struct PlainText(String);

impl FromStr for PlainText {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.len() <= 4095 && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned())).ok_or("expected at most 4095 bytes on one line, no control characters")
    }
}

impl<'de> Deserialize<'de> for PlainText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

struct Reserved(String);

impl<'de> Deserialize<'de> for Reserved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let PlainText(text) = PlainText::deserialize(deserializer)?;
        if text.is_empty() { Err(serde::de::Error::custom("must not be empty")) } else { Ok(Self(text)) }
    }
}

struct Descriptor(i32);

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = strict::number::<3, 1023, D>(deserializer)?;
        Ok(Self(i32::try_from(number).unwrap_or(i32::MAX)))
    }
}
