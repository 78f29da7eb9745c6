//! `hsm-kms recovery drill`: a seed goes through the living plugin, and the recovery key opens it.

use std::path::{Path, PathBuf};

use clap::Args;
use prost::bytes::Bytes;
use zeroize::Zeroizing;

use super::private_key::{PrivateKey, PrivateKeyArgs};
use super::{failure, file, print};
use crate::cli::CliError;
use crate::cli::call::{Target, random_uid};
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::kms::proto::{DecryptRequest, EncryptRequest};
use crate::record::{DrillChallenge, DrillOutcome, DrillReport, KekRecord};
use crate::recovery::{Binding, Fingerprint, RecoveryBlob};
use crate::shares::SecretDigest;
use crate::strict::{Base64, FileError};

/// Prove that the recovery key opens what the running plugin seals
#[derive(Args, Debug)]
pub(super) struct DrillArgs {
    /// The plugin's Unix socket
    #[arg(long, value_name = "PATH", required_unless_present = "offline", requires = "record")]
    socket: Option<PathBuf>,
    /// The record of the KEK that the plugin seals with
    #[arg(long, value_name = "FILE", requires = "socket")]
    record: Option<PathBuf>,
    /// With --socket: write a challenge there, to be carried to the recovery key. With --offline: the challenge
    #[arg(long, value_name = "FILE")]
    challenge: Option<PathBuf>,
    /// Answer a challenge, on a machine without the plugin
    #[arg(long, conflicts_with = "socket", requires = "challenge")]
    offline: bool,
    #[command(flatten)]
    key: Option<PrivateKeyArgs>,
    /// Where the report goes, in place of the last one: what `kek.recovery_drill` of the configuration names
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &DrillArgs) -> Result<ExitCode, CliError> {
    match (&args.socket, &args.record, &args.challenge, &args.key, &args.output) {
        (Some(socket), Some(record), None, Some(key), Some(output)) => {
            let key = key.open()?;
            let challenge = challenge(socket, record, Some(key.recipient()?.fingerprint()))?;
            answer(&key, &challenge, output)
        }
        (Some(socket), Some(record), Some(path), None, None) => {
            let challenge = challenge(socket, record, None)?;
            file::replace(path, challenge.to_json().as_bytes())?;
            print(&format!(
                "challenge {}\nnext      carry it to the recovery key: hsm-kms recovery drill --offline --challenge FILE ...\n",
                path.display()
            ))?;
            Ok(ExitCode::Done)
        }
        (None, None, Some(path), Some(key), Some(output)) => {
            let key = key.open()?;
            let challenge = DrillChallenge::read(path).map_err(|error| unusable("drill challenge", &error))?;
            answer(&key, &challenge, output)
        }
        _ => Err(failure(
            ExitCode::BadUsage,
            "no drill was held",
            "these arguments do not go together",
            "on one machine: --socket, --record, a key and --output. On two: first --socket, --record and --challenge; \
             then --offline, --challenge, a key and --output",
        )),
    }
}

/// Has the plugin seal and open a random seed, of which only a digest is kept.
fn challenge(socket: &Path, record: &Path, recipient: Option<Fingerprint>) -> Result<DrillChallenge, CliError> {
    let record = KekRecord::read(record).map_err(|error| unusable("KEK record", &error))?;
    let has = |fingerprint| record.recipients.iter().any(|recipient| recipient.fingerprint() == fingerprint);
    if record.recipients.is_empty() || recipient.is_some_and(|fingerprint| !has(fingerprint)) {
        let named: Vec<_> = record.recipients.iter().map(|recipient| recipient.fingerprint().to_string()).collect();
        let why = match recipient {
            Some(fingerprint) if !named.is_empty() => {
                format!("this key is {fingerprint}, the record has {}", named.join(" and "))
            }
            _ => "the record names no recovery recipient".to_owned(),
        };
        let hint = "take the recovery key that the ceremony's plan named; a KEK gets another one by rotation alone";
        return Err(failure(ExitCode::DoesNotHold, "the recovery key does not open what this KEK seals", why, hint));
    }
    let system = |error: String| failure(ExitCode::NotReachable, "no drill was held", error, "try again");
    let (mut seed, mut salt) = (Zeroizing::new([0; 32]), [0; 16]);
    getrandom::fill(&mut *seed).and_then(|()| getrandom::fill(&mut salt)).map_err(|error| system(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| system(error.to_string()))?;
    let target = Target { socket: socket.to_owned(), timeout: SECONDS };
    let request = EncryptRequest { plaintext: Bytes::copy_from_slice(&*seed), uid: random_uid() };
    let sealed = runtime.block_on(target.call(request, async |mut client, request| client.encrypt(request).await))?;
    let request = DecryptRequest {
        ciphertext: sealed.ciphertext,
        uid: random_uid(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    let opened = runtime.block_on(target.call(request, async |mut client, request| client.decrypt(request).await))?;
    let wrong = |why: &str| failure(ExitCode::DoesNotHold, "the plugin does not hold", why, "look into its log");
    if *opened.plaintext != *seed {
        return Err(wrong("Decrypt gave another seed than Encrypt had been given"));
    }
    let key_id = KeyId::parse(&sealed.key_id).ok_or_else(|| wrong("its key_id is none that hsm-kms makes"))?;
    let annotations = sealed.annotations.into_iter().map(|(name, value)| (name, Base64(value.to_vec()))).collect();
    Ok(DrillChallenge::new(record.cluster, key_id, annotations, SecretDigest::new(salt, &*seed)))
}

/// Opens the seed with the recovery key, and writes what came of it.
fn answer(key: &PrivateKey, challenge: &DrillChallenge, output: &Path) -> Result<ExitCode, CliError> {
    let recipient = key.recipient()?;
    let fingerprint = recipient.fingerprint();
    let binding = Binding::new(challenge.cluster.as_str(), &challenge.key_id, &recipient);
    let annotation = fingerprint.annotation();
    let opened = match challenge.annotations.get(&annotation) {
        None => Err(format!("the plugin sealed nothing to this key: there is no annotation {annotation}")),
        Some(Base64(bytes)) => {
            RecoveryBlob::parse(bytes).map_err(|error| error.to_string()).and_then(|blob| key.open(&blob, &binding))
        }
    };
    let opened = opened.and_then(|seed| {
        let is_it = challenge.digest.is_of(seed.expose());
        is_it.then_some(()).ok_or_else(|| "it opened to another seed than the plugin was given".to_owned())
    });
    let outcome = if opened.is_ok() { DrillOutcome::Opened } else { DrillOutcome::Failed };
    let report = DrillReport::new(challenge, (fingerprint, recipient.scheme()), outcome);
    file::replace(output, report.to_json().as_bytes())?;
    opened.map_err(|why| {
        let hint = "do not rely on this recovery key: find out whether it is another's, before the KEK is lost";
        failure(ExitCode::DoesNotHold, "the drill failed: the recovery key did not give the seed back", why, hint)
    })?;
    print(&format!(
        "the recovery key opened what the plugin sealed\ncluster   {}\nkey_id    {}\nscheme    {}\nfingerprint\n{fingerprint}\nreport    {}\n",
        challenge.cluster,
        challenge.key_id,
        recipient.scheme(),
        output.display(),
    ))?;
    Ok(ExitCode::Done)
}

fn unusable(what: &str, error: &FileError) -> CliError {
    failure(ExitCode::BadUsage, format!("the {what} cannot be used"), error.to_string(), error.hint())
}

/// For one call to the plugin, like a KMS provider's `timeout`.
const SECONDS: u64 = 3;
