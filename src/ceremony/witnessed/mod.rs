//! A ceremony before people: one step after the other, each written down before the next begins.
//!
//! After a crash it runs again from its first step, with the people who are then there; only the key is not made again, but found
//! by what the transcript says of it. So no step needs to know how far it had come.

mod backup;
mod closing;
mod destruction;
mod key;
mod opening;
mod report;
mod shares;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::closing::finish;
pub use self::destruction::destroy;
use self::key::EarlierKeys;
use super::console::Console;
use super::copies::KeyProof;
use super::evidence;
use super::import::Restored;
use super::output::{check_empty, write_new};
use super::people::{Person, Role};
use super::prove::{self, ReadBack};
use super::site::Site;
use super::steps::{Owner, Step, StepId, steps};
use super::transcript::{CeremonyKind, Event, EventKind, Opening, Transcript, TranscriptError};
use super::{CeremonyError, Plan, WitnessedPlan, without_core_dumps};
use crate::attributes::Attributes;
use crate::record::{
    Ceremony, CeremonyId, KekRecord, Kind, Participant, Proof, Sha256Digest, ShareSet, TokenCopy, UtcTime, Witnessed,
};

/// How a ceremony is run.
pub struct Options<'a> {
    /// What it is held for.
    pub kind: CeremonyKind,
    /// The plan's file: copies are proved in processes of their own, which read it again.
    pub plan: &'a Path,
    /// Go on with one that was interrupted.
    pub resume: bool,
    /// Directory of a rehearsal of the same plan.
    pub rehearsal: Option<&'a Path>,
    /// Record of the KEK that this one follows.
    pub previous: Option<&'a Path>,
}

/// What a ceremony made.
pub struct Closed {
    /// The record, as written.
    pub record: KekRecord,
    /// The directory with record and evidence.
    pub directory: PathBuf,
    /// Hash of the last event.
    pub head: Sha256Digest,
    /// What it was held for.
    pub kind: CeremonyKind,
}

/// A ceremony that is being held.
struct Run<'a> {
    plan: &'a Plan,
    witnessed: &'a WitnessedPlan,
    options: &'a Options<'a>,
    console: &'a mut Console,
    transcript: Transcript,
    id: CeremonyId,
    steps: Vec<Step>,
    exceptions: BTreeMap<String, String>,
    /// Exceptions that were needed, in words.
    used: Vec<String>,
    /// Who is there.
    present: Vec<&'a Person>,
    earlier: EarlierKeys,
    /// The shares that restore the KEK, if it came from outside.
    shares: Option<ShareSet>,
    /// The KEK itself then, until each token has it.
    restored: Option<Restored>,
}

/// Holds the ceremony of a plan that makes a KEK.
pub fn run(
    plan: &Plan,
    witnessed: &WitnessedPlan,
    options: &Options<'_>,
    console: &mut Console,
) -> Result<Closed, CeremonyError> {
    if let Some(mut run) = begin(plan, witnessed, options, console)? {
        run.hold()?;
    }
    finish(plan, witnessed)
}

/// Begins a ceremony, or goes on with one. `None`: it is closed already.
fn begin<'a>(
    plan: &'a Plan,
    witnessed: &'a WitnessedPlan,
    options: &'a Options<'a>,
    console: &'a mut Console,
) -> Result<Option<Run<'a>>, CeremonyError> {
    without_core_dumps()?;
    let tool_sha256 = program_digest()?;
    let (transcript, id, events, torn) = if options.resume {
        let resumed = Transcript::resume(&plan.output, &witnessed.lock.digest);
        if matches!(resumed, Err(TranscriptError::Closed { .. })) {
            return Ok(None);
        }
        let (transcript, events, torn) = resumed?;
        let id = ceremony_id(&events)?;
        (transcript, id, events, torn)
    } else {
        check_empty(&plan.output)?;
        write_new(&plan.output.join(evidence::PLAN_FILE), &witnessed.lock.json)?;
        let id = CeremonyId::new(super::keys::random()?);
        let opening = Opening {
            ceremony_id: id,
            kind: options.kind,
            plan_sha256: witnessed.lock.digest,
            tool: super::TOOL.to_owned(),
            tool_sha256,
        };
        (Transcript::create(&plan.output, &opening)?, id, Vec::new(), 0)
    };
    let mut run = Run {
        plan,
        witnessed,
        options,
        console,
        transcript,
        id,
        steps: steps(plan, witnessed),
        exceptions: exceptions(&events),
        used: Vec::new(),
        present: Vec::new(),
        earlier: EarlierKeys::of(&events),
        shares: None,
        restored: None,
    };
    if options.resume {
        let data = json!({"torn_bytes": torn, "tool": super::TOOL, "tool_sha256": tool_sha256});
        run.write("resumed", EventKind::Resumed, data)?;
    }
    if run.console.is_answered_from_file() && options.kind != CeremonyKind::Rehearsal {
        let reason = "they come from a file, not from people";
        run.used.push(format!("answers: {reason}"));
        run.write("people", EventKind::Exception, json!({"check": "answers", "reason": reason}))?;
    }
    Ok(Some(run))
}

