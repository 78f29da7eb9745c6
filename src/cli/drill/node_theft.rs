//! `hsm-kms drill node-theft`: everything that a control-plane node holds, without the HSM, opens nothing.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use data_encoding::BASE64;
use serde_json::json;
use zeroize::Zeroizing;

use super::copies::Copies;
use super::report::Report;
use super::stage::{self, CLUSTER, Folder, Plugin, RecoveryKey, Token, system};
use super::{Output, active_record, failure, load};
use crate::audit::Destination;
use crate::cli::CliError;
use crate::cli::etcd::inventory;
use crate::cli::etcd::store::Store;
use crate::config::{Config, KekSource};
use crate::etcd::inventory::Group;
use crate::etcd::value::Form;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::keyring::{KeyringFile, folder};
use crate::kms::proto::EncryptResponse;
use crate::pin::PinSource;
use crate::record::{KekRecord, UtcTime};
use crate::recovery::{Binding, HybridKey, RecoveryBlob, Scheme};

/// Copy all that a control-plane node holds without the HSM, and show that nothing opens
#[derive(Args, Debug)]
pub(super) struct NodeTheftArgs {
    /// Of the running plugin of this configuration, reading only; without it, of a throw-away one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file of the node that is copied, too, such as the API server's; may be given more than once
    #[arg(long, value_name = "FILE", requires = "config")]
    file: Vec<PathBuf>,
    /// A snapshot of etcd: the copy that a thief would want most
    #[arg(long, value_name = "FILE", requires = "config")]
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl NodeTheftArgs {
    pub(super) fn output(&self) -> &Output {
        &self.output
    }
}

/// The node, as the thief meets it.
struct Node {
    cluster: String,
    socket: PathBuf,
    record: PathBuf,
    files: Vec<PathBuf>,
}

/// What the plugin sealed, and what only the drill knows.
struct Canary {
    seed: Zeroizing<[u8; 32]>,
    sealed: EncryptResponse,
}

pub(super) fn run(args: &NodeTheftArgs) -> Result<Report, CliError> {
    let folder = Folder::new()?;
    match &args.config {
        Some(path) => real(args, path, &folder),
        None => throw_away(&folder),
    }
}

const TITLE: &str = "A control-plane node is stolen";

fn throw_away(folder: &Folder) -> Result<Report, CliError> {
    let mut report = Report::new("node-theft", TITLE, "a throw-away SoftHSM2 token".to_owned());
    let (hsm, node) = (Token::new(folder.within("hsm")?)?, folder.within("node")?);
    let recovery = RecoveryKey::new(&node)?;
    let record = hsm.make_kek(Some(&recovery), &node)?;
    let config = stage::configure(&node, CLUSTER, &hsm.section(), &record)?;
    let plugin = Plugin::serving(&node)?;
    let files = vec![config, recovery.public, hsm.pin.clone(), hsm.configuration.clone(), node.join("log")];
    let thief = Node { cluster: CLUSTER.to_owned(), socket: plugin.socket.clone(), record, files };
    let canary = seal(&mut report, &thief.socket)?;
    let mut copies = Copies::new(folder.within("thief")?);
    let record = copy(&mut report, &mut copies, &thief, &canary)?;
    drop(plugin);
    search(&mut report, &copies, &canary)?;
    attempts(&mut report, folder, &record, &thief, &canary)?;

    // Teeth: with the HSM the same copies open it.
    let back = folder.within("back")?;
    stage::configure(&back, CLUSTER, &hsm.section(), &record)?;
    let mut plugin = Plugin::start(&back)?;
    let found = plugin.healthy().and_then(|()| stage::opens(&plugin.socket, &canary.sealed, &*canary.seed));
    let found = found.map(|()| "the seed came back".to_owned());
    report.step("the same copies, and the HSM", "opens: the attempts above were real ones", found);
    report.note("SoftHSM2 keeps its keys in files: its folder stands for the HSM here, and was not among the copies.");
    report.note(
        "The PIN was among the copies. Whoever has it and reaches the HSM, by network or by hand, uses the KEK: when a node is stolen, lock it out \
         at the HSM first, then change the PIN.",
    );
    note_memory(&mut report);
    Ok(report)
}

fn real(args: &NodeTheftArgs, path: &Path, folder: &Folder) -> Result<Report, CliError> {
    let config = load(path)?;
    let mut report = Report::new("node-theft", TITLE, format!("the plugin of {}, reading only", path.display()));
    let node = node(&config, path, &args.file)?;
    let canary = seal(&mut report, &node.socket)?;
    let mut copies = Copies::new(folder.within("thief")?);
    let record = copy(&mut report, &mut copies, &node, &canary)?;
    inside(&mut report, &config);
    search(&mut report, &copies, &canary)?;
    attempts(&mut report, folder, &record, &node, &canary)?;
    if let Some(snapshot) = &args.snapshot {
        let found = clear_text(snapshot);
        report.step("look for Secrets in clear text in the snapshot", "none", found);
    }
    let found = stage::opens(&node.socket, &canary.sealed, &*canary.seed).map(|()| "the seed came back".to_owned());
    report.step("the living plugin, with the HSM", "opens: the attempts above were real ones", found);
    pins(&mut report, &config);
    note_memory(&mut report);
    Ok(report)
}

fn node(config: &Config, path: &Path, further: &[PathBuf]) -> Result<Node, CliError> {
    let record = active_record(config)?;
    let mut files = vec![path.to_owned()];
    if let KekSource::Keyring(keyring) = &config.kek.source {
        files.push(keyring.clone());
        let entries = KeyringFile::read(keyring).map(|file| file.at(UtcTime::now())).unwrap_or_default();
        let in_service = entries.iter().filter(|entry| entry.is_in_service());
        files.extend(in_service.map(|entry| folder(keyring).join(entry.record.as_str())));
    }
    files.extend([&config.kek.recovery_drill, &config.kek.rewrap_table].into_iter().flatten().cloned());
    if let Some(Destination::File(path)) = config.audit.as_ref().map(|audit| &audit.to) {
        files.push(path.clone());
    }
    files.extend(further.iter().cloned());
    let cluster = config.cluster.as_str().to_owned();
    Ok(Node { cluster, socket: config.socket.path.clone(), record, files })
}

/// A random seed through the living plugin, as the API server sends one.
fn seal(report: &mut Report, socket: &Path) -> Result<Canary, CliError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| system(&error))?;
    let out_of_reach = |why: String| stage::no_plugin(socket, &why);
    let sealed = stage::encrypt(socket, &*seed).map_err(out_of_reach)?;
    stage::opens(socket, &sealed, &*seed).map_err(out_of_reach)?;
    let found = format!("{} bytes, key_id {}", sealed.ciphertext.len(), sealed.key_id);
    report.step("the living plugin seals a random seed and opens it", "the seed comes back", Ok(found));
    Ok(Canary { seed, sealed })
}

