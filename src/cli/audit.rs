//! `hsm-kms audit verify`: whether the lines of an audit log follow on each other.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CliError, print};
use crate::audit::{self, Verified};
use crate::exit::ExitCode;

/// Check an audit log
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that no line of a chained audit log was changed, moved or taken away (docs/audit.md)
    Verify {
        /// The files, the oldest first
        #[arg(required = true)]
        file: Vec<PathBuf>,
        /// A hash that was kept elsewhere; the line that it names must be there
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
    },
}

pub(super) fn run(args: &AuditArgs) -> Result<(), CliError> {
    let AuditCommand::Verify { file, head } = &args.command;
    if head.as_ref().is_some_and(|head| !audit::is_hash(head)) {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "--head cannot be used".to_owned(),
            why: "it is not sha256: and 64 lower-case hex digits".to_owned(),
            hint: "copy it from the log of the plugin, where it says head=".to_owned(),
        });
    }
    let verified = audit::verify(file, head.as_deref()).map_err(|fault| {
        if fault.is_unreadable() {
            return CliError {
                code: ExitCode::BadUsage,
                what: "the audit log cannot be read".to_owned(),
                why: fault.to_string(),
                hint: "name the files of one plugin, the oldest first".to_owned(),
            };
        }
        broken(fault.to_string())
    })?;
    if let Some(head) = head.as_ref().filter(|_| !verified.has_head) {
        return Err(broken(format!(
            "no line has the hash {head}: lines at the end were taken away, or all was rewritten"
        )));
    }
    print(&text(&verified))
}

fn broken(why: String) -> CliError {
    CliError {
        code: ExitCode::DoesNotHold,
        what: "the audit log is not as it was written".to_owned(),
        why,
        hint: "keep the files as they are, and compare them with copies that were made earlier".to_owned(),
    }
}

fn text(verified: &Verified) -> String {
    let Verified { lines, begins_after, head, torn, lost, unfinished, has_head } = verified;
    let mut text = format!("the chain holds: {lines} lines\n");
    // Writing into a String does not fail.
    if let Some(before) = begins_after {
        let _ = writeln!(text, "before:  the first line follows on one that is not here\n         {before}");
    }
    if *torn > 0 {
        let _ = writeln!(text, "torn:    {torn}, when power or disk failed");
    }
    if *lost > 0 {
        let _ = writeln!(text, "lost:    {lost} lines could not be written, as the log says itself");
    }
    if *unfinished > 0 {
        let _ = writeln!(text, "end:     the last line has no end ({unfinished} bytes): it was being written");
    }
    if let Some(head) = head {
        let _ = writeln!(text, "head:    {head}");
    }
    let _ = match has_head {
        true => writeln!(text, "kept:    the line that --head names is there"),
        false => writeln!(text, "Lines taken from the end are only noticed with --head."),
    };
    text
}
