//! `hsm-kms ceremony preflight`, `clone-check` and `verify-key`: what a token is and holds, without changing it.

use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::{failed, load, print, print_json, with_environment, witnessed_part};
use crate::ceremony::preflight::{self, CheckOutcome};
use crate::ceremony::{self, Console, ConsoleError, CopyPlan, KeyProof, Plan, Sameness};
use crate::cli::CliError;
use crate::config::Token;
use crate::exit::ExitCode;
use crate::pin::PinSource;
use crate::profile::UserKind;
use crate::record::{KekRecord, Sha256Digest};
use crate::secret::Pin;

/// Check machine, module and token for a plan
#[derive(Args, Debug)]
pub(super) struct PreflightArgs {
    /// The plan
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Directory of a rehearsal of the same plan
    #[arg(long, value_name = "DIR")]
    rehearsal: Option<PathBuf>,
    /// Print the PKCS#11 calls, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the checks as JSON to standard output
    #[arg(long)]
    json: bool,
}

/// Prove that another token holds a copy of the KEK
#[derive(Args, Debug)]
pub(super) struct CloneCheckArgs {
    #[command(flatten)]
    common: Common,
    /// Serial number of the token, as it stands in the plan under `copies`
    #[arg(long, value_name = "SERIAL")]
    copy: String,
    /// A descriptor to read the KEK from, which is then put in; given by a ceremony
    #[arg(long, hide = true, value_name = "NUMBER")]
    value_descriptor: Option<i32>,
}

/// Put the KEK into another token, from its shares
#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    common: Common,
    /// Serial number of the token, as it stands in the plan under `copies`
    #[arg(long, value_name = "SERIAL")]
    copy: String,
}

/// Prove that the token holds the KEK of a record
#[derive(Args, Debug)]
pub(super) struct VerifyKeyArgs {
    #[command(flatten)]
    common: Common,
}

/// Destroy the KEK of a record on one token; sent by `ceremony destroy`, never by hand
#[derive(Args, Debug)]
pub(super) struct DestroyKeyArgs {
    #[command(flatten)]
    common: Common,
    /// Serial number of the token
    #[arg(long, value_name = "SERIAL")]
    serial: String,
    /// Only see that it is gone
    #[arg(long)]
    gone: bool,
}

#[derive(Args, Debug)]
struct Common {
    /// The plan: it says how the token is reached
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// The record [default: the one in the plan's output directory]
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// A descriptor to read the PIN from, in place of a terminal
    #[arg(long, hide = true, value_name = "NUMBER")]
    pin_descriptor: Option<i32>,
    /// Print the PKCS#11 calls, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Write what was proved as JSON to standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn preflight(args: &PreflightArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.plan)?;
    let witnessed = witnessed_part(&plan, "preflight")?;
    if args.dry_run {
        return show_calls(ceremony::PREFLIGHT_CALLS, args.json);
    }
    with_environment(&plan.token.environment)?;
    let checks = preflight::alone(&plan, witnessed, args.rehearsal.as_deref());
    let checks =
        checks.map_err(|error| CliError { what: "the token cannot be looked at".to_owned(), ..failed(&error) })?;
    if args.json {
        print_json(&json!(checks))?;
    } else {
        print(&format!("{}\n", preflight::table(&checks)))?;
    }
    let holds = |outcome| matches!(outcome, CheckOutcome::Holds | CheckOutcome::Noted);
    Ok(if checks.iter().all(|check| holds(check.outcome)) { ExitCode::Done } else { ExitCode::DoesNotHold })
}

pub(super) fn clone_check(args: &CloneCheckArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.common.plan)?;
    let copy = copy_of(&plan, "clone-check", &args.copy)?;
    if let Some(descriptor) = args.value_descriptor {
        with_environment(&copy.token.environment)?;
        let (record, path) = record(&args.common, &plan)?;
        let pin = pin(&args.common, &copy.token)?;
        let proof = ceremony::import_copy(copy, &record, pin.as_ref(), descriptor).map_err(|error| failed(&error))?;
        return show(&proof, &path, args.common.json);
    }
    verify(&args.common, &plan, &copy.token, Some(&copy.serial), Sameness::Copy)
}

/// The copy of the plan with this serial number.
fn copy_of<'a>(plan: &'a Plan, command: &str, serial: &str) -> Result<&'a CopyPlan, CliError> {
    let copies = &witnessed_part(plan, command)?.copies;
    copies.iter().find(|copy| copy.serial == serial).ok_or_else(|| {
        let serials: Vec<_> = copies.iter().map(|copy| copy.serial.as_str()).collect();
        let hint = if serials.is_empty() {
            "add it under copies".to_owned()
        } else {
            format!("one of: {}", serials.join(", "))
        };
        CliError {
            code: ExitCode::BadUsage,
            what: "the token was not looked at".to_owned(),
            why: format!("the plan has no copy with serial number {serial:?}"),
            hint,
        }
    })
}

