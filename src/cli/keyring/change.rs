//! What changes a keyring: each command is one event of its history.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::inventory::Inventories;
use super::{Target, known_record, not_changed, print, read, record_path};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::keyring::{Change, ChangeError, Kek, KeyringFile, Lock, RecordPath, State};
use crate::record::{KekRecord, Kind, Sha256Digest, UtcTime};
use crate::strict;

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    target: Target,
    /// The record of the KEK that is in use, in the keyring's folder
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct StageArgs {
    #[command(flatten)]
    target: Target,
    /// The record of the new KEK, in the keyring's folder
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct ActivateArgs {
    #[command(flatten)]
    target: Target,
    /// The KEK, by its record, as `list` shows it
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Every node: the address or socket of its endpoints, or a file with what it said at /keyring
    #[arg(long, value_name = "NODE", value_delimiter = ',', required_unless_present_any = ["force", "cancel"])]
    nodes: Vec<String>,
    /// Do it at this time, such as 2026-01-31T12:00:00Z; until then it can be cancelled
    #[arg(long, value_name = "UTC", conflicts_with = "cancel")]
    at: Option<UtcTime>,
    /// Cancel the activation that is planned
    #[arg(long)]
    cancel: bool,
    /// Do it although not every node can open with the KEK; the reason lands in the history
    #[arg(long, value_name = "REASON", conflicts_with_all = ["nodes", "reason"])]
    force: Option<String>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct RetireArgs {
    #[command(flatten)]
    target: Target,
    /// The KEK, by its record, as `list` shows it
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// What `hsm-kms etcd inventory --json` printed: of the live store, and of every backup that is kept
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    inventory: Vec<PathBuf>,
    /// Every node, as at `activate`: none may seal with the KEK
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    nodes: Vec<String>,
    /// Do it whatever inventories and nodes say; the reason lands in the history
    #[arg(long, value_name = "REASON", conflicts_with_all = ["nodes", "reason"])]
    force: Option<String>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    target: Target,
    /// The KEK, by its record, as `list` shows it
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) fn init(args: InitArgs) -> Result<ExitCode, CliError> {
    let InitArgs { target, record, reason } = args;
    let _lock = lock(&target)?;
    if target.keyring.symlink_metadata().is_ok() {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "the keyring was not begun".to_owned(),
            why: format!("{} is there already", target.keyring.display()),
            hint: "add KEKs to it with `hsm-kms keyring stage`".to_owned(),
        });
    }
    let (path, digest, kek) = new_record(&target, &record)?;
    let change = Change::Init { record: path, record_sha256: digest };
    commit(&target, &KeyringFile::new(kek.cluster), change, reason)
}

pub(super) fn stage(args: StageArgs) -> Result<ExitCode, CliError> {
    let StageArgs { target, record, reason } = args;
    let _lock = lock(&target)?;
    let file = read(&target.keyring)?;
    let (path, digest, kek) = new_record(&target, &record)?;
    let refuse = |why: String, hint: &str| CliError {
        code: ExitCode::BadUsage,
        what: "the KEK was not staged".to_owned(),
        why,
        hint: hint.to_owned(),
    };
    if kek.cluster != *file.cluster() {
        let why = format!("its record is for cluster {}, the keyring for {}", kek.cluster, file.cluster());
        return Err(refuse(why, "use the record of this cluster's own ceremony"));
    }
    let key_id = crate::keyring::first_key_id(&kek);
    for entry in file.at(UtcTime::now()) {
        // One that is out of service may have lost its record.
        let known = KeyringFile::record(&target.keyring, &entry);
        if known.is_ok_and(|known| crate::keyring::first_key_id(&known) == key_id) {
            let why = format!("it is the KEK of {}", entry.record);
            return Err(refuse(why, "stage each KEK once; `keyring activate` takes one that was active before"));
        }
    }
    commit(&target, &file, Change::Stage { record: path, record_sha256: digest }, reason)
}

pub(super) fn activate(args: ActivateArgs) -> Result<ExitCode, CliError> {
    let ActivateArgs { target, record, nodes, at, cancel, force, reason } = args;
    let _lock = lock(&target)?;
    let file = read(&target.keyring)?;
    let record = known_record(&file, &target.keyring, &record)?;
    refuse_late(&file)?;
    if cancel {
        return commit(&target, &file, Change::Cancel { record }, force.or(reason));
    }
    if let Some(at) = at.filter(|at| *at <= UtcTime::now()) {
        return Err(CliError {
            code: ExitCode::BadUsage,
            what: "no activation was planned".to_owned(),
            why: format!("{at} is past"),
            hint: "leave --at away to activate now".to_owned(),
        });
    }
    let change = Change::Activate { record, at, forced: force.is_some() };
    // What may not happen is not asked for at the nodes.
    let next = file.after(change.clone(), force.clone().or_else(|| reason.clone()));
    next.map_err(|refusal| not_changed(&refusal.into()))?;
    if force.is_none() {
        super::converged::require(&file, &nodes, change.record())?;
    }
    commit(&target, &file, change, force.or(reason))
}

