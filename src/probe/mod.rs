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
mod errors;
mod identity;
mod kek;
mod keys;
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
use std::time::Duration;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

pub use self::candidates::{Candidate, name as seal_name};
pub use self::child::run as run_child;
pub use self::compare::{Comparison, Line};
pub use self::draft::draft;
pub use self::identity::{Identity, ModuleIdentity, TokenIdentity};
pub use self::outcome::{Outcome, Verdict};
use self::process::Process;
pub use self::report::{CleanUp, Fault, Report, Section};
use self::steps::{Answer, Step, Trial};
pub use self::steps::{Failure, Target};
pub use self::text::text;
use crate::exit::ExitCode;
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
    let logs_in = target.pin.is_some() || profile.as_ref().is_some_and(|profile| profile.login.user == UserKind::None);
    let mut driver = Driver {
        label: label()?,
        logs_in,
        limit,
        process: None,
        logins: 0,
        objects: None,
        faults: Vec::new(),
        given_up: None,
        number: 0,
        count: candidates.len() + OTHER_STEPS,
        watcher,
        target,
    };
    let Identity { module, token } = driver.begin()?;
    let untried = Outcome::untried(if logs_in { "no seal works" } else { "nobody logged in" });
    let mut report = Report {
        version: 1,
        tool: concat!("hsm-kms ", env!("CARGO_PKG_VERSION")).to_owned(),
        time: now(),
        path: driver.target.module.clone(),
        sha256: std::fs::read(&driver.target.module)
            .map(|bytes| data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
            .unwrap_or_default(),
        module,
        token,
        logins: 0,
        mechanisms: driver.section("mechanisms", Step::Mechanisms),
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
        clean_up: CleanUp { label: driver.label.clone(), left: Some(0), objects: None, outcome: Outcome::WORKS },
        profile: None,
    };
    if logs_in {
        try_all(&mut driver, &candidates, profile.as_ref(), &mut report);
    }
    report.logins = driver.logins;
    report.faults = driver.faults;
    report.profile = profile.as_ref().map(|profile| compare::compare(profile, &report));
    Ok(report)
}

/// Steps beside those for each way of sealing.
const OTHER_STEPS: usize = 14;

/// Everything that needs keys.
fn try_all(driver: &mut Driver<'_>, candidates: &[Candidate], profile: Option<&Profile>, report: &mut Report) {
    report.keys = driver.section("keys", Step::Keys);
    let keys = report.keys.found();
    let [in_session, on_token] =
        [keys.is_some_and(|keys| keys.session.works()), keys.is_some_and(|keys| keys.token.works())];
    // Session keys leave nothing behind. Where results hang on it, the key lies on the token as a KEK does.
    let place = !in_session;
    for (number, candidate) in candidates.iter().enumerate() {
        let step = Step::Seal(Trial { candidate: number, on_token: place });
        let finding = driver.ask(&format!("seal {}", candidate.name), step);
        report.seals.insert(candidate.name.clone(), finding.unwrap_or_else(seals::SealFinding::from));
    }
    report.sessions = driver.section("sessions", Step::Sessions);
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
        report.attributes = driver.section("attributes", Step::Attributes { trial: lasting, in_session });
        report.defaults = driver.section("defaults", Step::Defaults { on_token });
        report.secrecy = driver.section("secrecy", Step::Secrecy { on_token });
        report.sizes = driver.section("size queries", Step::Sizes(trial));
        report.small_buffer = driver.section("small buffer", Step::SmallBuffer(trial));
        report.short_ciphertext =
            driver.ask("short ciphertext", Step::ShortCiphertext(trial)).unwrap_or_else(|lost| lost);
        report.speed = driver.section("speed", Step::Speed(lasting));
        let omit = omit(candidate, report);
        report.kek = driver.section("KEK", Step::Kek { trial, omit });
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

/// Asks the probing process, and replaces one that was lost.
struct Driver<'a> {
    target: Target,
    label: String,
    logs_in: bool,
    limit: Duration,
    process: Option<Process>,
    logins: u32,
    /// How many there were at the first login.
    objects: Option<usize>,
    faults: Vec<Fault>,
    /// Why no further step is tried.
    given_up: Option<String>,
    number: usize,
    count: usize,
    watcher: &'a mut dyn FnMut(usize, usize, &str),
}

/// After so many lost processes the rest is not tried: each one more is another login.
const MOST_FAULTS: usize = 8;

