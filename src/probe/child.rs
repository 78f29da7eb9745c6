//! The process that does the probing: it loads the module, and may hang or die of it. The parent asks for one step at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use serde::Serialize;

use super::bench::Bench;
use super::candidates::candidates;
use super::steps::{Answer, Failure, Step, Target};
use super::{attributes, errors, identity, kek, keys, look, mechanisms, seals, sessions, sizes, speed};
use crate::class::Class;
use crate::exit::ExitCode;
use crate::memory;
use crate::pin::PinForm;
use crate::pkcs11::{Error, Module};
use crate::profile::{Profile, UserKind};
use crate::secret::Pin;

/// How long the process may go on, to destroy what it made, when the parent is gone.
const GRACE: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(200);

/// Searches in a row that must find nothing, before a token that others use counts as cleared.
const SEARCHES: usize = 3;

/// Does what the parent asks for until it goes. `Err`: it was not started by a parent.
pub fn run() -> Result<ExitCode, std::io::Error> {
    // It holds the PIN, and may crash: no core dump of it.
    memory::protect()?;
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // Fails if standard input is no socket: somebody started it by hand.
    control.peer_addr()?;
    let mut out = control.try_clone()?;
    let steps = steps(control);
    let mut worker = None;
    while let Ok(step) = steps.recv() {
        let answer = match (step, &mut worker) {
            (Step::Look(seen), _) => look::run(seen).map_or_else(Answer::Failed, |look| value(&look)),
            (Step::Start { target, label }, _) => match Worker::start(target, label) {
                Ok((started, found)) => {
                    worker = Some(started);
                    value(&found)
                }
                Err(failure) => Answer::Failed(failure),
            },
            (step, Some(worker)) => worker.run(step).unwrap_or_else(|error| Answer::Failed((&error).into())),
            (_, None) => Answer::Failed(Failure::from(&Error::Unreadable("nothing was started".to_owned()))),
        };
        let mut line = serde_json::to_string(&answer).map_err(std::io::Error::other)?;
        line.push('\n');
        if out.write_all(line.as_bytes()).is_err() {
            // The parent is gone: clear up below.
            break;
        }
    }
    // Whatever is left here was left by a parent that died.
    if let Some(worker) = worker.filter(|worker| worker.bench.in_use) {
        // As often as the time allows: a token in use by others may refuse once, or find nothing in a search or two.
        let mut empty = 0;
        while empty < SEARCHES {
            empty = if matches!(worker.bench.clear(), Ok(0)) { empty + 1 } else { 0 };
            thread::sleep(PAUSE);
        }
    }
    // Not by returning: that runs the module's clean-up, which crashes in some.
    kill_process(getpid(), Signal::KILL)?;
    Ok(ExitCode::Done)
}

/// The steps as they come in. When the parent is gone, the process has [`GRACE`] to end by itself.
fn steps(control: UnixStream) -> Receiver<Step> {
    let (sender, steps) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(control).lines() {
            let step = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let Some(step) = step else { break };
            if sender.send(step).is_err() {
                break;
            }
        }
        drop(sender);
        thread::sleep(GRACE);
        let _ = kill_process(getpid(), Signal::KILL);
    });
    steps
}

struct Worker {
    bench: Bench,
    user: UserKind,
    pin: Option<Pin>,
}

impl Worker {
    fn start(target: Target, label: String) -> Result<(Self, identity::Identity), Failure> {
        let Target { module, init_reserved, token, pin, profile } = target;
        let profile = profile.as_deref().map(Profile::named).transpose();
        let profile = profile.map_err(|error| Failure::new(ExitCode::BadUsage, error.to_string(), error.hint()))?;
        let login = profile.as_ref().map(|profile| profile.login);
        let user = login.map_or(UserKind::User, |login| login.user);
        // Before the module opens files of its own.
        let form = login.map_or(PinForm::Opaque, |login| login.pin);
        let pin =
            pin.map(|source| source.read(form)).transpose().map_err(|error| Failure::from(&Error::from(error)))?;
        let start = || {
            let module = Module::load(&module, init_reserved.as_deref(), &[], Vec::new())?;
            let token = module.token(&token)?;
            let identity = identity::run(&module, &token)?;
            let candidates = candidates(profile.as_ref());
            let bench = Bench { token, login: None, label, candidates, in_use: false };
            Ok((Self { bench, user, pin }, identity))
        };
        start().map_err(|error: Error| Failure::from(&error))
    }

    fn run(&mut self, step: Step) -> Result<Answer, Error> {
        let bench = &mut self.bench;
        Ok(match step {
            Step::Start { .. } | Step::Look(_) => {
                Answer::Failed(Failure::from(&Error::Unreadable("it was started".to_owned())))
            }
            Step::Login { first } => {
                let pin = self.pin.take();
                let login = bench.token.login(self.user, pin.as_ref())?;
                let count = login.object_count().ok();
                bench.login = Some(login);
                // A random label: what bears it was found by a module that heeds no label, and must not be destroyed.
                if first && bench.count()? > 0 {
                    return Err(Error::Unreadable(
                        "a search for a label that nobody has used finds objects".to_owned(),
                    ));
                }
                value(&count)
            }
            Step::Interfaces => value(&bench.token.interfaces()),
            Step::Mechanisms => value(&mechanisms::run(bench)?),
            Step::Keys => value(&keys::run(bench)?),
            Step::Seal(trial) => value(&seals::run(bench, trial.candidate, trial.on_token)?),
            Step::Attributes { trial, in_session } => value(&attributes::run(bench, trial, in_session)?),
            Step::Defaults { on_token } => value(&attributes::defaults(bench, on_token)?),
            Step::Secrecy { on_token } => value(&attributes::secrecy(bench, on_token)?),
            Step::Sizes(trial) => value(&sizes::run(bench, trial)?),
            Step::SmallBuffer(trial) => value(&errors::small_buffer(bench, trial)?),
            Step::ShortCiphertext(trial) => value(&errors::short_ciphertext(bench, trial)?),
            Step::Sessions => value(&sessions::run(bench)),
            Step::Speed(trial) => value(&speed::run(bench, trial)?),
            Step::Kek { trial, omit } => value(&kek::run(bench, trial, omit)?),
            Step::CleanUp => {
                let left = bench.clear()?;
                bench.in_use = left > 0;
                value(&(left, bench.home()?.object_count().ok()))
            }
        })
    }
}

fn value(finding: &impl Serialize) -> Answer {
    match serde_json::to_value(finding) {
        Ok(value) => Answer::Found(value),
        Err(error) => Answer::Failed(Failure::from(&Error::Unreadable(error.to_string()))),
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let code = match error {
            error if error.is_usage() => ExitCode::BadUsage,
            error if error.class() == Class::PinOrConfig => ExitCode::DoesNotHold,
            _ => ExitCode::NotReachable,
        };
        Self { code: code as u8, why: error.to_string(), hint: error.hint(), outcome: error.into() }
    }
}
