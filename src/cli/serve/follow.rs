//! Follows the keyring file: what changed is made ready beside what serves, and then takes its place.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::keks;
use crate::audit::{self, Event};
use crate::class::Class;
use crate::cli::CliError;
use crate::config::{Config, KekSource};
use crate::keyring::{Current, Kek, Keyring, KeyringFile};
use crate::observe::metrics::METRICS;
use crate::record::{Sha256Digest, UtcTime};
use crate::token::{Failure, Launcher, Tokens};

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for new workers. One that does not start says so within 10 s, and those with one PIN start one by one.
const START_LIMIT: Duration = Duration::from_secs(90);

/// After new workers that did not serve, before others are tried.
const PAUSE: Duration = Duration::from_secs(30);

/// A file that is served for no longer than this may be what a signal was sent for.
const RECENT: Duration = Duration::from_mins(1);

struct Follower {
    config: Config,
    launcher: Launcher,
    path: PathBuf,
    current: Arc<Current>,
    /// What is served.
    file: KeyringFile,
    /// SHA-256 of the file that says so.
    digest: Option<Sha256Digest>,
    /// The latest time that was seen: a clock that is put back takes no activation back.
    now: UtcTime,
    failed: Option<Failed>,
    /// When another file was last served.
    changed: Option<Instant>,
}

/// A file whose KEKs a token did not prove.
struct Failed {
    head: Sha256Digest,
    error: CliError,
    /// When they are tried again. `None`: not before the operator's word, since another login could lock the token.
    again: Option<Instant>,
}

/// Follows the file, and the operator's word (SIGHUP), for as long as this process lives.
pub(super) async fn run(
    config: Config,
    launcher: Launcher,
    file: Option<KeyringFile>,
    current: Arc<Current>,
    mut hangup: Signal,
) {
    let (KekSource::Keyring(path), Some(file)) = (config.kek.source.clone(), file) else {
        while hangup.recv().await.is_some() {
            audit::reopen();
            current.get().tokens().restart();
        }
        return;
    };
    let served = Arc::clone(&current);
    let now = UtcTime::now();
    let (digest, failed, changed) = (None, None, None);
    let mut follower = Follower { config, launcher, path, current: served, file, digest, now, failed, changed };
    loop {
        tokio::select! {
            () = sleep(follower.pause()) => drop(follower.look().await),
            () = current.asked() => {
                follower.look().await;
                current.looked();
            }
            _ = hangup.recv() => {
                audit::reopen();
                follower.failed = None;
                let has_started = follower.look().await;
                let tokens = current.get().tokens().clone();
                if !(has_started || follower.is_for_file() && tokens.are_sound()) {
                    tokens.restart();
                }
            }
        }
    }
}

impl Follower {
    /// Until the next look.
    fn pause(&self) -> Duration {
        let planned = self.file.planned().filter(|at| *at > self.now);
        planned.map_or(INTERVAL, |at| at.since(UtcTime::now()).min(INTERVAL))
    }

    /// Whether a signal that came now was meant for the file: it is wrong, or was found just before.
    fn is_for_file(&self) -> bool {
        self.current.refused().is_some() || self.changed.is_some_and(|at| at.elapsed() < RECENT)
    }

    /// Looks at the file and at the clock. Whether workers were started, whatever came of it.
    async fn look(&mut self) -> bool {
        self.now = self.now.max(UtcTime::now());
        let mut has_started = false;
        match self.follow(&mut has_started).await {
            Ok(()) => drop(self.current.refuse(None)),
            Err(error) => self.refuse(&error),
        }
        if let Err(error) = self.keep_time() {
            self.refuse(&error);
        }
        has_started
    }