impl Driver<'_> {
    /// The first process: module, token, login.
    fn begin(&mut self) -> Result<Identity, Failure> {
        self.watch("module and token");
        self.start()
    }

    /// A process that is logged in.
    fn start(&mut self) -> Result<Identity, Failure> {
        let mut process = Process::spawn().map_err(|error| {
            let why = format!("the probing process cannot be started: {error}");
            Failure::new(ExitCode::NotReachable, why, "check limits on processes and memory")
        })?;
        let step = Step::Start { target: self.target.clone(), label: self.label.clone() };
        let identity = ask_first(&mut process, &step, self.limit, "loading the module")?;
        if self.logs_in {
            self.logins += 1;
            let objects = ask_first(&mut process, &Step::Login, self.limit, "the login")?;
            self.objects.get_or_insert(objects);
        }
        self.process = Some(process);
        Ok(identity)
    }

    fn section<T: DeserializeOwned>(&mut self, name: &str, step: Step) -> Section<T> {
        self.ask(name, step).map_or_else(Section::Not, Section::Found)
    }

    fn watch(&mut self, name: &str) {
        self.number += 1;
        (self.watcher)(self.number, self.count, name);
    }

    fn ask<T: DeserializeOwned>(&mut self, name: &str, step: Step) -> Result<T, Outcome> {
        self.watch(name);
        if let Some(why) = &self.given_up {
            return Err(Outcome::untried(why.clone()));
        }
        if self.process.is_none()
            && let Err(failure) = self.start()
        {
            // Not tried again: it could be the PIN's last attempt.
            self.given_up = Some(format!("no new start: {}", failure.why));
            return self.ask_nothing();
        }
        let Some(process) = &mut self.process else { return self.ask_nothing() };
        match process.ask(&step, self.limit) {
            Ok(Answer::Found(value)) => {
                serde_json::from_value(value).map_err(|error| Outcome::differs(format!("unreadable answer: {error}")))
            }
            Ok(Answer::Failed(failure)) => Err(failure.outcome),
            Err(lost) => {
                self.process = None;
                self.faults.push(Fault { step: name.to_owned(), outcome: lost.clone() });
                if self.faults.len() >= MOST_FAULTS {
                    self.given_up = Some(format!("{MOST_FAULTS} steps before were lost"));
                }
                Err(lost)
            }
        }
    }

    fn ask_nothing<T>(&self) -> Result<T, Outcome> {
        Err(Outcome::untried(self.given_up.clone().unwrap_or_default()))
    }

    /// Destroys what is left. Done also where nothing else is tried any more.
    fn clean_up(&mut self) -> CleanUp {
        if self.given_up.as_ref().is_some_and(|_| self.faults.len() >= MOST_FAULTS) {
            self.given_up = None;
        }
        let answer = self.ask::<(usize, usize)>("clean up", Step::CleanUp);
        let found = answer.as_ref().ok().copied();
        let objects = self.objects.zip(found.map(|(_, objects)| objects));
        CleanUp {
            label: self.label.clone(),
            left: found.map(|(left, _)| left),
            objects,
            outcome: match (answer, objects) {
                (Err(outcome), _) => outcome,
                (Ok((left @ 1.., _)), _) => Outcome::differs(format!("{left} could not be destroyed")),
                (Ok(_), Some((before, after))) if after > before => {
                    Outcome::differs(format!("{} more objects than before, without the label", after - before))
                }
                (Ok(_), _) => Outcome::WORKS,
            },
        }
    }
}

/// Asks for one of the first steps, without which there is no probe.
fn ask_first<T: DeserializeOwned>(
    process: &mut Process,
    step: &Step,
    limit: Duration,
    what: &str,
) -> Result<T, Failure> {
    let hint = "check the module and its own configuration; it was not tried again";
    let failure = |why: String| Failure::new(ExitCode::NotReachable, why, hint);
    match process.ask(step, limit) {
        Ok(Answer::Found(value)) => serde_json::from_value(value).map_err(|error| failure(error.to_string())),
        Ok(Answer::Failed(failure)) => Err(failure),
        Err(lost) => Err(failure(format!("{what}: {lost}"))),
    }
}

fn label() -> Result<String, Failure> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| {
        Failure::new(ExitCode::NotReachable, format!("no kernel randomness: {error}"), "check the system")
    })?;
    Ok(format!("hsm-kms-probe-{}", data_encoding::HEXLOWER.encode(&random)))
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
