//! A rehearsal: the same plan by the same engine, on a token that is thrown away. Nothing of it names the plan's own token, so it
//! cannot reach it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::evidence;
use super::keys::random;
use super::output::RECORD_FILE;
use super::plan::CopyPlan;
use super::preflight::{Check, CheckOutcome};
use super::transcript::{self, EventKind};
use super::{CeremonyError, Plan, PlanError, WitnessedPlan};
use crate::record::Sha256Digest;

/// The PIN of every rehearsal, in its two halves: the token is thrown away, so that it is no secret.
pub const PIN_HALVES: [&str; 2] = ["1234", "5678"];

/// How long a rehearsal counts, in days.
const DAYS: i64 = 30;

/// A throw-away token, and the plan that names it in place of the real one. Removed when this goes.
pub struct Stage {
    directory: PathBuf,
    plan: PathBuf,
}

impl Stage {
    /// Makes the token with SoftHSM2's own tool. `output`: where the rehearsal's evidence goes, an existing empty directory.
    pub fn new(witnessed: &WitnessedPlan, output: &Path) -> Result<Self, CeremonyError> {
        let name = format!("hsm-kms-rehearsal-{}", data_encoding::HEXLOWER.encode(&random::<8>()?));
        let directory = std::env::temp_dir().join(name);
        let system = |what| move |source| CeremonyError::System { what, source };
        DirBuilder::new().mode(0o700).create(&directory).map_err(system("no directory for the rehearsal's token"))?;
        let stage = Self { plan: directory.join("plan.json"), directory };
        let configuration =
            configure(&stage.directory.join("token")).map_err(system("the rehearsal's token cannot be configured"))?;
        let serial = initialise(&configuration)?;
        let mut plan: Value = serde_json::from_slice(&witnessed.lock.json)
            .map_err(|_| CeremonyError::Proof("the plan cannot be read again"))?;
        let section = |configuration: &Path| json!({"profile": "softhsm2", "label": LABEL, "environment": {"SOFTHSM2_CONF": configuration}});
        let mut copies = Vec::new();
        for number in 0..witnessed.copies.len() {
            let place = configure(&stage.directory.join(format!("copy-{number}")))
                .map_err(system("a copy cannot be configured"))?;
            // A token that is copied brings its content along; one that a KEK is imported into must be there before.
            let serial = match witnessed.import {
                Some(_) => initialise(&place)?,
                None => copy_serial(&serial, number),
            };
            copies.push(json!({"serial": serial, "token": section(&place)}));
        }
        let changes = [
            ("token", section(&configuration)),
            ("serial", json!(serial)),
            ("output", json!(output)),
            ("copies", json!(copies)),
        ];
        if let Value::Object(plan) = &mut plan {
            plan.extend(changes.map(|(name, value)| (name.to_owned(), value)));
        }
        fs::write(&stage.plan, plan.to_string()).map_err(system("the rehearsal's plan cannot be written"))?;
        Ok(stage)
    }

    /// File of the plan that names the throw-away token.
    pub fn plan_file(&self) -> &Path {
        &self.plan
    }

