//! `hsm-kms recovery audit`: how much of a store a recovery key would open, and which seeds the living KEK opens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::plugin::{self, Plugin};
use super::sealed::{self, Found};
use super::{failure, file, print};
use crate::cli::CliError;
use crate::cli::etcd::store::StoreArgs;
use crate::cli::etcd::{shown, table};
use crate::etcd::inventory::Source;
use crate::etcd::seeds::SealedSeed;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::record::{KekRecord, Sha256Digest, UtcTime};
use crate::recovery::{RecoveryBlob, is_annotation};
use crate::strict::{self, FileError};

/// Count which share of objects and seeds a recovery key would open; nothing is decrypted unless a socket is given
#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// What the API server's keys begin with (its --etcd-prefix)
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// A KEK record: only blobs to its recipients count
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// The socket of a plugin with the living KEK: it opens every seed, and the report names those that it opened
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Also write the report there as JSON, for `recovery rewrap --audit`; must not exist
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The report.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Audit {
    version: u64,
    made: UtcTime,
    source: Source,
    revision: u64,
    /// Whether all of the store could be read.
    complete: bool,
    objects: u64,
    seeds: u64,
    /// How many carry a well-formed recovery blob.
    objects_covered: u64,
    seeds_covered: u64,
    /// By KEK.
    keks: Vec<Kek>,
    /// Objects under KMS v2 of other plugins; they do not count above.
    other_objects: u64,
    /// Recovery blobs that are none, and what could not be read; the first of them.
    faults: Vec<String>,
    faults_left_off: u64,
    /// Digests of the seeds that the living KEK opened, sorted. Only with a socket.
    opened: Option<BTreeSet<Sha256Digest>>,
    /// Seeds that it refused, the first of them.
    refused: Vec<String>,
    refused_left_off: u64,
}

/// What is sealed by one KEK.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kek {
    key_id: KeyId,
    objects: u64,
    seeds: u64,
    objects_covered: u64,
    seeds_covered: u64,
    recipients: Vec<Covered>,
}

/// What is sealed to one recipient.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Covered {
    /// The first 16 digits of its fingerprint.
    recipient: String,
    objects: u64,
    seeds: u64,
}

pub(super) fn run(args: &AuditArgs) -> Result<ExitCode, CliError> {
    let expected = args.record.as_deref().map(expected).transpose()?;
    if let Some(output) = &args.output {
        file::check_new(output)?;
    }
    let found = sealed::collect(&args.store.store(), &args.prefix)?;
    let mut audit = Audit::of(&found, expected.as_ref());
    if let Some(socket) = &args.socket {
        audit.ask(&found, &mut Plugin::connect(socket)?)?;
    }
    if let Some(output) = &args.output {
        file::write_new(output, 0o644, super::json(&audit)?.as_bytes())?;
    }
    print(&if args.json { super::json(&audit)? } else { audit.text() })?;
    audit.verdict().map(|()| ExitCode::Done)
}

/// The annotations of the recipients of this record.
fn expected(path: &Path) -> Result<BTreeSet<String>, CliError> {
    let record = KekRecord::read(path).map_err(|error| {
        failure(ExitCode::BadUsage, "the KEK record cannot be used", error.to_string(), error.hint())
    })?;
    Ok(record.recipients.iter().map(|recipient| recipient.fingerprint().annotation()).collect())
}

