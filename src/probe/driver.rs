//! Asks the probing process for one step after the other, and replaces a process that was lost.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::identity::Identity;
use super::outcome::Outcome;
use super::process::Process;
use super::report::{CleanUp, Fault, Section};
use super::steps::{Answer, Failure, Step, Target};
use crate::exit::ExitCode;

/// Asks the probing process, and replaces one that was lost.
pub(super) struct Driver<'a> {
    target: Target,
    label: String,
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

impl<'a> Driver<'a> {
    pub(super) fn new(
        target: Target,
        limit: Duration,
        count: usize,
        watcher: &'a mut dyn FnMut(usize, usize, &str),
    ) -> Result<Self, Failure> {
        Ok(Self {
            label: label()?,
            limit,
            process: None,
            logins: 0,
            objects: None,
            faults: Vec::new(),
            given_up: None,
            number: 0,
            count,
            watcher,
            target,
        })
    }

    /// The label of everything that is made.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Ends the process. Gives how often it was logged in, and what was lost.
    pub(super) fn end(self) -> (u32, Vec<Fault>) {
        (self.logins, self.faults)
    }

    /// The first process: module and token.
    pub(super) fn begin(&mut self) -> Result<Identity, Failure> {
        self.watch("module and token");
        self.start()
    }

    /// The first login.
    pub(super) fn log_in(&mut self) -> Result<(), Failure> {
        self.watch("login");
        // What was asked for before it may have cost the process.
        let process = self.process.take().map_or_else(|| self.spawn().map(|(process, _)| process), Ok)?;
        self.process = Some(self.logged_in(process)?);
        Ok(())
    }

    /// A process that has the module, and is logged in if the first one was.
    fn start(&mut self) -> Result<Identity, Failure> {
        let (mut process, identity) = self.spawn()?;
        if self.logins > 0 {
            process = self.logged_in(process)?;
        }
        self.process = Some(process);
        Ok(identity)
    }

    fn spawn(&self) -> Result<(Process, Identity), Failure> {
        let mut process = Process::spawn().map_err(|error| {
            let why = format!("the probing process cannot be started: {error}");
            Failure::new(ExitCode::NotReachable, why, "check limits on processes and memory")
        })?;
        let step = Step::Start { target: self.target.clone(), label: self.label.clone() };
        let identity = ask_first(&mut process, &step, self.limit, "loading the module")?;
        Ok((process, identity))
    }

    fn logged_in(&mut self, mut process: Process) -> Result<Process, Failure> {
        self.logins += 1;
        let objects = ask_first(&mut process, &Step::Login { first: self.logins == 1 }, self.limit, "the login")?;
        self.objects = self.objects.or(objects);
        Ok(process)
    }

    pub(super) fn section<T: DeserializeOwned>(&mut self, name: &str, step: &Step) -> Section<T> {
        self.ask(name, step).map_or_else(Section::Not, Section::Found)
    }

    fn watch(&mut self, name: &str) {
        self.number += 1;
        (self.watcher)(self.number, self.count, name);
    }

    pub(super) fn ask<T: DeserializeOwned>(&mut self, name: &str, step: &Step) -> Result<T, Outcome> {
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
        match process.ask(step, self.limit) {
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
    pub(super) fn clean_up(&mut self) -> CleanUp {
        if self.given_up.as_ref().is_some_and(|_| self.faults.len() >= MOST_FAULTS) {
            self.given_up = None;
        }
        let answer = self.ask::<(usize, Option<usize>)>("clean up", &Step::CleanUp);
        let found = answer.as_ref().ok().copied();
        let objects = self.objects.zip(found.and_then(|(_, objects)| objects));
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