    /// That plan. It counts as the plan that is rehearsed: its digest is the same.
    pub fn plan(&self, rehearsed: &WitnessedPlan) -> Result<Plan, PlanError> {
        let mut plan = Plan::load(&self.plan)?;
        if let Some(witnessed) = &mut plan.witnessed {
            witnessed.lock = rehearsed.lock.clone();
        }
        Ok(plan)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A throw-away token that stays is no harm.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A configuration of SoftHSM2 in this folder, with an empty folder `tokens` beside it.
pub fn configure(directory: &Path) -> std::io::Result<PathBuf> {
    let tokens = directory.join("tokens");
    fs::create_dir_all(&tokens)?;
    let file = directory.join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    fs::write(&file, text)?;
    Ok(file)
}

/// Label of each throw-away token.
pub const LABEL: &str = "REHEARSAL";

/// Initialises a throw-away token with the PIN of [`PIN_HALVES`], and returns its serial number.
pub fn initialise(configuration: &Path) -> Result<String, CeremonyError> {
    let tool = |arguments: &[&str]| {
        let output = Command::new("softhsm2-util").args(arguments).env("SOFTHSM2_CONF", configuration).output();
        let output = output.map_err(|source| CeremonyError::System {
            what: "a rehearsal needs SoftHSM2 (package softhsm2), and softhsm2-util cannot be run",
            source,
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(CeremonyError::System { what: "softhsm2-util failed", source: std::io::Error::other(said) })
    };
    let pin = PIN_HALVES.concat();
    tool(&["--init-token", "--free", "--label", LABEL, "--so-pin", &pin, "--pin", &pin])?;
    let slots = tool(&["--show-slots"])?;
    let serial = slots.lines().find_map(|line| line.trim().strip_prefix("Serial number:").map(str::trim));
    let serial = serial.filter(|serial| !serial.is_empty()).map(str::to_owned);
    serial.ok_or(CeremonyError::Proof("softhsm2-util does not tell the serial number of its token"))
}

/// A serial number like the token's, another one for each copy.
fn copy_serial(serial: &str, number: usize) -> String {
    let keep = serial.get(..serial.len().saturating_sub(2)).unwrap_or_default();
    let last = format!("{number:02x}");
    // The last two digits of the token's own are not those of a copy.
    if serial.ends_with(&last) { format!("{keep}f{number:x}") } else { format!("{keep}{last}") }
}

/// What the vendor's tool does in a real ceremony: the copy gets what is on the token. SoftHSM2 keeps the serial number in the
/// token's own file, so that a plain copy would pass for the token itself.
pub(super) fn copy_token(plan: &Plan, serial: &str, copy: &CopyPlan) -> Result<(), CeremonyError> {
    let tokens = |environment: &std::collections::BTreeMap<String, String>| {
        let configuration = environment.get("SOFTHSM2_CONF").map(PathBuf::from)?;
        Some(configuration.parent()?.join("tokens"))
    };
    let places = tokens(&plan.token.environment).zip(tokens(&copy.token.environment));
    let (from, to) = places.ok_or(CeremonyError::Proof("a rehearsal's token has no folder"))?;
    copy_folder(&from, &to, serial.as_bytes(), copy.serial.as_bytes())
        .map_err(|source| CeremonyError::System { what: "the rehearsal's token cannot be copied", source })
}

fn copy_folder(from: &Path, to: &Path, serial: &[u8], other: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = (entry?, to);
        let target = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target, serial, other)?;
            continue;
        }
        let mut content = fs::read(entry.path())?;
        let place = content.windows(serial.len().max(1)).position(|part| part == serial);
        let name = entry.file_name();
        if let (Some(start), true) = (place, name == "token.object" && serial.len() == other.len()) {
            content.splice(start..start + serial.len(), other.iter().copied());
        }
        fs::write(target, content)?;
    }
    Ok(())
}

/// Whether this plan was rehearsed, and not too long ago.
pub(super) fn check(directory: Option<&Path>, witnessed: &WitnessedPlan) -> Check {
    let found = match directory {
        None => Err("no rehearsal of this plan was given: --rehearsal DIRECTORY".to_owned()),
        Some(directory) => passed(directory, &witnessed.lock.digest),
    };
    let (outcome, found) = match found {
        Ok(found) => (CheckOutcome::Holds, found),
        Err(found) => (CheckOutcome::NeedsException, found),
    };
    Check { name: "rehearsal", outcome, found }
}

fn passed(directory: &Path, plan: &Sha256Digest) -> Result<String, String> {
    let text = |error: std::io::Error| format!("{}: {error}", directory.display());
    let bytes = fs::read(directory.join(transcript::TRANSCRIPT_FILE)).map_err(text)?;
    let events = transcript::verify(&bytes, plan).map_err(|fault| format!("{}: {fault}", directory.display()))?;
    let said = |position: Option<&transcript::Event>, name: &str| {
        position.and_then(|event| event.data.get(name)).and_then(Value::as_str).map(str::to_owned)
    };
    if said(events.first(), "kind").as_deref() != Some("rehearsal") {
        return Err(format!("{}: that was no rehearsal", directory.display()));
    }
    let last = events.last().filter(|event| event.kind == EventKind::Closed);
    let digest = evidence::file_digest(&directory.join(RECORD_FILE)).map_err(|error| error.to_string())?;
    let time = last.map(|event| event.time).ok_or_else(|| "the rehearsal was not closed".to_owned())?;
    if said(last, "record_sha256") != Some(digest.to_string()) {
        return Err("the rehearsal's record is not the one that its transcript names".to_owned());
    }
    let days = time.days_ago();
    if !(0..=DAYS).contains(&days) {
        return Err(format!("the rehearsal was {days} days ago, and counts for {DAYS}"));
    }
    Ok(format!("passed on {time}"))
}
