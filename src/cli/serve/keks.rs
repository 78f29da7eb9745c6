//! The KEKs that a configuration serves, read from its record or its keyring, and what the workers are told of them.

use std::path::Path;

use super::lockdown;
use crate::attributes::AttributeName;
use crate::cli::CliError;
use crate::config::{self, Config, KekSource};
use crate::exit::ExitCode;
use crate::keyring::{self, Entry, Kek, KeyringFile, RewrapTable};
use crate::record::{KekRecord, Kind, Recovery, Sha256Digest, TokenKey, UtcTime};
use crate::strict::{self, FileError};
use crate::token::{Launcher, WorkerSpec};
use crate::wire::link;

/// The KEKs in service, and the keyring file that names them, if there is one.
pub(in crate::cli) fn load(config: &Config) -> Result<(Vec<Kek>, Option<KeyringFile>), CliError> {
    match &config.kek.source {
        KekSource::Record(path) => {
            let refuse = |error: FileError| unusable(path, error.to_string(), error.hint());
            let bytes = strict::read(path).map_err(|fault| refuse(FileError::new("KEK record", Some(path), fault)))?;
            let record =
                KekRecord::parse(&bytes).map_err(|error| refuse(FileError { path: Some(path.to_owned()), ..error }))?;
            check(config, path, &record)?;
            Ok((vec![Kek::only(record, Sha256Digest::of(&bytes))], None))
        }
        KekSource::Keyring(path) => {
            let refuse = |error: FileError| unusable_keyring(path, error.to_string(), error.hint());
            let file = KeyringFile::read(path).map_err(refuse)?;
            let keks = of_keyring(config, path, &file, UtcTime::now())?;
            Ok((keks, Some(file)))
        }
    }
}

/// The seeds of lost KEKs, if the configuration names a table, which must fit these KEKs.
pub(super) fn rewrap_table(config: &Config, keks: &[Kek]) -> Result<Option<RewrapTable>, CliError> {
    let Some(path) = &config.kek.rewrap_table else { return Ok(None) };
    let refuse = |why: String, hint: String| {
        let what = format!("the rewrap table {} cannot be used", path.display());
        CliError { code: ExitCode::BadUsage, what, why, hint }
    };
    let table = RewrapTable::read(path).map_err(|error| refuse(error.to_string(), error.hint()))?;
    table.check(&config.cluster, keks).map_err(|why| {
        refuse(why, "name the table that was made for this cluster with this KEK, or drop kek.rewrap_table".to_owned())
    })?;
    for (key_id, seeds) in table.lost() {
        tracing::info!(
            key_id_hash = key_id.hash(),
            seeds,
            made = %table.origin().made,
            source = table.origin().source,
            complete = table.origin().complete,
            "{seeds} seeds of lost KEK {key_id} are opened through a rewrap table; rewrite everything and drop it"
        );
    }
    Ok(Some(table))
}

/// The KEKs that are in service at this time.
pub(super) fn of_keyring(config: &Config, path: &Path, file: &KeyringFile, now: UtcTime) -> Result<Vec<Kek>, CliError> {
    if *file.cluster() != config.cluster {
        let (of_file, of_config) = (file.cluster().as_str(), config.cluster.as_str());
        let why = format!("it is for cluster {of_file:?}, the configuration says {of_config:?}");
        return Err(unusable_keyring(path, why, "use the keyring of this cluster".to_owned()));
    }
    let kek = |entry: Entry| {
        let record = KeyringFile::record(path, &entry)
            .map_err(|error| unusable_keyring(path, error.to_string(), error.hint()))?;
        check(config, &keyring::folder(path).join(entry.record.as_str()), &record)?;
        let Entry { record_sha256, state, activations, .. } = entry;
        Ok(Kek { record_sha256, record, state, activations })
    };
    file.at(now).into_iter().filter(Entry::is_in_service).map(kek).collect()
}

/// What the launcher starts the worker of each token with, in the order of the tokens.
pub(super) fn places(config: &Config) -> link::Places {
    let place = |token: &config::Token| link::Place {
        module: token.module.display().to_string(),
        pin: token.pin.as_ref().map(crate::token::wire_pin),
        init_reserved: token.init_reserved.clone().unwrap_or_default(),
        environment: token.environment.clone().into_iter().collect(),
        sandbox: Some(lockdown::worker(config.sandbox, token)),
    };
    link::Places { places: config.tokens().map(place).collect(), sandbox: config.sandbox as u32 }
}

