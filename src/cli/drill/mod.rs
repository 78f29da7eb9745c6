//! `hsm-kms drill`: a theft or a loss, played, with a report that somebody can keep. Against a throw-away token, or, reading only, against the
//! real thing.

mod copies;
mod hsm_loss;
mod lost_kek;
mod node_theft;
mod report;
mod stage;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::report::Report;
use super::{CliError, print};
use crate::config::{Config, KekSource};
use crate::exit::ExitCode;
use crate::keyring::{KeyringFile, State, folder};
use crate::record::UtcTime;

/// Play a theft or a loss, and report what came of it
///
/// Without --config everything happens on a throw-away SoftHSM2 token and nothing else is touched. With it the running plugin is looked at, and nothing
/// is changed or taken away (docs/drills.md). Ends with 0 if everything held, with 1 if something did not.
#[derive(Args, Debug)]
pub(super) struct DrillArgs {
    #[command(subcommand)]
    drill: Drill,
}

#[derive(Debug, Subcommand)]
enum Drill {
    /// Copy all that a control-plane node holds without the HSM, and show that nothing opens
    NodeTheft(node_theft::NodeTheftArgs),
    /// Take the HSM away while the plugin serves, and give it back
    HsmLoss(hsm_loss::HsmLossArgs),
    /// Lose the KEK, and open what it sealed with the recovery key alone
    LostKek(lost_kek::LostKekArgs),
}

/// Where the report goes.
#[derive(Args, Debug)]
struct Output {
    /// Write the report there, too, as JSON and as a page to print; an existing folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DrillArgs) -> Result<ExitCode, CliError> {
    let (report, output): (Report, _) = match &args.drill {
        Drill::NodeTheft(args) => (node_theft::run(args)?, args.output()),
        Drill::HsmLoss(args) => (hsm_loss::run(args)?, args.output()),
        Drill::LostKek(args) => (lost_kek::run(args)?, args.output()),
    };
    let files = match &output.output {
        Some(folder) => report.write(folder)?,
        None => Vec::new(),
    };
    if output.json {
        print(&report.to_json())?;
    } else {
        let files = files.iter().map(|path| format!("report    {}\n", path.display()));
        print(&(report.to_text() + &files.collect::<String>()))?;
    }
    Ok(if report.holds { ExitCode::Done } else { ExitCode::DoesNotHold })
}

fn failure(code: ExitCode, why: impl Into<String>, hint: impl Into<String>) -> CliError {
    CliError { code, what: "the drill was not held".to_owned(), why: why.into(), hint: hint.into() }
}

fn load(path: &std::path::Path) -> Result<Config, CliError> {
    Config::load(path).map_err(|error| failure(ExitCode::BadUsage, error.to_string(), error.hint()))
}

/// The record of the KEK that seals.
fn active_record(config: &Config) -> Result<PathBuf, CliError> {
    match &config.kek.source {
        KekSource::Record(path) => Ok(path.clone()),
        KekSource::Keyring(path) => {
            let refused = |why: String, hint: String| failure(ExitCode::BadUsage, why, hint);
            let file = KeyringFile::read(path).map_err(|error| refused(error.to_string(), error.hint()))?;
            let entries = file.at(UtcTime::now());
            let active = entries.iter().find(|entry| entry.state == State::Active);
            let active = active.map(|entry| folder(path).join(entry.record.as_str()));
            active.ok_or_else(|| refused("no KEK is active".to_owned(), "hsm-kms keyring activate".to_owned()))
        }
    }
}
