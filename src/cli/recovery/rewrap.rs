//! `hsm-kms recovery rewrap`: every seed of a lost KEK is opened with the recovery key and sealed anew by a running plugin.

mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use self::report::{Refused, Report};
use super::audit::Audit;
use super::plugin::Plugin;
use super::private_key::PrivateKeyArgs;
use super::sealed::{self, Closed, Found};
use super::{failure, file, print};
use crate::cli::CliError;
use crate::cli::etcd::shown;
use crate::cli::etcd::store::{Store, StoreArgs};
use crate::cli::etcd::walk::{bar, walk};
use crate::cluster::Cluster;
use crate::etcd::open;
use crate::etcd::seeds::{SealedSeed, digest_of};
use crate::etcd::value::Stored;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::keyring::{Origin, RewrapTable, RewrappedSeed};
use crate::record::{Sha256Digest, UtcTime};
use crate::recovery::{self, Recipient};
use crate::secret::Plaintext;
use crate::strict::Base64;

/// Seal the seeds of a lost KEK anew, under the KEK of a running plugin, into a rewrap table
#[derive(Args, Debug)]
pub(super) struct RewrapArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    key: PrivateKeyArgs,
    /// The cluster's name, as the lost KEK's record had it
    #[arg(long, value_name = "NAME")]
    cluster: Cluster,
    /// The socket of the plugin that has the new KEK
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Where the table goes; must not exist
    #[arg(long, value_name = "FILE")]
    table: PathBuf,
    /// What the API server's keys begin with (its --etcd-prefix)
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// The report that `recovery audit --socket --output` wrote while the KEK lived: seeds that it does not know are refused
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Take seeds that the audit does not know, too: written after it, or by somebody else
    #[arg(long, requires = "audit")]
    accept_unaudited: bool,
    /// Write the table even if not all of the store can be read, or not every seed opens
    #[arg(long)]
    partial: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RewrapArgs) -> Result<ExitCode, CliError> {
    let key = args.key.open()?;
    let recipient = key.recipient()?;
    let audit = args.audit.as_deref().map(Audit::read).transpose()?;
    file::check_new(&args.table)?;
    let store = args.store.store();
    let found = sealed::collect(&store, &args.prefix)?;
    let mut plugin = Plugin::connect(&args.socket)?;
    let mut report = Report::new(args.cluster.clone(), &recipient, plugin.announced().clone(), &found);
    let seeds = lost_seeds(&found, &mut plugin, &mut report)?;

    let mut opened = BTreeMap::new();
    let (mut closed, mut unaudited) = (Vec::new(), 0_u64);
    for (digest, key_id, seed) in seeds {
        let refused = |why: String| Refused::new(&digest, &key_id, seed, why);
        match sealed::open(&key, &recipient, &args.cluster, &key_id, &seed.annotations) {
            Err(why) => {
                report.refuse(refused(why.to_string()));
                closed.push(why);
            }
            Ok(_) if !args.accept_unaudited && audit.as_ref().is_some_and(|audit| !audit.opened(&digest)) => {
                report.refuse(refused(
                    "the audit does not know it: it was written later, or by somebody else".to_owned(),
                ));
                unaudited += 1;
            }
            Ok(source) => drop(opened.insert(digest, Opened { key_id, seed, source, proved: 0 })),
        }
    }
    if opened.is_empty() && unaudited == 0 {
        return Err(none_opens(args, &recipient, &closed));
    }
    prove(&store, &args.prefix, &mut opened, &mut report)?;
    opened.retain(|digest, opened| {
        if opened.proved == 0 {
            let why = format!("it opens, but none of its {} objects with it: {SWAPPED}", opened.seed.objects);
            report.refuse(Refused::new(digest, &opened.key_id, opened.seed, why));
        }
        opened.proved > 0
    });
    report.count(&opened);
    let is_whole = report.is_whole();
    if !opened.is_empty() && (is_whole || args.partial) {
        let table = seal(&mut plugin, &opened, &report, &found, is_whole)?;
        let text = table.to_json();
        file::write_new(&args.table, 0o644, text.as_bytes())?;
        report.table = Some(args.table.display().to_string());
        report.table_bytes = text.len() as u64;
    }
    print(&if args.json { super::json(&report)? } else { report.text() })?;
    if report.table.is_some() { Ok(ExitCode::Done) } else { Err(not_whole(&report, unaudited)) }
}

const SWAPPED: &str = "its recovery blob was swapped with another seed's, or the objects were changed";

/// A seed that the recovery key opened.
struct Opened<'a> {
    key_id: KeyId,
    seed: &'a SealedSeed,
    source: Plaintext,
    /// How many of its objects open with it.
    proved: u64,
}

type Seed<'a> = ([u8; 32], KeyId, &'a SealedSeed);

/// The seeds of KEKs that the plugin does not have.
fn lost_seeds<'a>(found: &'a Found, plugin: &mut Plugin, report: &mut Report) -> Result<Vec<Seed<'a>>, CliError> {
    let mut seeds = Vec::new();
    for (digest, seed) in &found.seeds.found {
        if let Some(key_id) = KeyId::parse(&seed.key_id)
            && plugin.lacks(&seed.key_id)?
        {
            let lost = report.lost.entry(key_id.clone()).or_default();
            lost.seeds += 1;
            lost.objects += seed.objects;
            seeds.push((*digest, key_id, seed));
        } else {
            report.other_objects += seed.objects;
        }
    }
    if seeds.is_empty() {
        let announced = plugin.announced();
        let why = match found.seeds.objects {
            0 => "the store has no object under KMS v2".to_owned(),
            objects => format!(
                "the plugin, which announces {announced}, has each KEK of hsm-kms that its {objects} objects need"
            ),
        };
        let hint = "give the socket of the plugin with the new KEK, and the store that needs the lost one";
        return Err(failure(ExitCode::DoesNotHold, "no KEK is lost", why, hint));
    }
    seeds.sort_unstable_by_key(|(digest, _, _)| *digest);
    Ok(seeds)
}

