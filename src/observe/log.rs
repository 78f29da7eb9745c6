//! The log: to standard error, as text for people or JSON for machines. Never a secret at any level.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// How log lines look.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Text; with colour on a terminal.
    Text,
}

/// The least important lines that are written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the usual five words")]
pub enum Level {
    Debug,
    Error,
    Info,
    Trace,
    Warn,
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => Self::DEBUG,
            Level::Error => Self::ERROR,
            Level::Info => Self::INFO,
            Level::Trace => Self::TRACE,
            Level::Warn => Self::WARN,
        }
    }
}

/// Starts the log. Call once.
///
/// Only this program's own lines: the libraries below it see whole messages, and what they show is not ours to promise.
pub fn start(format: Format, level: Level) {
    let to_terminal = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let own = Targets::new().with_target("hsm_kms", tracing::Level::from(level));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::from(level))
        .with_target(false);
    match format {
        Format::Json => builder.json().flatten_event(true).finish().with(own).init(),
        Format::Text => builder.with_ansi(to_terminal).finish().with(own).init(),
    }
}