pub(super) fn restore(args: &RestoreArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.common.plan)?;
    let copy = copy_of(&plan, "restore", &args.copy)?;
    if args.common.dry_run {
        return show_calls(ceremony::RESTORE_CALLS, args.common.json);
    }
    with_environment(&copy.token.environment)?;
    let (record, path) = record(&args.common, &plan)?;
    let mut console = Console::new(None).map_err(|error| failed(&error.into()))?;
    let pin = pin(&args.common, &copy.token)?;
    let proof = ceremony::restore(copy, &record, pin.as_ref(), &mut console).map_err(|error| {
        console.stopped();
        CliError { what: "the KEK was not restored".to_owned(), ..failed(&error) }
    })?;
    show(&proof, &path, args.common.json)
}

pub(super) fn verify_key(args: &VerifyKeyArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.common.plan)?;
    verify(&args.common, &plan, &plan.token, None, Sameness::Original)
}

pub(super) fn destroy_key(args: &DestroyKeyArgs) -> Result<ExitCode, CliError> {
    let plan = load(&args.common.plan)?;
    let witnessed = witnessed_part(&plan, "destroy")?;
    let copy = witnessed.copies.iter().find(|copy| copy.serial == args.serial);
    let (token, sameness) = copy.map_or((&plan.token, Sameness::Original), |copy| (&copy.token, Sameness::Copy));
    with_environment(&token.environment)?;
    let record = record(&args.common, &plan)?.0;
    let digest = record.to_json().map(|text| Sha256Digest::of(text.as_bytes())).ok();
    if witnessed.destroys.is_none() || witnessed.destroys != digest {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "nothing was destroyed".to_owned(),
            why: "the plan does not destroy the KEK of this record".to_owned(),
            hint: "use `hsm-kms ceremony destroy`".to_owned(),
        });
    }
    let pin = pin(&args.common, token)?;
    if args.gone {
        let left = ceremony::count_keys(token, &args.serial, &record, pin.as_ref()).map_err(|error| failed(&error))?;
        print_json(&json!({"left": left}))?;
    } else {
        let proof = ceremony::destroy_key(token, &args.serial, &record, pin.as_ref(), sameness);
        print_json(&json!(proof.map_err(|error| failed(&error))?))?;
    }
    Ok(ExitCode::Done)
}

/// The record, and where it lies.
fn record(args: &Common, plan: &Plan) -> Result<(KekRecord, PathBuf), CliError> {
    let path = args.record.clone().unwrap_or_else(|| plan.output.join("kek-record.json"));
    let record = KekRecord::read(&path).map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: "the KEK record cannot be used".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    })?;
    Ok((record, path))
}

fn verify(
    args: &Common,
    plan: &Plan,
    token: &Token,
    serial: Option<&str>,
    sameness: Sameness,
) -> Result<ExitCode, CliError> {
    if args.dry_run {
        return show_calls(ceremony::VERIFY_CALLS, args.json);
    }
    with_environment(&token.environment)?;
    let (record, path) = record(args, plan)?;
    let pin = pin(args, token)?;
    let serial = serial.unwrap_or(&record.token.serial);
    let proof = ceremony::verify_key(token, serial, &record, pin.as_ref(), sameness).map_err(|error| CliError {
        what: "the token did not prove that it holds the KEK".to_owned(),
        ..failed(&error)
    })?;
    show(&proof, &path, args.json)
}

/// The PIN from its source, or typed in two halves; none where nobody logs in.
fn pin(args: &Common, token: &Token) -> Result<Option<Pin>, CliError> {
    if token.profile.login.user == UserKind::None {
        return Ok(None);
    }
    let source = args.pin_descriptor.map(PinSource::Descriptor).or_else(|| token.pin.clone());
    if let Some(source) = source {
        let pin =
            source.read(token.profile.login.pin).map_err(|error| failed(&crate::pkcs11::Error::from(error).into()))?;
        return Ok(Some(pin));
    }
    let untyped = |error: ConsoleError| CliError { what: "there is no PIN".to_owned(), ..failed(&error.into()) };
    let mut console = Console::new(None).map_err(untyped)?;
    let mut half = |name: &str| console.ask_hidden("pin", &format!("{name} half of the PIN")).map_err(untyped);
    let (first, second) = (half("first")?, half("second")?);
    let whole = zeroize::Zeroizing::new(format!("{}{}", first.expose_secret(), second.expose_secret()));
    if !token.profile.login.pin.fits(&whole) {
        let error = crate::pin::PinError::Form { form: token.profile.login.pin };
        return Err(failed(&crate::pkcs11::Error::from(error).into()));
    }
    Ok(Some(SecretString::from(whole.as_str())))
}

fn show(proof: &KeyProof, record: &Path, json: bool) -> Result<ExitCode, CliError> {
    if json {
        print_json(&json!(proof))?;
    } else {
        print(&format!(
            "the token with serial number {} holds the KEK of {}:\nall attributes are as recorded, {} of {} proof blobs opened\n",
            proof.serial,
            record.display(),
            proof.opened,
            proof.opened,
        ))?;
    }
    Ok(ExitCode::Done)
}

fn show_calls(calls: &[&str], json: bool) -> Result<ExitCode, CliError> {
    if json {
        print_json(&json!(calls))?;
    } else {
        print(&format!("{}\n", calls.join("\n")))?;
    }
    Ok(ExitCode::Done)
}