impl Audit {
    /// How much of these seeds is covered. Blobs to others than the expected recipients do not count.
    pub(super) fn of(found: &Found, expected: Option<&BTreeSet<String>>) -> Self {
        let mut audit = Self {
            version: VERSION,
            made: UtcTime::now(),
            source: found.source.clone(),
            revision: found.revision,
            complete: found.seeds.are_complete(),
            objects: 0,
            seeds: 0,
            objects_covered: 0,
            seeds_covered: 0,
            keks: Vec::new(),
            other_objects: 0,
            faults: found.seeds.faults.clone(),
            faults_left_off: found.seeds.faults_left_off,
            opened: None,
            refused: Vec::new(),
            refused_left_off: 0,
        };
        let mut keks: BTreeMap<KeyId, (Kek, BTreeMap<String, Covered>)> = BTreeMap::new();
        for seed in found.seeds.found.values() {
            let Some(key_id) = KeyId::parse(&seed.key_id) else {
                audit.other_objects += seed.objects;
                continue;
            };
            let empty = || {
                let key_id = key_id.clone();
                let recipients = Vec::new();
                (
                    Kek { key_id, objects: 0, seeds: 0, objects_covered: 0, seeds_covered: 0, recipients },
                    BTreeMap::new(),
                )
            };
            let (kek, recipients) = keks.entry(key_id.clone()).or_insert_with(empty);
            kek.seeds += 1;
            kek.objects += seed.objects;
            let blobs = audit.blobs(seed, expected);
            if !blobs.is_empty() {
                kek.seeds_covered += 1;
                kek.objects_covered += seed.objects;
            }
            for recipient in blobs {
                let row = Covered { recipient: recipient.clone(), objects: 0, seeds: 0 };
                let covered = recipients.entry(recipient).or_insert(row);
                covered.seeds += 1;
                covered.objects += seed.objects;
            }
        }
        for (kek, recipients) in keks.into_values() {
            audit.objects += kek.objects;
            audit.seeds += kek.seeds;
            audit.objects_covered += kek.objects_covered;
            audit.seeds_covered += kek.seeds_covered;
            audit.keks.push(Kek { recipients: recipients.into_values().collect(), ..kek });
        }
        audit
    }

    /// Reads the file that --output wrote.
    pub(super) fn read(path: &Path) -> Result<Self, CliError> {
        let read = strict::read_most(path, MAX_BYTES).and_then(|bytes| strict::json_most(&bytes, VERSION, MAX_BYTES));
        let audit: Self = read.map_err(|fault| {
            let error = FileError::new("audit", Some(path), fault);
            failure(ExitCode::BadUsage, "the audit cannot be used", error.to_string(), error.hint())
        })?;
        if audit.opened.is_none() {
            let why = format!("{} was made without --socket: no KEK opened the seeds", path.display());
            return Err(failure(ExitCode::BadUsage, "the audit cannot be used", why, "give one that was made with it"));
        }
        Ok(audit)
    }

