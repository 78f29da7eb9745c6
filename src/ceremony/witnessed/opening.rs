//! The first steps: who is there, what time it is, which plan and which program.

use serde_json::json;

use super::{Run, program_digest};
use crate::ceremony::CeremonyError;
use crate::ceremony::preflight::{self, CheckOutcome};
use crate::ceremony::site::Site;
use crate::ceremony::steps::StepId;
use crate::ceremony::transcript::{CeremonyKind, EventKind};
use crate::ceremony::words;
use crate::ceremony::{evidence, rehearsal};
use crate::record::{KekRecord, UtcTime};

/// How often a question is asked again when the answer has a typing error. A PIN is asked for once.
const TRIES: usize = 3;

impl Run<'_> {
    pub(super) fn open(&mut self) -> Result<(), CeremonyError> {
        self.people()?;
        self.clock()?;
        self.compare_plan()?;
        if !self.plan.recipients.is_empty() {
            self.recipients()?;
        }
        self.program()
    }

    fn people(&mut self) -> Result<(), CeremonyError> {
        let witnessed = self.witnessed;
        self.step(StepId::People, json!({"planned": witnessed.people.all().len()}), |run| {
            let mut present = Vec::new();
            for (position, person) in witnessed.people.all().iter().enumerate() {
                let question = format!("person-{}", position + 1);
                let text = format!("{}, {}: type your name, or \"absent\"", person.name, person.role.word());
                let is_there = run.ask_until(&question, &text, |answer| match answer {
                    "absent" => Some(false),
                    name => person.is(name).then_some(true),
                })?;
                if is_there {
                    present.push(person);
                }
            }
            let is_there = |person: &crate::ceremony::Person| present.iter().any(|other| other.name == person.name);
            witnessed.people.judge(is_there).map_err(CeremonyError::People)?;
            run.present.clone_from(&present);
            let list: Vec<_> = present
                .iter()
                .map(|person| json!({"name": person.name.as_str(), "role": person.role.word()}))
                .collect();
            Ok(((), json!({"present": list})))
        })
    }

    fn clock(&mut self) -> Result<(), CeremonyError> {
        self.step(StepId::Clock, json!({}), |run| {
            let typed = run.ask_until("clock", "time on the wall clock in UTC, as 14:05", |answer| {
                let (hours, minutes) = answer.split_once(':')?;
                let number = |text: &str, limit: i64| {
                    text.parse().ok().filter(|number| (0..limit).contains(number) && text.len() == 2)
                };
                Some(number(hours, 24)? * 60 + number(minutes, 60)?)
            })?;
            let now = UtcTime::now();
            let seconds = now.seconds_of_day();
            // The minute that was read lasts 60 s, and a clock may be 60 s off. Around midnight the shorter way counts.
            let ahead = (seconds - typed * 60).rem_euclid(DAY);
            let away = if ahead < 60 { 0 } else { (ahead - 60).min(DAY - ahead) };
            let found = format!("the machine's clock says {now}, the wall clock {:02}:{:02}", typed / 60, typed % 60);
            run.console.tell(&found);
            let holds = away <= 60;
            if !holds {
                run.except("clock", &found)?;
            }
            let wall = format!("{:02}:{:02}", typed / 60, typed % 60);
            Ok(((), json!({"machine": now, "wall_clock": wall, "holds": holds})))
        })
    }

    fn compare_plan(&mut self) -> Result<(), CeremonyError> {
        let digest = self.witnessed.lock.digest;
        self.step(StepId::Plan, json!({"plan_sha256": digest}), |run| {
            run.console.heading("the plan", "", &[("SHA-256", &digest.to_string()), ("words", &words(&digest))]);
            let answer = run.ask_until("plan", "the same as on every printed script? yes or no", yes_or_no)?;
            if !answer {
                return Err(CeremonyError::Refused("the plan is not the one on the printed script"));
            }
            Ok(((), json!({"words": words(&digest)})))
        })
    }

    fn recipients(&mut self) -> Result<(), CeremonyError> {
        let plan = self.plan;
        self.step(StepId::Recipients, json!({"planned": plan.recipients.len()}), |run| {
            let mut compared = Vec::new();
            for (position, recipient) in plan.recipients.iter().enumerate() {
                let (scheme, fingerprint) = (recipient.scheme(), recipient.fingerprint().to_string());
                let facts = [("scheme", scheme.word()), ("fingerprint", fingerprint.as_str())];
                run.console.heading("a recovery recipient", "", &facts);
                let begins = |answer: &str| answer.len() == TYPED_DIGITS && fingerprint.starts_with(answer);
                let text = "the first 16 digits, from the paper of its keepers";
                run.ask_until(&format!("recipient-{}", position + 1), text, |answer| {
                    let typed: String = answer.split_whitespace().collect();
                    begins(&typed.to_lowercase()).then_some(())
                })?;
                compared.push(json!({"scheme": scheme, "fingerprint": fingerprint}));
            }
            Ok(((), json!({"recipients": compared})))
        })
    }

    fn program(&mut self) -> Result<(), CeremonyError> {
        let digest = program_digest()?;
        self.step(StepId::Program, json!({"tool_sha256": digest}), |run| {
            run.console.heading(
                "the program",
                "",
                &[("version", crate::ceremony::TOOL), ("SHA-256", &digest.to_string())],
            );
            let answer = run.ask_until("program", "is that the release that was agreed to? yes or no", yes_or_no)?;
            if !answer {
                return Err(CeremonyError::Refused("the program is not the release that was agreed to"));
            }
            Ok(((), json!({"tool": crate::ceremony::TOOL})))
        })
    }

    pub(super) fn preflight(&mut self) -> Result<Site, CeremonyError> {
        let token = self.plan.token.label.clone();
        self.step(StepId::Preflight, json!({"token": token, "serial": self.witnessed.serial}), |run| {
            run.console.begin("load the module, find the token, look at both and at the machine");
            let site = Site::open(&run.plan.token, Some(&run.witnessed.serial))?;
            let mut checks = preflight::run(run.plan, run.witnessed, &site)?;
            if run.options.kind == CeremonyKind::Production {
                checks.push(rehearsal::check(run.options.rehearsal, run.witnessed));
            }
            checks.extend(run.previous()?);
            run.console.done(&site.summary());
            run.console.say(&preflight::table(&checks));
            for check in &checks {
                let data = json!({"check": check.name, "outcome": check.outcome, "found": check.found});
                run.write(StepId::Preflight.name(), EventKind::Check, data)?;
            }
            for check in &checks {
                match check.outcome {
                    CheckOutcome::Holds | CheckOutcome::Noted => {}
                    CheckOutcome::NeedsException => run.except(check.name, &check.found)?,
                    CheckOutcome::Fails => {
                        return Err(CeremonyError::Check { check: check.name, found: check.found.clone() });
                    }
                }
            }
            let count = checks.len();
            Ok((site, json!({"checks": count})))
        })
    }

    /// A KEK that follows another names its record, for the same cluster and another label.
    fn previous(&self) -> Result<Option<preflight::Check>, CeremonyError> {
        let (expected, path) = match (self.witnessed.previous, self.options.previous) {
            (None, None) => return Ok(None),
            (Some(expected), Some(path)) => (expected, path),
            (Some(_), None) => {
                return Err(CeremonyError::Previous("the plan names a previous record, and none was given"));
            }
            (None, Some(_)) => {
                return Err(CeremonyError::Previous("a previous record was given, and the plan names none"));
            }
        };
        let record = KekRecord::read(path)?;
        let found = evidence::file_digest(path)?;
        if found != expected {
            return Err(CeremonyError::Previous("the record given is not the one that the plan names"));
        }
        if record.cluster != self.plan.cluster || record.kek.label == self.plan.kek.label {
            return Err(CeremonyError::Previous("it must be of the same cluster, and the new KEK needs another label"));
        }
        let found = format!("{:?}, made {}", record.kek.label, record.ceremony.time);
        Ok(Some(preflight::Check { name: "previous", outcome: CheckOutcome::Holds, found }))
    }

    /// Asks until the answer can be read, three times at most.
    pub(super) fn ask_until<T>(
        &mut self,
        question: &str,
        text: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, CeremonyError> {
        for _ in 0..TRIES {
            let answer = self.console.ask(question, text)?;
            self.write(question, EventKind::Answer, json!({"answer": answer}))?;
            if let Some(value) = read(&answer) {
                return Ok(value);
            }
            self.console.tell("That is not what was asked for.");
        }
        Err(CeremonyError::Unanswered(question.to_owned()))
    }
}

/// Digits of a fingerprint that are typed: another key with the same takes 2^64 attempts.
const TYPED_DIGITS: usize = 16;

const DAY: i64 = 24 * 60 * 60;

/// `yes` or `no`, in full.
pub(super) fn yes_or_no(answer: &str) -> Option<bool> {
    match answer {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}
