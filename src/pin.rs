//! Where a PIN comes from, and the one reading of it. Only the worker and the ceremony read PINs.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::Pin;

/// Where to find the PIN. Never the PIN itself, and never a command line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PinSource {
    /// A systemd credential: a file of this name in `$CREDENTIALS_DIRECTORY` (systemd.exec, `LoadCredential=`).
    Credential(String),
    /// An inherited file descriptor that can be read again from its start (a file or memfd).
    Descriptor(i32),
    /// An environment variable.
    Environment(String),
    /// A file that only its owner can read.
    File(PathBuf),
}

/// What a PIN looks like. A PIN of another form must not be tried: on some tokens it counts as an attempt.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PinForm {
    /// Four hex digits of an authentication key, then 8 to 64 characters.
    #[serde(rename = "hex4+8..64")]
    HexKeyAndPassword,
    /// Any text.
    #[serde(rename = "opaque")]
    Opaque,
    /// A user's name, a colon, a password.
    #[serde(rename = "user:password")]
    UserAndPassword,
}

impl PinForm {
    /// The value with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::HexKeyAndPassword, Self::Opaque, Self::UserAndPassword].into_iter().find(|form| *form as u32 == number)
    }

    /// Whether a PIN looks so.
    pub fn fits(self, pin: &str) -> bool {
        match self {
            Self::Opaque => true,
            Self::HexKeyAndPassword => pin.split_at_checked(4).is_some_and(|(key, password)| {
                key.bytes().all(|byte| byte.is_ascii_hexdigit()) && (8..=64).contains(&password.len())
            }),
            Self::UserAndPassword => {
                pin.split_once(':').is_some_and(|(user, password)| !user.is_empty() && !password.is_empty())
            }
        }
    }

    /// In words, for whoever wrote another.
    pub fn words(self) -> &'static str {
        match self {
            Self::Opaque => "any text",
            Self::HexKeyAndPassword => "four hex digits of an authentication key, then a password of 8 to 64 bytes",
            Self::UserAndPassword => "a user's name, a colon, a password",
        }
    }
}

/// Why no PIN could be had. The token was not asked.
#[derive(Debug, Error)]
pub enum PinError {
    /// The PIN does not look as the profile says. Some tokens count such a PIN as an attempt.
    #[error("the PIN is not what the profile says: {}", form.words())]
    Form {
        /// What the profile says.
        form: PinForm,
    },
    /// `$CREDENTIALS_DIRECTORY` is not set.
    #[error("PIN credential {name:?}: CREDENTIALS_DIRECTORY is not set")]
    NoCredentials {
        /// Name of the credential.
        name: String,
    },
    /// The environment variable is absent or not UTF-8.
    #[error("PIN environment variable {name} is not set to text")]
    NotInEnvironment {
        /// Name of the variable.
        name: String,
    },
    /// The file is not the sort of file that may hold a PIN.
    #[error("PIN file {}: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file cannot be read.
    #[error("PIN file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Nothing, too much, or not text.
    #[error("the PIN from {origin} {reason}")]
    Unusable {
        /// Where it was read.
        origin: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl PinError {
    /// What an operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Form { .. } => "write a PIN of that form into the PIN source; the token was not asked",
            Self::NoCredentials { .. } => "start under systemd with LoadCredential=, or use another PIN source",
            Self::NotInEnvironment { .. } => "set the variable for the service, or use another PIN source",
            Self::Refused { .. } => "make it a plain file of the service's user with mode 0600 or 0400",
            Self::Unreadable { .. } => "check that the file exists and that the service's user may read it",
            Self::Unusable { .. } => "write the PIN, and nothing else, on one line",
        }
    }
}

impl PinSource {
    /// Reads the PIN, and looks at its form. A line end behind it is dropped.
    pub fn read(&self, form: PinForm) -> Result<Pin, PinError> {
        let pin = self.read_any()?;
        if form.fits(pin.expose_secret()) { Ok(pin) } else { Err(PinError::Form { form }) }
    }

