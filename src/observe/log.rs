//! The log: to standard error, as text for people or JSON for machines. Never a secret at any level.
//!
//! Where systemd takes it into the journal, each line begins with its priority (sd-daemon(3)), so that `journalctl -p` finds it.

use std::env;
use std::fmt;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use serde::Deserialize;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

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
    let has_priority = is_journal(&std::io::stderr());
    let to_terminal = std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
    let own = Targets::new().with_target("hsm_kms", tracing::Level::from(level));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::from(level))
        .with_target(false);
    match format {
        Format::Json => builder
            .json()
            .flatten_event(true)
            .map_event_format(|lines| Prioritised { lines, has_priority })
            .finish()
            .with(own)
            .init(),
        Format::Text => builder
            .with_ansi(to_terminal)
            .map_event_format(|lines| Prioritised { lines, has_priority })
            .finish()
            .with(own)
            .init(),
    }
}

/// Whether systemd takes what is written there into the journal (systemd.exec(5), `JOURNAL_STREAM`).
pub fn is_journal(stream: &impl AsFd) -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else { return false };
    // A child that was given another standard error inherits the variable as well.
    rustix::fs::fstat(stream).is_ok_and(|found| named == format!("{}:{}", found.st_dev, found.st_ino))
}

/// Lines as they are, or with a priority in front.
struct Prioritised<F> {
    lines: F,
    has_priority: bool,
}

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.has_priority {
            let priority = match *event.metadata().level() {
                tracing::Level::ERROR => 3,
                tracing::Level::WARN => 4,
                tracing::Level::INFO => 6,
                _ => 7,
            };
            write!(writer, "<{priority}>")?;
        }
        self.lines.format_event(context, writer, event)
    }
}
