//! `hsm-kms drill lost-kek`: the KEK is gone, and the recovery key alone opens what it sealed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use super::report::Report;
use super::stage::{self, CLUSTER, Folder, Plugin, RecoveryKey, Token, out_of_reach, system};
use super::{Output, active_record, failure, load};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::record::{DrillOutcome, DrillReport};
use crate::recovery::{Binding, RecoveryBlob};

/// Lose the KEK, and open what it sealed with the recovery key alone
#[derive(Args, Debug)]
pub(super) struct LostKekArgs {
    /// Of the running plugin of this configuration, reading only: its KEK stays, and the recovery key opens what it seals
    #[arg(long, value_name = "FILE", requires = "private")]
    config: Option<PathBuf>,
    /// The file with the private half of the recovery key
    #[arg(long, value_name = "FILE", requires = "config", group = "private")]
    key: Option<PathBuf>,
    /// The file that names the offline HSM with the private half (docs/recovery.md); its PIN is tried once
    #[arg(long, value_name = "FILE", requires = "config", group = "private")]
    token: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl LostKekArgs {
    pub(super) fn output(&self) -> &Output {
        &self.output
    }
}

const TITLE: &str = "The KEK is lost";

pub(super) fn run(args: &LostKekArgs) -> Result<Report, CliError> {
    let folder = Folder::new()?;
    match (&args.config, &args.key, &args.token) {
        (Some(config), Some(key), _) => real(config, "--key", key, &folder),
        (Some(config), None, Some(token)) => real(config, "--token", token, &folder),
        _ => throw_away(&folder),
    }
}

/// How many seeds are sealed and lost.
const SEEDS: u8 = 10;

fn throw_away(folder: &Folder) -> Result<Report, CliError> {
    let mut report = Report::new("lost-kek", TITLE, "a throw-away SoftHSM2 token".to_owned());
    let (hsm, node) = (Token::new(folder.within("hsm")?)?, folder.within("node")?);
    let recovery = RecoveryKey::new(&node)?;
    let record = hsm.make_kek(Some(&recovery), &node)?;
    stage::configure(&node, CLUSTER, &hsm.section(), &record)?;
    let plugin = Plugin::serving(&node)?;
    let RecoveryKey { key, recipient, .. } = &recovery;
    let mut sealed = Vec::new();
    for number in 0..SEEDS {
        let seed = [number; 32];
        sealed.push((seed, stage::encrypt(&plugin.socket, &seed).map_err(out_of_reach)?));
    }
    report.step(
        "the plugin seals seeds",
        "each",
        Ok(format!("{SEEDS} seeds, also to recovery key {}", recipient.fingerprint())),
    );

    drop(plugin);
    hsm.destroy()?;
    let lost = folder.within("lost")?;
    stage::configure(&lost, CLUSTER, &hsm.section(), &record)?;
    let mut plugin = Plugin::start(&lost)?;
    let started = plugin.healthy();
    let found = started.err().ok_or_else(|| "it serves: the KEK is not lost".to_owned());
    report.step("the token is destroyed; hsm-kms serve", "cannot serve", found);
    drop(plugin);

    let opened = sealed.iter().filter(|(seed, answer)| {
        let binding = KeyId::parse(&answer.key_id).map(|key_id| Binding::new(CLUSTER, &key_id, recipient));
        let blob = answer.annotations.get(&recipient.fingerprint().annotation());
        let blob = blob.and_then(|bytes| RecoveryBlob::parse(bytes).ok());
        let opened = binding.zip(blob).and_then(|(binding, blob)| key.open(blob.sealed(), &binding));
        opened.is_some_and(|opened| opened.expose() == seed)
    });
    let found = each(opened.count(), " came back, byte by byte");
    report.step("the recovery key, without HSM and plugin", "opens each seed", found);

    // What comes after: a new KEK on a new token takes the seeds over.
    let (new, next) = (Token::new(folder.within("new-hsm")?)?, folder.within("new-node")?);
    let record = new.make_kek(Some(&recovery), &next)?;
    stage::configure(&next, CLUSTER, &new.section(), &record)?;
    let plugin = Plugin::serving(&next)?;
    let again = sealed.iter().filter(|(seed, _)| {
        stage::encrypt(&plugin.socket, seed).is_ok_and(|sealed| stage::opens(&plugin.socket, &sealed, seed).is_ok())
    });
    report.step("a new KEK on a new token", "seals each seed anew", each(again.count(), ""));
    report.note("There was no etcd here. scripts/demo-lost-kek plays the whole way with one: backup, rewrap table, restore, rewriting.");
    report.note("The recovery key was made for this drill, and was never on a disk.");
    Ok(report)
}

/// Whether it was done with each seed; `words` follow the count.
fn each(count: usize, words: &str) -> Result<String, String> {
    let found = format!("{count} of {SEEDS}{words}");
    if count == usize::from(SEEDS) { Ok(found) } else { Err(found) }
}

/// `recovery drill` on the living plugin.
fn real(path: &Path, flag: &str, key: &Path, folder: &Folder) -> Result<Report, CliError> {
    let config = load(path)?;
    let against = format!("the plugin of {}, reading only: its KEK is not touched", path.display());
    let mut report = Report::new("lost-kek", TITLE, against);
    let (record, output) = (active_record(&config)?, folder.within("report")?.join("recovery-drill.json"));
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["recovery", "drill", flag])
        .arg(key)
        .arg("--socket")
        .arg(&config.socket.path)
        .arg("--record")
        .arg(record);
    // The PIN of an offline HSM may be typed.
    let held = command.arg("--output").arg(&output).stdout(Stdio::null()).status().map_err(|error| system(&error))?;
    let code = held.code();
    if matches!(code, Some(2 | 3) | None) {
        let code = if code == Some(2) { ExitCode::BadUsage } else { ExitCode::NotReachable };
        return Err(failure(code, "hsm-kms recovery drill could not be held: see above", "correct what it names"));
    }
    let found = match DrillReport::read(&output) {
        Ok(found) if found.outcome == DrillOutcome::Opened => {
            Ok(format!("recovery key {} opened it, key_id {}", found.fingerprint, found.key_id))
        }
        Ok(found) => Err(format!("recovery key {} did not give it back", found.fingerprint)),
        Err(_) => Err("the key is not one that this KEK seals to: see above".to_owned()),
    };
    report.step(
        "a random seed that the living plugin sealed, and the recovery key alone",
        "the seed comes back",
        found,
    );
    report.note("kek.recovery_drill was not written anew: hsm-kms recovery drill --output does that.");
    report.note("Seeds from before this KEK, and stores, are not looked at: hsm-kms recovery audit does that.");
    Ok(report)
}