impl Run<'_> {
    fn hold(&mut self) -> Result<(), CeremonyError> {
        self.open()?;
        let site = self.preflight()?;
        let login = self.login(&site)?;
        let mut keys = self.make(&login)?;
        let proved = self.prove(&site, &keys).map_err(|cause| {
            self.console.stopped();
            if cause.is_interruption() { cause } else { self.destroy(&login, &mut keys, cause) }
        })?;
        // From here on it is a KEK, and there may be copies of it: whatever happens, it stays.
        let draft = self.record(&site, &proved, Vec::new())?;
        let copies = self.copies(&draft)?;
        self.step(StepId::Attestation, json!({}), |run| {
            run.console.tell("This release reads no vendor's attestation of a secret key. The record says \"none\".");
            Ok(((), json!({"attestation": "none"})))
        })?;
        self.close(&site, &proved, copies)
    }

    /// Everything that must be true of the key.
    fn prove(&mut self, site: &Site, keys: &super::keys::Keys) -> Result<Proved, CeremonyError> {
        let session = site.token.open_session()?;
        let read = self.step(StepId::ReadBack, json!({"session": "new"}), |run| {
            run.console.begin("read the attributes");
            let read = prove::read_back(run.plan, &session, keys)?;
            run.console.done(&read.summary());
            let data = json!({
                "attributes": in_words(&read.kek.attributes),
                "mac_key_attributes": read.mac.as_ref().map(|key| in_words(&key.attributes)),
                "deviations": read.deviations,
            });
            Ok((read, data))
        })?;
        self.step(StepId::NegativeTests, json!({"keys": keys.labels()}), |run| {
            run.console.begin("try what the token must refuse");
            let refusals = prove::refusals(run.plan, &session, keys, &read)?;
            run.console.done(&format!("{} attempts, none made a key less secret", refusals.len()));
            Ok(((), json!({"refusals": refusals})))
        })?;
        let proofs = self.step(StepId::Proofs, json!({"count": prove::PROOFS}), |run| {
            run.console.begin("seal and open proof blobs");
            let proofs = prove::proofs(run.plan, &session, &run.id, &read)?;
            run.console.done(&format!("{} proof blobs; a changed blob and a wrong context were refused", proofs.len()));
            let digests: Vec<_> = proofs.iter().map(|proof| proof.challenge_sha256.to_string()).collect();
            Ok((proofs, json!({"challenge_sha256": digests})))
        })?;
        Ok(Proved { read, proofs })
    }

    /// The record of what was proved so far.
    fn record(&self, site: &Site, proved: &Proved, copies: Vec<TokenCopy>) -> Result<KekRecord, CeremonyError> {
        let Proved { read, proofs } = proved;
        let people = self.present.iter().map(|person| Participant { name: person.name.to_string(), role: person.role });
        let witnessed = Witnessed {
            plan_sha256: self.witnessed.lock.digest,
            transcript_head: self.transcript.head(),
            origin: self.plan.origin(),
            people: people.collect(),
            copies,
            shares: self.shares,
            exceptions: self.used.clone(),
            previous_record_sha256: self.witnessed.previous,
        };
        Ok(KekRecord::new(
            if self.options.kind == CeremonyKind::Rehearsal { Kind::Rehearsal } else { Kind::Production },
            Ceremony { id: self.id, time: UtcTime::now(), tool: super::TOOL.to_owned() },
            self.plan.cluster.clone(),
            self.plan.token.profile.full_name(),
            site.module_record(&self.plan.token)?,
            site.token_record(),
            read.kek.clone(),
            read.mac.clone(),
            self.plan.recipients.clone(),
            proofs.clone(),
            read.deviations.clone(),
            Some(witnessed),
        ))
    }

    /// Shows the step, writes down that it begins, does it, and writes down what came of it.
    fn step<T>(
        &mut self,
        id: StepId,
        intent: Value,
        work: impl FnOnce(&mut Self) -> Result<(T, Value), CeremonyError>,
    ) -> Result<T, CeremonyError> {
        self.show(id)?;
        self.write(id.name(), EventKind::Intent, intent)?;
        match work(self) {
            Ok((value, data)) => {
                self.write(id.name(), EventKind::Result, data)?;
                Ok(value)
            }
            Err(error) => {
                self.console.stopped();
                // Into a transcript that cannot be written goes nothing, and that it cannot is what is told.
                if !matches!(error, CeremonyError::Transcript(_)) {
                    self.write(id.name(), EventKind::Result, json!({"failed": error.to_string()}))?;
                }
                Err(error)
            }
        }
    }

    /// The screen of a step.
    fn show(&mut self, id: StepId) -> Result<(), CeremonyError> {
        let total = self.steps.len();
        let Some((number, step)) = self.steps.iter().enumerate().find(|(_, step)| step.id == id) else { return Ok(()) };
        let who = self.owner(step.owner);
        let stamp = self.options.kind.stamp().map(|stamp| format!("{stamp}, ")).unwrap_or_default();
        let title = format!("{stamp}{} of {total}: {}", number + 1, step.title);
        let minutes = format!("{} min", step.minutes);
        let lines = [("Who", who.as_str()), ("What", step.what), ("Why", step.why)];
        self.console.heading(&title, &minutes, &lines);
        Ok(self.console.pause()?)
    }

    /// Who acts, by name.
    fn owner(&self, owner: Owner) -> String {
        let of = |role: Role| {
            let named: Vec<_> = self
                .witnessed
                .people
                .all()
                .iter()
                .filter(|person| person.role == role)
                .map(|p| p.name.as_str())
                .collect();
            named.join(", ")
        };
        match owner {
            Owner::Everybody => "everybody, one after the other".to_owned(),
            Owner::One(role) => format!("{} ({})", of(role), role.word()),
            Owner::PinHolders => {
                let holders = self.witnessed.people.pin_holders(|person| self.is_present(person));
                let names: Vec<_> = holders.iter().map(|person| person.name.as_str()).collect();
                format!("{}, one after the other", names.join(" and "))
            }
            Owner::EachCustodian => "each custodian alone; the others leave the screen".to_owned(),
            Owner::Program => "the program; all watch".to_owned(),
        }
    }

    fn is_present(&self, person: &Person) -> bool {
        self.present.iter().any(|present| present.name == person.name)
    }

    /// Writes down an event, and makes sure that it is on the disk.
    fn write(&mut self, step: &str, kind: EventKind, data: Value) -> Result<(), CeremonyError> {
        self.transcript.append(step, kind, object(data))?;
        Ok(())
    }

    /// A check that does not hold passes only by an exception that somebody answers for.
    fn except(&mut self, check: &'static str, found: &str) -> Result<(), CeremonyError> {
        let Some(reason) = self.exceptions.get(check) else {
            return Err(CeremonyError::Check { check, found: found.to_owned() });
        };
        self.used.push(format!("{check}: {reason}"));
        Ok(())
    }
}