/// Also what etcd holds of the seed.
fn copy(report: &mut Report, copies: &mut Copies, node: &Node, canary: &Canary) -> Result<PathBuf, CliError> {
    let mut missing = Vec::new();
    let record = copies.take(&node.record);
    let record =
        record.map_err(|why| failure(ExitCode::NotReachable, why, "run it as the plugin's user, or as root"))?;
    for path in node.files.iter().filter(|path| **path != node.record) {
        missing.extend(copies.take(path).err());
    }
    let annotations = canary.sealed.annotations.iter().map(|(name, value)| (name, BASE64.encode(value)));
    let sealed = json!({
        "ciphertext": BASE64.encode(&canary.sealed.ciphertext),
        "key_id": canary.sealed.key_id,
        "annotations": annotations.collect::<std::collections::BTreeMap<_, _>>(),
    });
    stage::write(&copies.folder().join("sealed-seed.json"), &sealed)?;
    let words = format!("the sealed seed, and {}", copies.in_words());
    let found = if missing.is_empty() { Ok(words) } else { Err(format!("{words}; not {}", missing.join("; "))) };
    report.step("copy what the node holds without the HSM", "each file", found);
    Ok(record)
}

fn search(report: &mut Report, copies: &Copies, canary: &Canary) -> Result<(), CliError> {
    let found = copies.search(&*canary.seed)?;
    let found = if found.is_empty() { Ok("nowhere".to_owned()) } else { Err(found.join(", ")) };
    report.step("look for the seed in the copies, as it is, in hex and in base64", "nowhere", found);
    // Teeth: the same search finds what is there.
    let planted = copies.folder().join("planted");
    fs::write(&planted, format!("seed: {}\n", BASE64.encode(&*canary.seed))).map_err(|error| system(&error))?;
    let found = copies.search(&*canary.seed)?;
    fs::remove_file(&planted).map_err(|error| system(&error))?;
    let found = if found == ["planted"] { Ok("found".to_owned()) } else { Err("the search finds nothing".to_owned()) };
    report.step("the same search, with the seed planted beside the copies", "found: the search works", found);
    Ok(())
}

/// All that a thief can do with this program and the copies.
fn attempts(report: &mut Report, folder: &Folder, record: &Path, node: &Node, canary: &Canary) -> Result<(), CliError> {
    let other = Token::new(folder.within("other")?)?;
    let mut attempt = |name: &str, tried: &str, record: &Path| {
        let place = folder.within(name)?;
        stage::configure(&place, &node.cluster, &other.section(), record)?;
        let mut plugin = Plugin::start(&place)?;
        let started = plugin.healthy();
        let opened = match stage::opens(&plugin.socket, &canary.sealed, &*canary.seed) {
            Ok(()) => Err("the seed came back".to_owned()),
            Err(refused) => Ok(format!("{}; Decrypt: {refused}", started.err().unwrap_or_default())),
        };
        report.step(tried, "opens nothing", opened);
        Ok::<_, CliError>(())
    };
    attempt("empty", "hsm-kms with the copies, and another token with a PIN that is known", record)?;
    // The thief knows what the record is compared with.
    let mut changed: serde_json::Value = fs::read(record)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| failure(ExitCode::NotReachable, "the record cannot be read", "try again"))?;
    if let Some(token) = changed.get_mut("token").and_then(serde_json::Value::as_object_mut) {
        token.insert("serial".to_owned(), json!(other.serial));
        token.insert("label".to_owned(), json!(crate::ceremony::THROW_AWAY_LABEL));
    }
    let forged = folder.within("forged-record")?.join("kek-record.json");
    stage::write(&forged, &changed)?;
    attempt("forged", "the same, and the record changed to name that token", &forged)?;
    other.destroy()?;
    attempt("none", "the same without any token", record)?;
    recovery(report, record, node, canary)
}

