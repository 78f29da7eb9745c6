//! `hsm-kms ceremony sign`: adds a person's signature to the evidence.

use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::ceremony::evidence::{self, EvidenceError, Signed, Source};
use crate::cli::CliError;
use crate::exit::ExitCode;

#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// The ceremony's directory, with the statement
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Who signs, by the name in the plan
    #[arg(long = "as", value_name = "NAME")]
    name: String,
    #[command(flatten)]
    source: SourceArgs,
    /// Write what was stored as JSON to standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// Sign with this OpenSSH key: the private one, or the public one of a key that an agent or a security key holds
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Take the signature in this file, made elsewhere by `ssh-keygen -Y sign -n hsm-kms-ceremony`
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

pub(super) fn run(args: SignArgs) -> Result<ExitCode, CliError> {
    let source = match (args.source.key, args.source.signature) {
        (Some(key), _) => Source::Key(key),
        (None, signature) => Source::Signature(signature.unwrap_or_default()),
    };
    let signed = evidence::sign(&args.directory, &args.name, &source).map_err(|error| failed(&error))?;
    print(&if args.json { json(&signed) } else { text(&signed) })?;
    Ok(ExitCode::Done)
}

fn json(signed: &Signed) -> String {
    let json = serde_json::json!({"name": signed.name, "signature": signed.path, "missing": signed.missing});
    format!("{json:#}\n")
}

fn text(Signed { name, path, missing }: &Signed) -> String {
    let missing =
        if missing.is_empty() { "all have signed".to_owned() } else { format!("to sign: {}", missing.join(", ")) };
    format!("{name} signed: {}\n{missing}\n", path.display())
}

fn failed(error: &EvidenceError) -> CliError {
    let code = match error {
        EvidenceError::DoesNotHold(_) | EvidenceError::NotTheirs { .. } => ExitCode::DoesNotHold,
        _ => ExitCode::BadUsage,
    };
    CliError { code, what: "nothing was signed".to_owned(), why: error.to_string(), hint: error.hint() }
}