/// A node whose clock is ahead of this one may have done by now what is planned for the next moment.
fn refuse_late(file: &KeyringFile) -> Result<(), CliError> {
    let now = UtcTime::now();
    match file.planned().filter(|at| *at > now && at.since(now) < LATE) {
        None => Ok(()),
        Some(at) => Err(CliError {
            code: ExitCode::DoesNotHold,
            what: "the keyring was not changed".to_owned(),
            why: format!("an activation is planned for {at}, and some node's clock may be there already"),
            hint: "wait until it has happened everywhere".to_owned(),
        }),
    }
}

/// So near to its time a planned activation is not cancelled or replaced any more.
const LATE: Duration = Duration::from_mins(1);

pub(super) fn retire(args: RetireArgs) -> Result<ExitCode, CliError> {
    let RetireArgs { target, record, inventory, nodes, force, reason } = args;
    let _lock = lock(&target)?;
    let file = read(&target.keyring)?;
    let record = known_record(&file, &target.keyring, &record)?;
    refuse_late(&file)?;
    let inventories = Inventories::read(&inventory)?;
    let change = Change::Retire { record, inventories: inventories.digests(), forced: force.is_some() };
    // What may not happen is not asked for at the nodes.
    let next = file.after(change.clone(), None);
    next.map_err(|refusal| not_changed(&refusal.into()))?;
    let entries = file.at(UtcTime::now());
    let sealed = entries.iter().find(|entry| entry.record == *change.record() && entry.activations > 0);
    if let (Some(entry), None) = (sealed, &force) {
        if inventory.is_empty() || nodes.is_empty() {
            return Err(CliError {
                code: ExitCode::BadUsage,
                what: "the KEK was not retired".to_owned(),
                why: "it has sealed, and nothing shows that nobody needs it".to_owned(),
                hint: "name --inventory of the store and of every backup, and all --nodes; or --force with a reason"
                    .to_owned(),
            });
        }
        super::converged::require_inactive(&file, &nodes, entry)?;
        let kek = KeyringFile::record(&target.keyring, entry).map_err(|error| not_changed(&error.into()))?;
        let (record_sha256, state, activations) = (entry.record_sha256, entry.state, entry.activations);
        let kek = Kek { record_sha256, record: kek, state, activations };
        inventories.require_unused(&kek, file.last_activation())?;
    }
    commit(&target, &file, change, force.or(reason))
}

pub(super) fn restore(args: RestoreArgs) -> Result<ExitCode, CliError> {
    let RestoreArgs { target, record, reason } = args;
    let _lock = lock(&target)?;
    let file = read(&target.keyring)?;
    let record = known_record(&file, &target.keyring, &record)?;
    commit(&target, &file, Change::Restore { record }, reason)
}

fn lock(target: &Target) -> Result<Lock, CliError> {
    Lock::take(&target.keyring).map_err(|error| not_changed(&error))
}

/// A record that is to come into the keyring.
fn new_record(target: &Target, path: &Path) -> Result<(RecordPath, Sha256Digest, KekRecord), CliError> {
    let unusable = |why: String, hint: String| CliError {
        code: ExitCode::BadUsage,
        what: "the KEK record cannot be used".to_owned(),
        why,
        hint,
    };
    let bytes = strict::read(path).map_err(|fault| unusable(format!("{}: {fault}", path.display()), fault.hint()))?;
    let record = KekRecord::parse(&bytes).map_err(|error| unusable(error.to_string(), error.hint()))?;
    if record.kind == Kind::Rehearsal {
        let why = "the KEK was made in a rehearsal, on a token that is thrown away".to_owned();
        return Err(unusable(why, "hold the ceremony itself, and use its record".to_owned()));
    }
    Ok((record_path(&target.keyring, path)?, Sha256Digest::of(&bytes), record))
}

/// Lets it happen, writes the file, and tells what became of it.
fn commit(target: &Target, file: &KeyringFile, change: Change, reason: Option<String>) -> Result<ExitCode, CliError> {
    let (word, record) = (change.word(), change.record().clone());
    let next = file.after(change, reason).map_err(|refusal| not_changed(&refusal.into()))?;
    // What cannot be read back is not written, such as a reason with a line break.
    let next = KeyringFile::parse(next.to_json().as_bytes()).map_err(|error| not_changed(&ChangeError::File(error)))?;
    next.write(&target.keyring).map_err(|error| not_changed(&error))?;
    let entries = next.at(UtcTime::now());
    let entry = entries.iter().find(|entry| entry.record == record);
    let state = entry.map_or(State::Destroyed, |entry| entry.state);
    if target.json {
        let value = json!({
            "keyring": target.keyring,
            "event": word,
            "record": record,
            "state": state,
            "activate_at": entry.and_then(|entry| entry.activate_at),
            "head": next.head(),
        });
        print(&format!("{value:#}\n"))?;
    } else {
        let planned = entry.and_then(|entry| entry.activate_at);
        let planned = planned.map_or_else(String::new, |at| format!(", active from {at} on"));
        print(&format!("{record} is {state}{planned}; copy {} to every node\n", target.keyring.display()))?;
    }
    Ok(ExitCode::Done)
}