    /// Whether the living KEK opened this seed.
    pub(super) fn opened(&self, digest: &[u8; 32]) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.contains(&Sha256Digest(*digest)))
    }

    /// Objects that carry a blob, and all.
    pub(super) fn objects(&self) -> (u64, u64) {
        (self.objects_covered, self.objects)
    }

    /// The recipients that were found, by their digits.
    pub(super) fn recipients(&self) -> BTreeSet<&str> {
        self.keks.iter().flat_map(|kek| &kek.recipients).map(|covered| covered.recipient.as_str()).collect()
    }

    /// The recipients that this seed is sealed to, as far as it can be told without their keys.
    fn blobs(&mut self, seed: &SealedSeed, expected: Option<&BTreeSet<String>>) -> Vec<String> {
        let mut names: Vec<&String> = seed.annotations.keys().filter(|name| is_annotation(name)).collect();
        names.sort_unstable();
        let mut recipients = Vec::new();
        for name in names {
            if expected.is_some_and(|expected| !expected.contains(name)) {
                continue;
            }
            match RecoveryBlob::parse(seed.annotations.get(name).map_or(&[][..], |value| value)) {
                Ok(_) => recipients.push(sealed::short(name).to_owned()),
                Err(error) => {
                    let text = format!("{} objects, such as {}: {error}", seed.objects, shown(&seed.example));
                    push(&mut self.faults, &mut self.faults_left_off, text);
                }
            }
        }
        recipients
    }

    /// Has the living KEK open every seed.
    fn ask(&mut self, found: &Found, plugin: &mut Plugin) -> Result<(), CliError> {
        let mut opened = BTreeSet::new();
        for (digest, seed) in &found.seeds.found {
            if KeyId::parse(&seed.key_id).is_none() {
                continue;
            }
            match plugin.decrypt(&seed.ciphertext, &seed.key_id, &seed.annotations)? {
                Ok(_) => drop(opened.insert(Sha256Digest(*digest))),
                Err(status) => {
                    let (seed_name, example) = (sealed::short_digest(digest), shown(&seed.example));
                    let why = plugin::in_words(&status);
                    let text = format!("seed {seed_name} of {} objects, such as {example}: {why}", seed.objects);
                    push(&mut self.refused, &mut self.refused_left_off, text);
                }
            }
        }
        self.opened = Some(opened);
        Ok(())
    }

    fn verdict(&self) -> Result<(), CliError> {
        let fails = |what: &str, why: String, hint: &str| Err(failure(ExitCode::DoesNotHold, what, why, hint));
        if let Some(refused) = self.refused.first() {
            let why = format!("{} seeds; the first: {refused}", self.refused.len() as u64 + self.refused_left_off);
            return fails("the KEK does not open every seed", why, "the store was changed, or needs another KEK");
        }
        if self.objects_covered < self.objects {
            let why =
                format!("{} of {} objects carry no recovery blob", self.objects - self.objects_covered, self.objects);
            let hint = "serve a KEK whose record has recipients, and rewrite the objects: hsm-kms etcd rewrite-plan";
            return fails("a lost KEK would lose data", why, hint);
        }
        if let Some(fault) = self.faults.first() {
            let why = format!("{} faults; the first: {fault}", self.faults.len() as u64 + self.faults_left_off);
            return fails("not all of the store could be judged", why, "read another copy of the store");
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!("store     {}", table::source(&self.source)));
        let mut rows = table::table(&["sealed by the KEK", "recipient", "objects", "seeds"], 2);
        for kek in &self.keks {
            for covered in &kek.recipients {
                let numbers = [covered.objects, covered.seeds].map(|number| number.to_string());
                rows.add_row([short(&kek.key_id), covered.recipient.clone()].into_iter().chain(numbers));
            }
            let numbers = [kek.objects - kek.objects_covered, kek.seeds - kek.seeds_covered];
            if numbers != [0, 0] {
                let numbers = numbers.map(|number| number.to_string());
                rows.add_row([short(&kek.key_id), "NONE".to_owned()].into_iter().chain(numbers));
            }
        }
        line(format!("\n{rows}\n"));
        line(format!(
            "objects   {} of {}: {}",
            self.objects_covered,
            self.objects,
            percent(self.objects_covered, self.objects)
        ));
        line(format!(
            "seeds     {} of {}: {}",
            self.seeds_covered,
            self.seeds,
            percent(self.seeds_covered, self.seeds)
        ));
        if let Some(opened) = &self.opened {
            line(format!("opened    {} seeds, by the KEK itself", opened.len()));
        }
        if self.other_objects > 0 {
            line(format!("{} objects are other plugins', and do not count.", self.other_objects));
        }
        line("Whether a blob opens is known to the private key alone: hsm-kms recovery drill.".to_owned());
        for fault in &self.faults {
            line(format!("fault: {fault}"));
        }
        for refused in &self.refused {
            line(format!("refused: {refused}"));
        }
        out
    }
}

/// Most faults that are spelled out.
const LIMIT: usize = 20;

fn push(list: &mut Vec<String>, left_off: &mut u64, text: String) {
    if list.len() < LIMIT {
        list.push(text);
    } else {
        *left_off += 1;
    }
}

fn short(key_id: &KeyId) -> String {
    table::short(key_id.as_str(), 31)
}

/// Rounded down: 100 % is all.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let tenths = part.saturating_mul(1000).checked_div(whole).unwrap_or(1000);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

const VERSION: u64 = 1;

/// Most bytes of the file: the digests of 50 000 seeds, and their faults.
const MAX_BYTES: usize = 16 << 20;
