//! `hsm-kms ceremony verify-record`: is the evidence beside a record whole? Without HSM and network.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};

use super::print;
use crate::ceremony::evidence::{self, EvidenceError, Report};
use crate::cli::CliError;
use crate::exit::ExitCode;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The ceremony's directory, with the record, the plan, the transcript and the signatures
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Write what was looked at as JSON to standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let report = evidence::verify_directory(&args.directory).map_err(|error| failed(&error))?;
    print(&if args.json { json(&report) } else { text(&report) })?;
    Ok(if report.holds() { ExitCode::Done } else { ExitCode::DoesNotHold })
}

fn json(report: &Report) -> String {
    let json = serde_json::json!({"holds": report.holds(), "checks": report.checks});
    format!("{json:#}\n")
}

fn text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    table.set_header(["evidence", "holds", "found"]);
    for check in &report.checks {
        table.add_row([check.name.as_str(), if check.holds { "yes" } else { "NO" }, check.found.as_str()]);
    }
    let failed: Vec<_> = report.failed().map(|check| check.name.as_str()).collect();
    let verdict = if report.holds() {
        "the evidence holds".to_owned()
    } else {
        format!("the evidence does NOT hold: {}", failed.join(", "))
    };
    format!("{table}\n\n{verdict}\n")
}

/// Evidence that cannot be looked at.
fn failed(error: &EvidenceError) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "the evidence cannot be looked at".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    }
}
