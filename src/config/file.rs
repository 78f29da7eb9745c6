//! Version 1 of the configuration file: the raw form of `Config`. docs/configuration.md describes every key.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::{Config, Kek, Limits, Log, LogFormat, LogLevel, MAX_SOCKET_PATH_BYTES, PinSource, Socket, Token};
use crate::cluster::Cluster;
use crate::profile::Profile;
use crate::strict::{self, AbsolutePath, EnvironmentName, Fault};

pub(super) const VERSION: u64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(rename = "version")]
    _version: u64,
    cluster: Cluster,
    #[serde(default)]
    socket: FileSocket,
    pub(super) token: FileToken,
    kek: FileKek,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    log: FileLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileSocket {
    #[serde(deserialize_with = "strict::from_text")]
    path: SocketPath,
    #[serde(deserialize_with = "strict::from_text")]
    mode: SocketMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileToken {
    #[serde(deserialize_with = "strict::from_text")]
    pub(super) profile: ProfileSource,
    module: Option<AbsolutePath>,
    #[serde(deserialize_with = "strict::from_text")]
    label: TokenLabel,
    pin: FilePin,
    #[serde(default = "default_sessions", deserialize_with = "strict::number::<1, 64, _>")]
    sessions: u64,
    #[serde(default)]
    environment: BTreeMap<EnvironmentName, EnvironmentValue>,
}

/// Where the profile of a token comes from.
pub(super) enum ProfileSource {
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKek {
    record: AbsolutePath,
    #[serde(default)]
    allow_rehearsal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLimits {
    #[serde(deserialize_with = "strict::number::<1, 4096, _>")]
    queue: u64,
    #[serde(deserialize_with = "strict::number::<100, 2900, _>")]
    deadline_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLog {
    format: LogFormat,
    level: LogLevel,
}

impl Default for FileSocket {
    fn default() -> Self {
        Self { path: SocketPath(PathBuf::from("/run/hsm-kms/hsm@kms.sock")), mode: SocketMode(0o600) }
    }
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { queue: 256, deadline_ms: 2500 }
    }
}

impl Default for FileLog {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LogLevel::Info }
    }
}

fn default_sessions() -> u64 {
    4
}

impl File {
    /// The checked configuration, given the profile that the token names.
    pub(super) fn check(self, profile: Profile) -> Result<Config, Fault> {
        let Self { _version: _, cluster, socket, token, kek, limits, log } = self;
        let FileSocket { path, mode } = socket;
        let FileKek { record, allow_rehearsal } = kek;
        let FileLimits { queue, deadline_ms } = limits;
        let FileLog { format, level } = log;
        Ok(Config {
            cluster,
            socket: Socket { path: path.0, mode: mode.0 },
            token: token.check(profile)?,
            kek: Kek { record: record.0, allow_rehearsal },
            limits: Limits { queue: small(queue), deadline: Duration::from_millis(deadline_ms) },
            log: Log { format, level },
        })
    }
}

impl FileToken {
    fn check(self, profile: Profile) -> Result<Token, Fault> {
        let Self { profile: _, module, label, pin, sessions, environment } = self;
        let pin = pin.check()?;
        let environment: BTreeMap<_, _> = environment.into_iter().map(|(name, value)| (name.0, value.0)).collect();
        if let PinSource::Environment(name) = &pin
            && environment.contains_key(name)
        {
            return Err(Fault::Rule {
                field: "token.environment",
                problem: format!("{name} holds the PIN, and a PIN must not stand in this file"),
                hint: format!("remove {name} here and set it where hsm-kms is started, or use `pin: {{ file: ... }}`"),
            });
        }
        Ok(Token {
            module: module.map_or_else(|| installed_module(&profile), |path| Ok(path.0))?,
            profile,
            label: label.0,
            pin,
            sessions: small(sessions),
            environment,
        })
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

/// The first of the profile's paths where there is a file.
fn installed_module(profile: &Profile) -> Result<PathBuf, Fault> {
    let paths = &profile.module.paths;
    paths.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let tried: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Fault::Rule {
            field: "token.module",
            problem: format!("no module of profile {} is installed", profile.name),
            hint: format!("install it or name its path; tried: {}", tried.join(", ")),
        }
    })
}

/// A number whose range is far below any `usize`.
fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl FromStr for ProfileSource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            text.parse::<AbsolutePath>().map(|path| Self::File(path.0))
        } else {
            Ok(Self::BuiltIn(text.to_owned()))
        }
    }
}

struct SocketPath(PathBuf);

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let AbsolutePath(path) = text.parse()?;
        if text.len() > MAX_SOCKET_PATH_BYTES {
            return Err(format!("the path has {} bytes, a socket's at most {MAX_SOCKET_PATH_BYTES}", text.len()));
        }
        Ok(Self(path))
    }
}

struct SocketMode(u32);

impl FromStr for SocketMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "0600" => Ok(Self(0o600)),
            "0660" => Ok(Self(0o660)),
            _ => Err("expected \"0600\" (owner) or \"0660\" (owner and group): nobody else may use the KEK"),
        }
    }
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

struct EnvironmentValue(String);

impl FromStr for EnvironmentValue {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = text.len() <= 4095 && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned())).ok_or("expected at most 4095 bytes on one line, no control characters")
    }
}

impl<'de> Deserialize<'de> for EnvironmentValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

struct Descriptor(i32);

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = strict::number::<3, 1023, D>(deserializer)?;
        Ok(Self(i32::try_from(number).unwrap_or(i32::MAX)))
    }
}
