//! The log: to standard error, as text for people or JSON for machines. Never a secret at any level.

use std::io::IsTerminal;

use tracing::Level;

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Text; with colour on a terminal.
    Text,
}

/// Starts the log. Call once.
pub fn start(format: Format, level: Level) {
    let to_terminal = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    match format {
        Format::Json => builder.json().flatten_event(true).init(),
        Format::Text => builder.with_ansi(to_terminal).init(),
    }
}
