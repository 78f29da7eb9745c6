//! Version 1 of the configuration file: the raw form of `Config`. docs/configuration.md describes every key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::token::FileToken;
use super::{Config, EndpointAddress, Kek, KekSource, Limits, Log, Socket, Standby, Token};
use crate::audit::{self, Destination, OnFull};
use crate::cluster::Cluster;
use crate::kms::socket::PATH_LIMIT;
use crate::kms::status::HealthPolicy;
use crate::observe::log::{Format, Level};
use crate::profile::Profile;
use crate::sandbox::Mode;
use crate::strict::{self, AbsolutePath, Fault};
use crate::token::MAX_TOKENS;

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
    #[serde(default)]
    pub(super) standby: Vec<FileStandby>,
    kek: FileKek,
    #[serde(default)]
    health: HealthPolicy,
    #[serde(default, deserialize_with = "endpoint")]
    endpoints: Option<EndpointAddress>,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    log: FileLog,
    audit: Option<FileAudit>,
    #[serde(default)]
    sandbox: Mode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileSocket {
    #[serde(deserialize_with = "strict::from_text")]
    path: SocketPath,
    #[serde(deserialize_with = "strict::from_text")]
    mode: SocketMode,
    #[serde(deserialize_with = "uids")]
    peers: Option<Vec<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileStandby {
    pub(super) token: FileToken,
    #[serde(deserialize_with = "strict::line")]
    serial: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKek {
    #[serde(default)]
    keyring: Option<AbsolutePath>,
    #[serde(default)]
    record: Option<AbsolutePath>,
    #[serde(default)]
    allow_trial: bool,
    #[serde(default)]
    accept_data_loss: bool,
    #[serde(default)]
    recovery_drill: Option<AbsolutePath>,
    rewrap_table: Option<AbsolutePath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLimits {
    #[serde(deserialize_with = "strict::number::<1, 4096, _>")]
    queue: u64,
    #[serde(deserialize_with = "sessions")]
    sessions: Option<u64>,
    #[serde(deserialize_with = "strict::number::<100, 2900, _>")]
    deadline_ms: u64,
    #[serde(deserialize_with = "strict::number::<1, 30, _>")]
    probe_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLog {
    format: Format,
    level: Level,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAudit {
    #[serde(deserialize_with = "strict::from_text")]
    to: Destination,
    #[serde(default)]
    chain: bool,
    #[serde(default)]
    on_full: OnFull,
}

impl Default for FileSocket {
    fn default() -> Self {
        Self { path: SocketPath(PathBuf::from("/run/hsm-kms/hsm@kms.sock")), mode: SocketMode(0o600), peers: None }
    }
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { queue: 256, sessions: None, deadline_ms: 2500, probe_seconds: 2 }
    }
}

impl Default for FileLog {
    fn default() -> Self {
        Self { format: Format::Text, level: Level::Info }
    }
}

impl File {
    /// The checked configuration, given the profiles that the token and the standby tokens name.
    pub(super) fn check(self, profile: Profile, standby_profiles: Vec<Profile>) -> Result<Config, Fault> {
        let Self { _version: _, cluster, socket, token, standby, kek, health, endpoints, limits, log, audit, sandbox } =
            self;
        let FileSocket { path, mode, peers } = socket;
        let FileKek { keyring, record, allow_trial, accept_data_loss, recovery_drill, rewrap_table } = kek;
        let recovery_drill = recovery_drill.map(|AbsolutePath(path)| path);
        let rewrap_table = rewrap_table.map(|AbsolutePath(path)| path);
        let source = match (keyring, record) {
            (Some(AbsolutePath(path)), None) => KekSource::Keyring(path),
            (None, Some(AbsolutePath(path))) => KekSource::Record(path),
            (keyring, _) => {
                let problem = if keyring.is_some() { "both are there" } else { "neither is there" };
                let problem = format!("of `kek.record` and `kek.keyring` there must be one; {problem}");
                let hint = "name the record of the only KEK, or the keyring of several".to_owned();
                return Err(Fault::Rule { field: "kek", problem, hint });
            }
        };
        let FileLimits { queue, sessions, deadline_ms, probe_seconds } = limits;
        let FileLog { format, level } = log;
        let sessions = sessions.unwrap_or(if profile.sessions.serial { 1 } else { DEFAULT_SESSIONS });
        if let Some((problem, most)) = too_many_sessions(&profile, sessions) {
            return Err(Fault::Rule { field: "limits.sessions", problem, hint: format!("set it to at most {most}") });
        }
        let token = token.check(profile)?;
        if standby.len() >= MAX_TOKENS {
            let problem = format!("{} tokens in all are too many", standby.len() + 1);
            return Err(standby_fault(problem, format!("list at most {}", MAX_TOKENS - 1)));
        }
        let standby = standby.into_iter().zip(standby_profiles);
        let standby: Vec<_> =
            standby.map(|(standby, profile)| standby.check(profile, &token, sessions)).collect::<Result<_, _>>()?;
        let tokens: Vec<&Token> = std::iter::once(&token).chain(standby.iter().map(|standby| &standby.token)).collect();
        if tokens.iter().enumerate().any(|(position, token)| tokens.iter().take(position).any(|other| other == token)) {
            return Err(standby_fault("a token stands twice".to_owned(), "list each token once".to_owned()));
        }
        Ok(Config {
            cluster,
            socket: Socket { path: path.0, mode: mode.0, peers },
            token,
            standby,
            health,
            endpoints,
            kek: Kek { source, allow_trial, accept_data_loss, recovery_drill, rewrap_table },
            limits: Limits {
                queue: small(queue),
                sessions: small(sessions),
                deadline: Duration::from_millis(deadline_ms),
                probe: Duration::from_secs(probe_seconds),
            },
            log: Log { format, level },
            audit: audit.map(FileAudit::check).transpose()?,
            sandbox,
        })
    }
}

impl FileAudit {
    fn check(self) -> Result<audit::Settings, Fault> {
        let Self { to, chain, on_full } = self;
        if chain && to == Destination::Journal {
            let problem = "a chain goes on where the file ends, and a journal has no such end".to_owned();
            let hint = "write to a file, or let journald seal its files: journalctl --setup-keys".to_owned();
            return Err(Fault::Rule { field: "audit.chain", problem, hint });
        }
        Ok(audit::Settings { to, chain, on_full })
    }
}

impl FileStandby {
    fn check(self, profile: Profile, first: &Token, sessions: u64) -> Result<Standby, Fault> {
        let name = profile.full_name();
        if let Some((problem, most)) = too_many_sessions(&profile, sessions) {
            return Err(standby_fault(problem, format!("set limits.sessions to at most {most}")));
        }
        let token = self.token.check(profile).map_err(|fault| match fault {
            Fault::Rule { field, problem, hint } => standby_fault(format!("`{field}`: {problem}"), hint),
            other => other,
        })?;
        if token.sealing.form.seal != first.sealing.form.seal {
            let (other, seal) = (token.sealing.form.seal.word(), first.sealing.form.seal.word());
            let problem = format!(
                "profile {name} seals with {other}, the first token with {seal}: neither opens the other's blobs"
            );
            return Err(standby_fault(problem, "list tokens with one seal; IV layouts may differ".to_owned()));
        }
        Ok(Standby { token, serial: self.serial })
    }
}

/// What is wrong if the HSM has fewer sessions than are wanted, and how many it can give.
fn too_many_sessions(profile: &Profile, sessions: u64) -> Option<(String, u64)> {
    // One session more: the login is kept on a session of its own.
    let max = profile.sessions.max.filter(|max| sessions + 1 > *max)?;
    Some((format!("an HSM of profile {} has {max} sessions, one of them for the login", profile.full_name()), max - 1))
}

fn standby_fault(problem: String, hint: String) -> Fault {
    Fault::Rule { field: "standby", problem, hint }
}

fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<EndpointAddress>, D::Error> {
    strict::from_text(deserializer).map(Some)
}

impl FromStr for EndpointAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            return text.parse::<SocketPath>().map(|path| Self::Unix(path.0));
        }
        let address: SocketAddr = text.parse().map_err(|_| "expected an address such as 127.0.0.1:9465, or a path")?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err("expected a loopback address: nobody who asks is told apart, so only this machine may".to_owned())
        }
    }
}

/// Sessions of a module that works in parallel (docs/performance.md).
const DEFAULT_SESSIONS: u64 = 2;

fn sessions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    strict::number::<1, 64, D>(deserializer).map(Some)
}

fn uids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u32>>, D::Error> {
    let uids = Vec::<u32>::deserialize(deserializer)?;
    if matches!(uids.len(), 1..=MOST_PEERS) {
        Ok(Some(uids))
    } else {
        Err(D::Error::custom(format!("{} users, not 1 to {MOST_PEERS}", uids.len())))
    }
}

const MOST_PEERS: usize = 16;

/// A number whose range is far below any `usize`.
fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

struct SocketPath(PathBuf);

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let AbsolutePath(path) = text.parse()?;
        if text.len() > PATH_LIMIT {
            return Err(format!("the path has {} bytes, a socket's at most {PATH_LIMIT}", text.len()));
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