/// The thief has no recovery key, and makes one.
fn recovery(report: &mut Report, record: &Path, node: &Node, canary: &Canary) -> Result<(), CliError> {
    let record =
        KekRecord::read(record).map_err(|error| failure(ExitCode::BadUsage, error.to_string(), error.hint()))?;
    if record.recipients.is_empty() {
        report.note("The KEK has no recovery key: there is nothing beside the HSM that opens.");
        return Ok(());
    }
    let key = HybridKey::generate().map_err(|error| system(&error))?;
    let mut opened = Vec::new();
    for recipient in &record.recipients {
        let name = recipient.fingerprint().annotation();
        let Some(annotation) = canary.sealed.annotations.get(&name) else { continue };
        let Ok(blob) = RecoveryBlob::parse(annotation) else { continue };
        let Some(key_id) = KeyId::parse(&canary.sealed.key_id) else { continue };
        let binding = Binding::new(&node.cluster, &key_id, recipient);
        if blob.scheme() != Scheme::Hybrid {
            report.note(format!(
                "{} has an offline HSM of its own, which is not among the copies.",
                recipient.fingerprint()
            ));
        } else if key.open(blob.sealed(), &binding).is_some() {
            opened.push(name);
        }
    }
    let found = if opened.is_empty() { Ok("opens nothing".to_owned()) } else { Err(opened.join(", ")) };
    report.step("the sealed seed's recovery blob, with a recovery key of the thief's own", "opens nothing", found);
    report.note(
        "Whoever has the recovery key's private half opens everything: it must never be on a node (docs/recovery.md).",
    );
    Ok(())
}

/// Profiles of tokens that are files on the node.
const SOFTWARE: [&str; 4] = ["kryoptic", "nss", "opencryptoki-soft", "softhsm2"];

fn inside(report: &mut Report, config: &Config) {
    let software: Vec<_> = config
        .tokens()
        .map(|token| token.profile.full_name())
        .filter(|name| SOFTWARE.iter().any(|word| name.starts_with(word)))
        .collect();
    let found = if software.is_empty() {
        Ok(format!("in a device, by the profile {}", config.token.profile.full_name()))
    } else {
        Err(format!("in files of this machine ({}): whoever copies them has the KEK", software.join(", ")))
    };
    report.step("where the KEK lies", "not on the node", found);
}

fn pins(report: &mut Report, config: &Config) {
    for token in config.tokens() {
        let place = match &token.pin {
            None => continue,
            Some(PinSource::File(path)) => format!("in {}", path.display()),
            Some(PinSource::Credential(name)) => {
                format!("in the systemd credential {name}, which the node opens by itself")
            }
            Some(PinSource::Environment(name)) => format!("in the environment, as {name}"),
            Some(PinSource::Descriptor(_)) => "with whoever starts the plugin".to_owned(),
        };
        report.note(format!(
            "The PIN of token {:?} is {place}, and was not copied. Whoever has it and reaches the HSM, by network or by hand, uses the KEK. This drill does not try \
             that. When a node is stolen, lock it out at the HSM first, then change the PIN.",
            token.label
        ));
    }
    report.note("The vendor's own files, such as certificates of the node for the HSM, were not copied: they open nothing, and help to reach the HSM.");
}

fn note_memory(report: &mut Report) {
    report.note("Looked at are files. The memory of a running API server holds seeds and Secrets: a copy of a machine that runs has them.");
}

/// Secrets that nobody encrypted.
fn clear_text(snapshot: &Path) -> Result<String, String> {
    let counted = inventory::count(&Store::Snapshot(snapshot.to_owned()), PREFIX, None);
    let counted = counted.map_err(|error| error.why)?;
    let name = snapshot.file_name().unwrap_or_default().to_string_lossy();
    let of_secrets = |group: &&Group| group.resource == "secrets" && group.form == Form::Identity;
    let plain: u64 = counted.groups.iter().filter(of_secrets).map(|group| group.objects).sum();
    if !counted.complete {
        Err(format!("{name}: not all of it could be read"))
    } else if plain == 0 {
        Ok(format!("none of {} objects in {name} is a Secret in clear text", counted.objects))
    } else {
        Err(format!("{plain} Secrets in {name} are in clear text: rewrite them (docs/inventory.md)"))
    }
}

/// Of the API server's keys.
const PREFIX: &[u8] = b"/registry/";
