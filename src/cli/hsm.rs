//! `hsm-kms hsm probe`: what the module in front of you really does.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{CliError, print};
use crate::exit::ExitCode;
use crate::pin::PinSource;
use crate::probe::{self, Failure, Probe, Report, Target};
use crate::profile::Profile;

/// Find out what an HSM really does
#[derive(Debug, Args)]
pub(super) struct HsmArgs {
    #[command(subcommand)]
    command: HsmCommand,
}

#[derive(Debug, Subcommand)]
enum HsmCommand {
    /// Try a module and token out with throw-away keys, and report what they do (docs/probe.md)
    Probe(ProbeArgs),
}

#[derive(Debug, Args)]
struct ProbeArgs {
    /// The PKCS#11 module
    #[arg(long, value_name = "PATH")]
    module: PathBuf,
    /// Label of the token
    #[arg(long, value_name = "LABEL")]
    token: String,
    /// File with the user PIN, mode 0600; without a PIN only module and token are looked at
    #[arg(long, value_name = "FILE", conflicts_with = "pin_environment")]
    pin_file: Option<PathBuf>,
    /// Environment variable with the user PIN
    #[arg(long, value_name = "NAME")]
    pin_environment: Option<String>,
    /// Text that the module takes at `C_Initialize`, where it needs one
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    init_reserved: Option<String>,
    /// Hold the module against a profile: its name, or the absolute path of a file
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "emit_profile")]
    json: bool,
    /// Print a draft profile instead of the report
    #[arg(long)]
    emit_profile: bool,
    /// Longest time for one step; a module that takes longer is taken to hang
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    step_limit: u64,
}

pub(super) fn run(args: HsmArgs) -> Result<ExitCode, CliError> {
    let HsmCommand::Probe(args) = args.command;
    let profile = args.profile.as_deref().map(Profile::named).transpose().map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the profile cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    let pin = args.pin_file.map(PinSource::File).or(args.pin_environment.map(PinSource::Environment));
    let target = Target {
        module: args.module,
        init_reserved: args.init_reserved,
        token: args.token,
        pin,
        profile: args.profile,
    };
    let mut line = ProgressLine { shown: std::io::stderr().is_terminal() };
    let mut watcher = |number, count, step: &str| line.show(number, count, step);
    let limit = Duration::from_secs(args.step_limit);
    let report = probe::run(Probe { target, profile: profile.clone(), limit, watcher: &mut watcher });
    line.clear();
    let report = report.map_err(failed)?;
    let text = if args.emit_profile {
        probe::draft(&report, profile.as_ref())
    } else if args.json {
        serde_json::to_string_pretty(&report).map(|json| json + "\n").map_err(|error| CliError {
            code: ExitCode::NotReachable,
            what: "the report cannot be written as JSON".to_owned(),
            why: error.to_string(),
            hint: "report this".to_owned(),
        })?
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        probe::text(&report, colour)
    };
    print(&text)?;
    Ok(exit_code(&report))
}

/// The hidden command.
pub(super) fn run_worker() -> Result<ExitCode, CliError> {
    probe::run_child().map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the probing process cannot run".to_owned(),
        why: error.to_string(),
        hint: "start `hsm-kms hsm probe`, which starts it itself".to_owned(),
    })
}

fn exit_code(report: &Report) -> ExitCode {
    let fits = match &report.profile {
        Some(comparison) => comparison.agrees && report.faults.is_empty() && report.clean_up.outcome.works(),
        None => report.is_fit() || report.logins == 0,
    };
    if fits { ExitCode::Done } else { ExitCode::DoesNotHold }
}

fn failed(failure: Failure) -> CliError {
    let code = [ExitCode::BadUsage, ExitCode::DoesNotHold].into_iter().find(|code| *code as u8 == failure.code);
    CliError {
        code: code.unwrap_or(ExitCode::NotReachable),
        what: "the probe cannot begin".to_owned(),
        why: failure.why,
        hint: failure.hint,
    }
}

/// One line on a terminal that names the step which runs.
struct ProgressLine {
    shown: bool,
}

impl ProgressLine {
    fn show(&mut self, number: usize, count: usize, step: &str) {
        if self.shown {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r\x1b[K{number:>2}/{count} {step} ... ").and_then(|()| out.flush());
        }
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