/// What the worker of each token is told, in the order of the tokens.
pub(super) fn specs(config: &Config, keks: &[Kek], launcher: &Launcher) -> Vec<WorkerSpec> {
    // The configuration does not name the first token's serial; the first record does.
    let first = keks.first().map_or("", |kek| kek.record.token.serial.as_str());
    let serials = std::iter::once((first, false)).chain(config.standby.iter().map(|it| (it.serial.as_str(), true)));
    let specs = (0..).zip(config.tokens()).zip(serials).map(|((place, token), (serial, is_standby))| WorkerSpec {
        start: start(keks, token, serial, is_standby),
        form: token.sealing.form,
        sessions: config.limits.sessions,
        pin: token.pin.clone(),
        launcher: launcher.clone(),
        place,
        probe_interval: token.profile.recover.probe.map_or(config.limits.probe, |idle| idle.min(config.limits.probe)),
    });
    specs.collect()
}

fn unusable(path: &Path, why: String, hint: String) -> CliError {
    let what = format!("the KEK record {} cannot be used", path.display());
    CliError { code: ExitCode::BadUsage, what, why, hint }
}

pub(super) fn unusable_keyring(path: &Path, why: String, hint: String) -> CliError {
    let what = format!("the keyring {} cannot be used", path.display());
    CliError { code: ExitCode::BadUsage, what, why, hint }
}

/// Whether this configuration may serve the KEK of this record.
fn check(config: &Config, path: &Path, record: &KekRecord) -> Result<(), CliError> {
    let refuse = |why: String, hint: String| unusable(path, why, hint);
    if record.cluster != config.cluster {
        let why = format!(
            "it is for cluster {:?}, the configuration says {:?}",
            record.cluster.as_str(),
            config.cluster.as_str()
        );
        return Err(refuse(why, "use the record of this cluster's own ceremony".to_owned()));
    }
    let keys = [Some(&record.kek), record.mac_key.as_ref()];
    let lacks = |key: &&TokenKey| AttributeName::ALL.iter().any(|name| !key.attributes.contains_key(name));
    if let Some(key) = keys.into_iter().flatten().find(lacks) {
        let why = format!("it does not say of the key {:?} what each attribute was", key.label);
        return Err(refuse(why, "use the record as the ceremony wrote it".to_owned()));
    }
    if record.mac_key.is_some() != config.token.sealing.mac_mechanism().is_some() {
        let why = format!(
            "the ceremony was held with profile {}, whose seal {} a MAC key beside the KEK; that of {} does not go with it",
            record.profile,
            if record.mac_key.is_some() { "has" } else { "has no" },
            config.token.profile.full_name()
        );
        return Err(refuse(why, "set token.profile to that of the ceremony".to_owned()));
    }
    match (record.kind, record.recovery) {
        (Kind::Production, Recovery::Copies | Recovery::Shares | Recovery::Recipients) => {}
        (Kind::Production, Recovery::None) if config.kek.accept_data_loss => {
            tracing::warn!("no copy of the KEK was proved: if this token is lost, every secret in etcd is");
        }
        (Kind::Production, Recovery::None) => {
            let why = "the ceremony proved no copies of the KEK and names no recovery recipient, so without this one token nothing opens".to_owned();
            let hint = "hold a ceremony that proves two copies or names a recovery recipient; or set kek.accept_data_loss: true, and know that the loss of this \
                        token is then the loss of every secret in etcd, in backups too"
                .to_owned();
            return Err(refuse(why, hint));
        }
        (Kind::Rehearsal, _) => {
            let why = "the KEK was made in a rehearsal, on a token that is thrown away".to_owned();
            return Err(refuse(why, "hold the ceremony itself, and use its record".to_owned()));
        }
        (Kind::Trial, _) if config.kek.allow_trial => {
            tracing::warn!("TRIAL KEK: nobody witnessed how it was made; do not protect a real cluster with it");
        }
        (Kind::Trial, _) => {
            let why = "the KEK was made unattended, as a trial".to_owned();
            let hint = "hold a ceremony with witnesses, or set kek.allow_trial: true on a test cluster".to_owned();
            return Err(refuse(why, hint));
        }
    }
    Ok(())
}

/// What the worker of the token with this serial is told. A KEK that was made in another one is a copy there.
fn start(keks: &[Kek], token: &config::Token, serial: &str, is_standby: bool) -> link::Start {
    let wire = |kek: &Kek| keyring::wire_kek(&kek.record, is_standby || kek.record.token.serial != serial);
    let profile = &token.profile;
    let codes = profile
        .codes
        .iter()
        .map(|entry| link::CodeOverride {
            code: entry.code,
            function: entry.function.unwrap_or_default().to_owned(),
            class: entry.class.number(),
        })
        .collect();
    link::Start {
        manufacturers: profile.module.manufacturers.clone(),
        token_label: token.label.clone(),
        token_serial: serial.to_owned(),
        user: profile.login.user as u32,
        pin_form: profile.login.pin as u32,
        keks: keks.iter().map(wire).collect(),
        codes,
        sealing: Some(keyring::wire_sealing(&token.sealing)),
    }
}
