//! The probe: what the module in front of you really does, found out by trying it with throw-away keys.
//!
//! A module may hang or crash when it is tried, so that a process of its own does the trying, one step at a time; one that is
//! lost is replaced, and the step that lost it is a finding. docs/probe.md says what is tried, and what never happens.

mod attributes;
mod bench;
mod candidates;
mod child;
mod compare;
mod draft;
mod driver;
mod errors;
mod identity;
mod kek;
mod keys;
mod look;
mod mechanisms;
mod outcome;
mod process;
mod report;
mod seals;
mod sessions;
mod sizes;
mod speed;
mod steps;
mod text;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub use self::candidates::{Candidate, name as seal_name};
pub use self::child::run as run_child;
pub use self::compare::{Comparison, Line};
pub use self::draft::draft;
use self::driver::Driver;
pub use self::identity::{Identity, ModuleIdentity, TokenIdentity};
pub use self::look::{Look, Seen, TokenLook, look};
pub use self::outcome::{Outcome, Verdict};
pub use self::report::{CleanUp, Fault, Report, Section};
pub use self::steps::{Failure, Target};
use self::steps::{Step, Trial};
pub use self::text::text;
use crate::profile::{Profile, UserKind};
use crate::seal::Seal;

/// A probe to run.
pub struct Probe<'a> {
    /// What to probe.
    pub target: Target,
    /// The profile that the target names.
    pub profile: Option<Profile>,
    /// Longest time for one step.
    pub limit: Duration,
    /// Told of each step when it begins, and of how many there are.
    pub watcher: &'a mut dyn FnMut(usize, usize, &str),
}

/// Runs the probe. `Err`: it could not even begin, or the login failed.
pub fn run(probe: Probe<'_>) -> Result<Report, Failure> {
    let Probe { target, profile, limit, watcher } = probe;
    let candidates = candidates::candidates(profile.as_ref());
    let path = target.module.clone();
    let logs_in = target.pin.is_some() || profile.as_ref().is_some_and(|profile| profile.login.user == UserKind::None);
    let count = if logs_in { candidates.len() + OTHER_STEPS } else { STEPS_WITHOUT_LOGIN };
    let mut driver = Driver::new(target, limit, count, watcher)?;
    let Identity { module, token } = driver.begin()?;
    let untried = Outcome::untried(if logs_in { "no seal works" } else { "nobody logged in" });
    let mut report = Report {
        version: 1,
        tool: concat!("hsm-kms ", env!("CARGO_PKG_VERSION")).to_owned(),
        time: now(),
        sha256: sha256(&path),
        path,
        module,
        token,
        logins: 0,
        interfaces: driver.section("interfaces", &Step::Interfaces),
        mechanisms: driver.section("mechanisms", &Step::Mechanisms),
        keys: Section::Not(untried.clone()),
        seals: BTreeMap::new(),
        chosen: None,
        attributes: Section::Not(untried.clone()),
        defaults: Section::Not(untried.clone()),
        secrecy: Section::Not(untried.clone()),
        sizes: Section::Not(untried.clone()),
        small_buffer: Section::Not(untried.clone()),
        short_ciphertext: untried.clone(),
        sessions: Section::Not(untried.clone()),
        speed: Section::Not(untried.clone()),
        kek: Section::Not(untried.clone()),
        faults: Vec::new(),
        clean_up: CleanUp { label: driver.label().to_owned(), left: Some(0), objects: None, outcome: Outcome::WORKS },
        profile: None,
    };
    if logs_in {
        driver.log_in()?;
        try_all(&mut driver, &candidates, profile.as_ref(), &mut report);
    }
    (report.logins, report.faults) = driver.end();
    report.profile = profile.as_ref().map(|profile| compare::compare(profile, &report));
    Ok(report)
}

/// Steps beside those for each way of sealing.
const OTHER_STEPS: usize = 15;

/// Module and token, interfaces, mechanisms.
const STEPS_WITHOUT_LOGIN: usize = 3;

/// Everything that needs keys.
fn try_all(driver: &mut Driver<'_>, candidates: &[Candidate], profile: Option<&Profile>, report: &mut Report) {
    report.keys = driver.section("keys", &Step::Keys);
    let keys = report.keys.found();
    let [in_session, on_token] =
        [keys.is_some_and(|keys| keys.session.works()), keys.is_some_and(|keys| keys.token.works())];
    // Session keys leave nothing behind. Where results hang on it, the key lies on the token as a KEK does.
    let place = !in_session;
    for (number, candidate) in candidates.iter().enumerate() {
        let step = Step::Seal(Trial { candidate: number, on_token: place });
        let finding = driver.ask(&format!("seal {}", candidate.name), &step);
        report.seals.insert(candidate.name.clone(), finding.unwrap_or_else(seals::SealFinding::from));
    }
    report.sessions = driver.section("sessions", &Step::Sessions);
    let works = |candidate: &Candidate| report.seals.get(&candidate.name).is_some_and(|seal| seal.outcome.works());
    let own = profile.and_then(|profile| profile.seal).map(|seal| candidates::name(&seal.sealing));
    let rank = |(number, candidate): &(usize, &Candidate)| {
        let seal = match candidate.sealing.form.seal {
            Seal::AesGcm => 0,
            Seal::YubicoCcm => 1,
            Seal::AesKwp => 2,
            Seal::AesCbcHmac => 3,
        };
        (own.as_ref() != Some(&candidate.name), seal, *number)
    };
    let chosen = candidates.iter().enumerate().filter(|(_, candidate)| works(candidate)).min_by_key(rank);
    if let Some((number, candidate)) = chosen {
        report.chosen = Some(candidate.name.clone());
        let trial = Trial { candidate: number, on_token: place };
        let lasting = Trial { on_token, ..trial };
        report.attributes = driver.section("attributes", &Step::Attributes { trial: lasting, in_session });
        report.defaults = driver.section("defaults", &Step::Defaults { on_token });
        report.secrecy = driver.section("secrecy", &Step::Secrecy { on_token });
        report.sizes = driver.section("size queries", &Step::Sizes(trial));
        report.small_buffer = driver.section("small buffer", &Step::SmallBuffer(trial));
        report.short_ciphertext =
            driver.ask("short ciphertext", &Step::ShortCiphertext(trial)).unwrap_or_else(|lost| lost);
        report.speed = driver.section("speed", &Step::Speed(lasting));
        let omit = omit(candidate, report);
        report.kek = driver.section("KEK", &Step::Kek { trial, omit });
    }
    report.clean_up = driver.clean_up();
}

/// The attributes that a KEK's template has, and this token refuses, beside those that are omitted anyway.
fn omit(candidate: &Candidate, report: &Report) -> Vec<u64> {
    let mut omit = candidate.omit.clone();
    for (name, finding) in report.attributes.found().into_iter().flatten() {
        if finding.generate.is_refusal()
            && let Some(number) = bench::usual(name)
            && !omit.contains(&number)
        {
            omit.push(number);
        }
    }
    omit
}

fn sha256(path: &Path) -> String {
    let bytes = std::fs::read(path);
    bytes.map(|bytes| data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))).unwrap_or_default()
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
