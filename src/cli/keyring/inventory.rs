//! What a store still needs, as `hsm-kms etcd inventory --json` prints it: a KEK that is needed is not retired.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::keyring::{Kek, sha256};
use crate::record::{Sha256Digest, UtcTime};
use crate::strict;

/// Inventories of the live store and of backups.
pub(super) struct Inventories(Vec<(PathBuf, Sha256Digest, Inventory)>);

/// What matters here of an inventory.
#[derive(Deserialize)]
struct Inventory {
    made: UtcTime,
    complete: bool,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    resource: String,
    provider: String,
    key_id: Option<String>,
    objects: u64,
}

/// Oldest inventory that tells of the store as it is.
const FRESH: Duration = Duration::from_hours(24);

/// So long after an activation no API server writes with a seed of before any more: it has asked for Status, or its seed has expired.
const SETTLED: Duration = Duration::from_mins(10);

/// Most bytes of an inventory.
const MAX_BYTES: usize = 64 * 1024 * 1024;

const VERSION: u64 = 1;

impl Inventories {
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, CliError> {
        let read = |path: &PathBuf| {
            let read = strict::read_most(path, MAX_BYTES).and_then(|bytes| {
                strict::json_most::<Inventory>(&bytes, VERSION, MAX_BYTES).map(|inventory| (sha256(&bytes), inventory))
            });
            read.map(|(digest, inventory)| (path.clone(), digest, inventory)).map_err(|fault| CliError {
                code: ExitCode::BadUsage,
                what: format!("the inventory {} cannot be used", path.display()),
                why: fault.to_string(),
                hint: "name a file with what `hsm-kms etcd inventory --json` printed".to_owned(),
            })
        };
        paths.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn digests(&self) -> Vec<Sha256Digest> {
        self.0.iter().map(|(_, digest, _)| *digest).collect()
    }

    /// Refuses if an object needs the KEK, in any of its activations, or might. `activated`: when another KEK took its place.
    pub(super) fn require_unused(&self, kek: &Kek, activated: Option<UtcTime>) -> Result<(), CliError> {
        let refuse = |why: String, hint: &str| {
            let what = "the KEK was not retired".to_owned();
            Err(CliError { code: ExitCode::DoesNotHold, what, why, hint: hint.to_owned() })
        };
        let ids: Vec<KeyId> = kek.key_ids().collect();
        for (path, _, Inventory { complete, groups, .. }) in &self.0 {
            let needs = |group: &&Group| ids.iter().any(|id| group.key_id.as_deref() == Some(id.as_str()));
            let needing: Vec<_> = groups.iter().filter(needs).collect();
            if !needing.is_empty() {
                let mut names: Vec<_> =
                    needing.iter().map(|group| format!("{} ({})", group.resource, group.provider)).collect();
                names.sort_unstable();
                names.dedup();
                let objects: u64 = needing.iter().map(|group| group.objects).sum();
                let why = format!("{} shows {objects} objects that need it: {}", path.display(), names.join(", "));
                return refuse(why, "rewrite them; of a backup, wait until it has expired");
            }
            if !complete {
                let why = format!("{} does not cover all of its store", path.display());
                return refuse(why, "find out what could not be read");
            }
        }
        let now = UtcTime::now();
        let made = |(_, _, inventory): &(PathBuf, Sha256Digest, Inventory)| inventory.made;
        let Some(newest) = self.0.iter().map(made).max().filter(|made| now.since(*made) <= FRESH) else {
            let hint = "make one of the live store with `hsm-kms etcd inventory --json`";
            return refuse(format!("no inventory is younger than {} h", FRESH.as_secs() / 3600), hint);
        };
        if activated.is_some_and(|activated| newest.since(activated) < SETTLED) {
            let minutes = SETTLED.as_secs() / 60;
            let why = format!("no inventory was made {minutes} min or more after a KEK last became active");
            return refuse(why, "an API server may write with an old seed until then: make one of the live store now");
        }
        Ok(())
    }
}