    /// Serves the file as it is now, if it is another.
    async fn follow(&mut self, has_started: &mut bool) -> Result<(), CliError> {
        let unusable = |why: String, hint: String| keks::unusable_keyring(&self.path, why, hint);
        let other = KeyringFile::read_other(&self.path, self.digest);
        let other = other.map_err(|error| unusable(error.to_string(), error.hint()))?;
        let Some((file, digest)) = other else { return Ok(()) };
        if file.head() == self.file.head() {
            self.digest = Some(digest);
            return Ok(());
        }
        if file.events_after(self.file.head()).is_none() {
            let why = "its history does not go on from the one that is served: it is older, or another".to_owned();
            let hint = "put the newest file there; to go back on purpose, restart the plugin".to_owned();
            return Err(unusable(why, hint));
        }
        let next = keks::of_keyring(&self.config, &self.path, &file, self.now)?;
        let now = self.current.get();
        let loses =
            |kek: &Kek| next.iter().any(|it| it.record_sha256 == kek.record_sha256 && it.activations < kek.activations);
        if let Some(kek) = now.keks().iter().find(|kek| loses(kek)) {
            let why = format!("it takes back an activation of {:?} that has happened here", kek.record.kek.label);
            return Err(unusable(why, "activate that KEK again; to go back on purpose, restart the plugin".to_owned()));
        }
        if now.keks().iter().map(|kek| kek.record_sha256).eq(next.iter().map(|kek| kek.record_sha256)) {
            return self.serve(file, next, now.tokens().clone());
        }
        if let Some(failed) = self.failed.as_ref().filter(|failed| failed.head == file.head())
            && failed.again.is_none_or(|again| Instant::now() < again)
        {
            return Err(failed.error.clone());
        }
        *has_started = true;
        let started = start(&self.config, &self.launcher, &now, &next).await;
        drop(now);
        match started {
            Ok(tokens) => self.serve(file, next, tokens),
            Err(Failure { class, detail, hint, .. }) => {
                let error = unusable(format!("its KEKs are not all proved: {detail}"), hint);
                let again = (class != Class::PinOrConfig).then(|| Instant::now() + PAUSE);
                self.failed = Some(Failed { head: file.head(), error: error.clone(), again });
                Err(error)
            }
        }
    }

    /// Lets the activation happen that was planned for now.
    fn keep_time(&mut self) -> Result<(), CliError> {
        let now = self.current.get();
        let mut keks = now.keks().to_vec();
        let entries = self.file.at(self.now);
        for kek in &mut keks {
            if let Some(entry) = entries.iter().find(|entry| entry.record_sha256 == kek.record_sha256) {
                (kek.state, kek.activations) = (entry.state, entry.activations);
            }
        }
        if keks == now.keks() { Ok(()) } else { self.serve(self.file.clone(), keks, now.tokens().clone()) }
    }

    fn serve(&mut self, file: KeyringFile, keks: Vec<Kek>, tokens: Tokens) -> Result<(), CliError> {
        let keyring = Keyring::new(self.config.cluster.as_str(), keks, tokens)
            .map_err(|error| keks::unusable_keyring(&self.path, error.to_string(), "stage each KEK once".to_owned()))?;
        METRICS.reload(true);
        record(&keyring);
        tracing::info!(
            key_id_hash = keyring.active().hash(),
            epoch = keyring.epoch(),
            keks = keyring.keks().len(),
            "another keyring is served"
        );
        self.current.replace(keyring, &file);
        self.file = file;
        self.failed = None;
        self.changed = Some(Instant::now());
        Ok(())
    }

    fn refuse(&self, error: &CliError) {
        // Once per reason: the file is looked at again and again.
        if self.current.refuse(Some(&error.why)) {
            METRICS.reload(false);
            audit::record(|| Event::KeyringRefused { reason: error.why.clone() });
            tracing::error!(hint = error.hint, "{}; the one before is served: {}", error.what, error.why);
        }
    }
}

/// Writes down which keyring is served from now on.
pub(super) fn record(keyring: &Keyring) {
    audit::record(|| Event::Keyring {
        key_id_hash: keyring.active().hash(),
        epoch: keyring.epoch(),
        keks: keyring.keks().len(),
    });
}

/// Workers for these KEKs. No token that serves now may be lost by it.
async fn start(config: &Config, launcher: &Launcher, now: &Keyring, next: &[Kek]) -> Result<Tokens, Failure> {
    let serves: Vec<bool> = now.tokens().each().into_iter().map(|token| token.is_sound).collect();
    let tokens = Tokens::start(keks::specs(config, next, launcher), config.limits.queue);
    let settled = timeout(START_LIMIT, tokens.settled()).await.map_err(|_| Failure {
        class: Class::Gone,
        public: "the HSM cannot be reached".to_owned(),
        detail: format!("new workers did not start within {} s", START_LIMIT.as_secs()),
        hint: "check the HSM; it is tried again".to_owned(),
    })?;
    let is_one_ready = settled.iter().any(Result::is_ok);
    for (serves, outcome) in serves.into_iter().zip(settled) {
        if serves || !is_one_ready {
            outcome?;
        }
    }
    Ok(tokens)
}