    fn read_any(&self) -> Result<Pin, PinError> {
        match self {
            Self::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| PinError::NoCredentials { name: name.clone() })?;
                // systemd gives the unit's user access by an ACL, which shows as group bits.
                read_file(&Path::new(&directory).join(name), Some(0o007))
            }
            Self::Descriptor(number) => read_file(&Path::new("/proc/self/fd").join(number.to_string()), None),
            Self::Environment(name) => {
                let value =
                    Zeroizing::new(std::env::var(name).map_err(|_| PinError::NotInEnvironment { name: name.clone() })?);
                checked(&value, format!("environment variable {name}"))
            }
            Self::File(path) => read_file(path, Some(0o077)),
        }
    }
}

/// Longest PIN read, in bytes. The longest that any known token takes is 255.
const MAX_PIN_BYTES: usize = 1024;

fn read_file(path: &Path, forbidden_mode: Option<u32>) -> Result<Pin, PinError> {
    let unreadable = |source| PinError::Unreadable { path: path.to_owned(), source };
    let refused = |reason| PinError::Refused { path: path.to_owned(), reason };
    // A named pipe that nobody writes to must not hang the start.
    let without_waiting = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(without_waiting).open(path).map_err(unreadable)?;
    // On the open file, so that nobody can exchange it between the look and the reading.
    let stat = rustix::fs::fstat(file.as_fd()).map_err(|error| unreadable(error.into()))?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    if !kind.is_file() {
        return Err(refused("not a plain file"));
    }
    if let Some(forbidden) = forbidden_mode {
        if stat.st_mode & forbidden != 0 {
            return Err(refused("other users may read or write it"));
        }
        let own = rustix::process::geteuid().as_raw();
        if stat.st_uid != 0 && stat.st_uid != own {
            return Err(refused("it belongs to another user"));
        }
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_PIN_BYTES + 1));
    Read::by_ref(&mut file).take(MAX_PIN_BYTES as u64 + 1).read_to_end(&mut text).map_err(unreadable)?;
    let origin = format!("{}", path.display());
    match std::str::from_utf8(&text) {
        Ok(text) => checked(text, origin),
        Err(_) => Err(PinError::Unusable { origin, reason: "is not text" }),
    }
}

fn checked(text: &str, origin: String) -> Result<Pin, PinError> {
    let pin = text.strip_suffix('\n').unwrap_or(text);
    let pin = pin.strip_suffix('\r').unwrap_or(pin);
    let reason = if pin.is_empty() {
        // An empty PIN counts as a wrong one on some tokens.
        "is empty"
    } else if pin.len() > MAX_PIN_BYTES {
        "is too long"
    } else if pin.contains(['\n', '\r', '\0']) {
        "is more than one line"
    } else {
        return Ok(Pin::from(pin.to_owned()));
    };
    Err(PinError::Unusable { origin, reason })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_line_end_is_not_part_of_the_pin() {
        for content in ["1234", "1234\n", "1234\r\n"] {
            let file = file(content.as_bytes(), 0o600);
            assert_eq!(PinSource::File(file.path().into()).read(PinForm::Opaque).unwrap().expose_secret(), "1234");
        }
    }

    #[test]
    fn a_pin_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o644, 0o620] {
            let file = file(b"1234", mode);
            let error = PinSource::File(file.path().into()).read(PinForm::Opaque).unwrap_err();
            assert!(matches!(error, PinError::Refused { .. }), "{mode:o}: {error}");
        }
    }

    #[test]
    fn what_is_no_pin_is_refused_without_showing_it() {
        for content in [&b""[..], b"\n", b"secret\nother", &[0xff, 0xfe], &[b'7'; 2000]] {
            let file = file(content, 0o600);
            let text = PinSource::File(file.path().into()).read(PinForm::Opaque).unwrap_err().to_string();
            assert!(!text.contains("secret") && !text.contains("777"), "{text}");
        }
        assert!(PinSource::File("/".into()).read(PinForm::Opaque).is_err());
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(PinSource::File(pipe).read(PinForm::Opaque), Err(PinError::Refused { .. })));
        assert!(PinSource::File("/no/such/file".into()).read(PinForm::Opaque).is_err());
        assert!(PinSource::Environment("HSM_KMS_NO_SUCH".to_owned()).read(PinForm::Opaque).is_err());
    }
}