/// Goes through the store once more, and opens every object of these seeds.
fn prove(
    store: &Store,
    prefix: &str,
    opened: &mut BTreeMap<[u8; 32], Opened<'_>>,
    report: &mut Report,
) -> Result<(), CliError> {
    walk(store, prefix.as_bytes(), None, &mut |entry| {
        let Ok(Stored { object: Some(object), .. }) = Stored::parse(&entry.value) else { return };
        let Some(seed) = opened.get_mut(&digest_of(&object)) else { return };
        match open::open(&entry.key, &object, &seed.source) {
            Ok(_) => seed.proved += 1,
            Err(error) => report.unopened(&shown(&entry.key), &error),
        }
    })
    .map(drop)
}

/// Has the plugin seal each seed anew, and open it again.
fn seal(
    plugin: &mut Plugin,
    opened: &BTreeMap<[u8; 32], Opened<'_>>,
    report: &Report,
    found: &Found,
    complete: bool,
) -> Result<RewrapTable, CliError> {
    let not_made = |why: String, hint: &str| failure(ExitCode::DoesNotHold, "the table was not made", why, hint);
    let progress = bar("{bar:30} {pos} of {len} seeds sealed, {eta} left");
    progress.set_length(opened.len() as u64);
    let mut seeds = Vec::new();
    for (digest, Opened { key_id, source, .. }) in opened {
        let plaintext = recovery::rewrapped(source, digest)
            .ok_or_else(|| not_made(format!("a seed has {} bytes", source.len()), "no API server makes such a seed"))?;
        let sealed = plugin.encrypt(&plaintext)?;
        if sealed.key_id != report.sealed_with.as_str() {
            let why = format!("the plugin sealed with {} after it announced {}", sealed.key_id, report.sealed_with);
            return Err(not_made(why, "wait until the rotation is over, and do it again"));
        }
        let again = plugin.decrypt(&sealed.ciphertext, &sealed.key_id, &sealed.annotations)?;
        if !again.is_ok_and(|again| again.expose() == plaintext.expose()) {
            return Err(not_made("the plugin does not open what it sealed".to_owned(), "look into the plugin's log"));
        }
        seeds.push(RewrappedSeed {
            seed: Sha256Digest(*digest),
            key_id: key_id.clone(),
            ciphertext: Base64(sealed.ciphertext.to_vec()),
            annotations: sealed.annotations.into_iter().map(|(name, value)| (name, Base64(value.to_vec()))).collect(),
        });
        progress.inc(1);
    }
    progress.finish_and_clear();
    let origin = Origin {
        cluster: report.cluster.clone(),
        made: UtcTime::now(),
        source: sealed::in_words(&found.source, found.revision),
        complete,
        sealed_with: report.sealed_with.clone(),
    };
    Ok(RewrapTable::new(origin, seeds))
}

/// Not one seed opened: the key or the cluster is wrong, rather than each blob.
fn none_opens(args: &RewrapArgs, recipient: &Recipient, closed: &[Closed]) -> CliError {
    let what = format!("none of {} seeds of the lost KEK opens", closed.len());
    let fingerprint = recipient.fingerprint();
    let first = closed.first().map_or(String::new(), ToString::to_string);
    let (why, hint) = if closed.iter().all(|why| matches!(why, Closed::Uncovered)) {
        (
            "they carry no recovery blob: the KEK had no recipients".to_owned(),
            "see docs/runbooks/lost-kek.md, first page",
        )
    } else if closed.iter().all(|why| matches!(why, Closed::OtherKey(_) | Closed::Uncovered)) {
        let other = closed.iter().find(|why| matches!(why, Closed::OtherKey(_))).map_or(first, ToString::to_string);
        (
            format!("this is another key, {fingerprint}: {other}"),
            "give the private half of one that they were sealed to",
        )
    } else if closed.iter().all(|why| matches!(why, Closed::Refused(_))) {
        let why =
            format!("they were sealed for another cluster than {:?}, or every blob was changed", args.cluster.as_str());
        (why, "give --cluster as the lost KEK's record has it")
    } else {
        (format!("the first: {first}"), "try another copy of the store")
    };
    failure(ExitCode::DoesNotHold, what, why, hint)
}

fn not_whole(report: &Report, unaudited: u64) -> CliError {
    let first = report.refused.first().map(|refused| format!("seed {}: {}", report::short(&refused.seed), refused.why));
    let first = first.or_else(|| report.faults.first().cloned()).unwrap_or_default();
    let faults = report.faults.len() as u64 + report.faults_left_off;
    let count = report.refused.len() as u64 + report.refused_left_off;
    let hint = if unaudited > 0 {
        "see that each is one of yours; then add --accept-unaudited, or --partial to leave them out"
    } else {
        "try another copy of the store; or add --partial, and what needs these seeds stays closed"
    };
    let why = format!("{count} seeds are refused, and {faults} faults were met; the first: {first}");
    failure(ExitCode::DoesNotHold, "the table was not written", why, hint)
}
