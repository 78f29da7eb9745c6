//! What can be found out from what the operator has so far.

use std::collections::HashSet;
use std::path::Path;

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::GuideArgs;
use crate::cli::CliError;
use crate::cli::etcd::store::Store;
use crate::cli::etcd::walk::walk;
use crate::cli::recovery::plugin::Plugin;
use crate::cli::recovery::private_key::PrivateKey;
use crate::cli::recovery::sealed::{self, Found};
use crate::etcd::client::Target;
use crate::etcd::seeds::{SealedSeed, Seeds};
use crate::etcd::value::{Form, Stored};
use crate::key_id::KeyId;
use crate::keyring::RewrapTable;
use crate::record::KekRecord;
use crate::recovery::HybridKey;
use crate::strict;

/// Whatever was given, read; a text says why it cannot be used.
pub(super) struct Facts {
    pub(super) backup: Found,
    pub(super) record: Option<Result<KekRecord, String>>,
    pub(super) key: Option<Result<Fit, String>>,
    pub(super) plugin: Option<Result<KeyId, String>>,
    pub(super) table: Option<Result<RewrapTable, String>>,
    pub(super) live: Option<Result<Live, String>>,
    /// Digests of the seeds in the backup whose KEK the plugin does not have; without a plugin, of all.
    pub(super) lost: HashSet<[u8; 32]>,
    /// How many of them the plugin opens, through its table; and why it does not open the first of the others.
    pub(super) served: (usize, Option<String>),
}

/// What the private half opens.
pub(super) struct Fit {
    pub(super) fingerprint: String,
    /// Seeds of the backup that are sealed to it.
    pub(super) seeds: usize,
    /// How many of them open. Only where the cluster is known.
    pub(super) opened: Option<usize>,
}

/// The running etcd.
pub(super) struct Live {
    pub(super) found: Found,
    /// Objects of the backup under KMS v2 that are there.
    pub(super) present: u64,
    /// Objects that need a KEK that the plugin does not have.
    pub(super) need_lost: u64,
}

impl Facts {
    /// The error: the backup cannot be read at all.
    pub(super) fn gather(args: &GuideArgs) -> Result<Self, CliError> {
        let (backup, backed_up) = read(&Store::Snapshot(args.snapshot.clone()), &args.prefix)?;
        let record = args.record.as_deref().map(|path| KekRecord::read(path).map_err(|error| error.to_string()));
        let key =
            args.key.as_deref().map(|path| fit(path, &backup.seeds, record.as_ref().and_then(|it| it.as_ref().ok())));
        let table = args.table.as_deref().map(|path| RewrapTable::read(path).map_err(|error| error.to_string()));
        let mut plugin = args.socket.as_deref().map(|socket| Plugin::connect(socket).map_err(|error| error.why));
        let mut lost = HashSet::new();
        let mut served = (0, None);
        for (digest, seed) in &backup.seeds.found {
            let mut connected = plugin.as_mut().and_then(|plugin| plugin.as_mut().ok());
            if is_lost(&seed.key_id, connected.as_deref_mut())? {
                lost.insert(*digest);
                if let Some(plugin) = connected {
                    match plugin.decrypt(&seed.ciphertext, &seed.key_id, &seed.annotations)? {
                        Ok(_) => served.0 += 1,
                        Err(status) => served.1 = served.1.or_else(|| Some(status.message().to_owned())),
                    }
                }
            }
        }
        let live = target(args).map(|target| {
            let (found, running) = read(&Store::Live(target), &args.prefix).map_err(|error| error.why)?;
            let present = backed_up.intersection(&running).count() as u64;
            let mut need_lost = 0;
            for seed in found.seeds.found.values() {
                let connected = plugin.as_mut().and_then(|plugin| plugin.as_mut().ok());
                let is_lost = is_lost(&seed.key_id, connected).map_err(|error| error.why)?;
                need_lost += if is_lost { seed.objects } else { 0 };
            }
            Ok(Live { found, present, need_lost })
        });
        let plugin = plugin.map(|plugin| plugin.map(|plugin| plugin.announced().clone()));
        Ok(Self { backup, record, key, plugin, table, live, lost, served })
    }

    /// Whether the running etcd has objects, and none of them needs a lost KEK.
    pub(super) fn is_rewritten(&self) -> bool {
        let live = self.live.as_ref().and_then(|live| live.as_ref().ok());
        live.is_some_and(|live| live.need_lost == 0 && live.present > 0 && live.found.seeds.are_complete())
            && matches!(self.plugin, Some(Ok(_)))
    }
}

/// Without a plugin every KEK of hsm-kms counts as lost.
fn is_lost(key_id: &str, plugin: Option<&mut Plugin>) -> Result<bool, CliError> {
    match plugin {
        Some(plugin) => plugin.lacks(key_id),
        None => Ok(KeyId::parse(key_id).is_some()),
    }
}

/// The seeds of a store, and the keys of its objects under KMS v2, cut to 16 bytes of their hashes.
fn read(store: &Store, prefix: &str) -> Result<(Found, HashSet<[u8; 16]>), CliError> {
    let mut seeds = Seeds::default();
    let mut keys = HashSet::new();
    let walked = walk(store, prefix.as_bytes(), None, &mut |entry| {
        seeds.add(&entry);
        if matches!(Stored::parse(&entry.value), Ok(Stored { form: Form::KmsV2, .. })) {
            keys.extend(name(&entry.key));
        }
    })?;
    Ok((Found::new(seeds, walked), keys))
}

fn name(key: &Bytes) -> Option<[u8; 16]> {
    let hash: [u8; 32] = Sha256::digest(key).into();
    hash.first_chunk::<16>().copied()
}

fn fit(path: &Path, seeds: &Seeds, record: Option<&KekRecord>) -> Result<Fit, String> {
    let bytes = if path.as_os_str() == "-" {
        use std::io::Read;
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_BYTES));
        std::io::stdin().take(MOST_BYTES as u64).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        bytes
    } else {
        Zeroizing::new(strict::read_most(path, MOST_BYTES).map_err(|fault| fault.to_string())?)
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| "the file is no text".to_owned())?;
    let key = HybridKey::parse(text).map_err(|error| error.to_string())?;
    let recipient = key.recipient().ok_or("it has no public half")?;
    let key = PrivateKey::Hybrid(key);
    let annotation = recipient.fingerprint().annotation();
    let sealed: Vec<&SealedSeed> =
        seeds.found.values().filter(|seed| seed.annotations.contains_key(&annotation)).collect();
    let opens = |seed: &&&SealedSeed, record: &KekRecord| {
        KeyId::parse(&seed.key_id)
            .is_some_and(|key_id| sealed::open(&key, &recipient, &record.cluster, &key_id, &seed.annotations).is_ok())
    };
    let opened = record.map(|record| sealed.iter().filter(|seed| opens(seed, record)).count());
    Ok(Fit { fingerprint: recipient.fingerprint().to_string(), seeds: sealed.len(), opened })
}

const MOST_BYTES: usize = 4096;

fn target(args: &GuideArgs) -> Option<Target> {
    let endpoint = args.endpoint.clone()?;
    Some(Target { endpoint, authority: args.cacert.clone(), identity: args.cert.clone().zip(args.cert_key.clone()) })
}
