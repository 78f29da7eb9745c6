//! What `hsm-kms init` writes: configuration, `EncryptionConfiguration`, and the platform's files, for one cluster. The sources lie in
//! docs/deploy; only paths and names in them are changed.

mod answers;
mod files;
mod folder;
mod texts;

use std::path::PathBuf;

use thiserror::Error;

pub use self::answers::{Answers, Image, PlainPath, Platform, SocketPath, TokenLabel, Variable, default_module};
pub use self::files::{NewFile, files};
pub use self::folder::write;
use crate::config::ConfigError;

/// Why nothing was written.
#[derive(Debug, Error)]
pub enum InitError {
    /// The answers make no configuration.
    #[error("these answers make no configuration: {0}")]
    Config(#[from] ConfigError),
    /// The name ends in no folder.
    #[error("{} names no new folder", .0.display())]
    NoName(PathBuf),
    /// Something is in the way.
    #[error("{} is there already{}", path.display(), there(found))]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What is in it; nothing if it is no folder.
        found: Vec<String>,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

impl InitError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Config(error) => error.hint(),
            Self::NoName(_) => "name a folder that does not exist yet: --output DIR".to_owned(),
            Self::Occupied { .. } => "name another folder with --output; nothing is overwritten".to_owned(),
            Self::System { .. } => "name a folder in an existing one that you may write to: --output DIR".to_owned(),
        }
    }
}

fn there(found: &[String]) -> String {
    const SHOWN: usize = 10;
    match found.len() {
        0 => String::new(),
        count => {
            let names = found.get(..SHOWN.min(count)).unwrap_or_default().join(", ");
            let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
            format!(", and not empty: {names}{more}")
        }
    }
}