/// Writes into the transcript of an interrupted ceremony who decided to go on although a check fails.
pub fn add_exception(
    plan: &Plan,
    witnessed: &WitnessedPlan,
    check: &str,
    reason: &str,
    decided_by: &Person,
) -> Result<(), CeremonyError> {
    let (mut transcript, _, torn) = Transcript::resume(&plan.output, &witnessed.lock.digest)?;
    let resumed = json!({"torn_bytes": torn, "tool": super::TOOL, "tool_sha256": program_digest()?});
    transcript.append("resumed", EventKind::Resumed, object(resumed))?;
    let data = json!({"check": check, "reason": reason, "decided_by": decided_by.name.as_str()});
    transcript.append(check, EventKind::Exception, object(data))?;
    Ok(())
}

/// What was proved of the key.
struct Proved {
    read: ReadBack,
    proofs: Vec<Proof>,
}

/// Exceptions that the transcript holds, by the name of their check.
fn exceptions(events: &[Event]) -> BTreeMap<String, String> {
    let texts = |data: &Map<String, Value>| {
        let text = |name| data.get(name).and_then(Value::as_str).map(str::to_owned);
        Some((text("check")?, format!("{} (decided by {})", text("reason")?, text("decided_by")?)))
    };
    events.iter().filter(|event| event.kind == EventKind::Exception).filter_map(|event| texts(&event.data)).collect()
}

/// Which ceremony these events are of.
fn ceremony_id(events: &[Event]) -> Result<CeremonyId, CeremonyError> {
    let id = events.first().and_then(|event| event.data.get("ceremony_id")?.as_str()?.parse().ok());
    id.ok_or(CeremonyError::Proof("the transcript does not say which ceremony it is of"))
}

/// Attributes for the transcript, whose numbers end below those of PKCS#11.
fn in_words(attributes: &Attributes) -> Value {
    attributes.iter().map(|(name, value)| (name.to_string(), json!(value.to_string()))).collect()
}

/// The fields of a JSON object.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// SHA-256 of this program.
pub(super) fn program_digest() -> Result<Sha256Digest, CeremonyError> {
    let bytes = std::fs::read("/proc/self/exe")
        .map_err(|source| CeremonyError::System { what: "the program cannot be read for its hash", source })?;
    Ok(Sha256Digest::of(bytes))
}
