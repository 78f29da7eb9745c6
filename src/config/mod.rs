//! The configuration of `serve`: one strict YAML file, read once. docs/configuration.md describes every key.

mod file;
#[cfg(test)]
mod tests;
mod token;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub use self::token::{FileToken, Token};
use crate::audit;
use crate::cluster::Cluster;
use crate::kms::status::HealthPolicy;
use crate::observe::log::{Format, Level};
use crate::profile::ProfileError;
use crate::sandbox::Mode;
use crate::strict::{self, FileError};

/// A checked configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The cluster whose seeds are sealed.
    pub cluster: Cluster,
    /// The socket that the API server calls.
    pub socket: Socket,
    /// The HSM token that holds the KEK.
    pub token: Token,
    /// Tokens with a copy of the KEK, in the order of their use.
    pub standby: Vec<Standby>,
    /// What Status says while no token can be used.
    pub health: HealthPolicy,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub endpoints: Option<EndpointAddress>,
    /// The KEK.
    pub kek: Kek,
    /// Limits of the front process.
    pub limits: Limits,
    /// The log, on standard error.
    pub log: Log,
    /// The audit log, if there is one.
    pub audit: Option<audit::Settings>,
    /// Whether front and worker must be limited to what they need.
    pub sandbox: Mode,
}

/// Where `/livez`, `/readyz` and `/metrics` are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointAddress {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket of mode 0600 at this absolute path.
    Unix(PathBuf),
}

/// A token with a copy of the KEK.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Standby {
    /// Which token, and how it is reached.
    pub token: Token,
    /// Its serial number: the PIN is tried on no other.
    pub serial: String,
}

/// The socket that the API server calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Socket {
    /// Absolute, at most [`PATH_LIMIT`](crate::kms::socket::PATH_LIMIT).
    pub path: PathBuf,
    /// File mode: `0o600` or `0o660`.
    pub mode: u32,
    /// The uids that may connect, if they are named.
    pub peers: Option<Vec<u32>>,
}

/// The KEK.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kek {
    /// Where it is said which key it is.
    pub source: KekSource,
    /// Whether a KEK made unattended is served.
    pub allow_trial: bool,
    /// Whether a witnessed KEK is served whose ceremony proved no copies.
    pub accept_data_loss: bool,
    /// The report on the last drill of a recovery key, absolute: it is read at the start, and for each answer of `/metrics`.
    pub recovery_drill: Option<PathBuf>,
    /// Where the seeds of lost KEKs are. An absolute path.
    pub rewrap_table: Option<PathBuf>,
}

/// Where it is said which key is the KEK. Absolute paths.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KekSource {
    /// In the keyring file of the cluster.
    Keyring(PathBuf),
    /// In the record of the only KEK.
    Record(PathBuf),
}

/// Limits of the front process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// PKCS#11 sessions, 1 to 64.
    pub sessions: usize,
    /// Requests that may wait for a session, 1 to 4096.
    pub queue: usize,
    /// Longest time of one request, 100 to 2900 ms.
    pub deadline: Duration,
    /// How often the KEK is proved while nothing else uses it, 1 to 30 s.
    pub probe: Duration,
}

/// The log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Log {
    /// How a line looks.
    pub format: Format,
    /// The least important lines that are written.
    pub level: Level,
}

impl Config {
    /// Reads the configuration file, the profile that it names, and where the module is installed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = strict::read(path).map_err(|fault| FileError::new(WHAT, Some(path), fault))?;
        Self::checked(&bytes, Some(path))
    }

    /// As [`Config::load`], for bytes that are not from a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::checked(bytes, None)
    }

    /// The tokens in the order of their use.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        std::iter::once(&self.token).chain(self.standby.iter().map(|standby| &standby.token))
    }

    /// What works, but not everywhere: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let name = self.socket.path.file_name().unwrap_or(OsStr::new(""));
        let mut warnings = Vec::new();
        if !name.as_bytes().contains(&b'@') {
            warnings.push(format!(
                "`socket.path`: the file name {} has no '@', so Kubernetes 1.29 to 1.31 cannot reach it; use a name such as hsm@kms.sock",
                name.display()
            ));
        }
        warnings
    }

    fn checked(bytes: &[u8], path: Option<&Path>) -> Result<Self, ConfigError> {
        let fault = |fault| FileError::new(WHAT, path, fault);
        let file: file::File = strict::yaml(bytes, file::VERSION).map_err(fault)?;
        let profile = |token: &FileToken| {
            token.profile().map_err(|error| ConfigError::Profile { path: path.map(Path::to_path_buf), error })
        };
        let standby = file.standby.iter().map(|standby| profile(&standby.token)).collect::<Result<_, _>>()?;
        let profile = profile(&file.token)?;
        Ok(file.check(profile, standby).map_err(fault)?)
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The profile that it names cannot be used.
    #[error("{WHAT}{}: `token.profile`: {error}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Profile {
        /// Where the configuration lies, if it was read from a file.
        path: Option<PathBuf>,
        /// What is wrong with the profile.
        error: ProfileError,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            Self::Profile { error, .. } => error.hint(),
        }
    }
}

const WHAT: &str = "configuration";
