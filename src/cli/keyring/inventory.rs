//! What a store still needs, as `hsm-kms etcd inventory --json` prints it: a KEK that is needed is not retired.

use std::path::PathBuf;
use std::time::Duration;

use crate::cli::CliError;
use crate::etcd::inventory::{Inventory, Source};
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::keyring::Kek;
use crate::record::{Sha256Digest, UtcTime};
use crate::strict;

/// Inventories of the live store and of backups.
pub(super) struct Inventories(Vec<Named>);

struct Named {
    path: PathBuf,
    digest: Sha256Digest,
    inventory: Inventory,
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
                let inventory = strict::json_most(&bytes, VERSION, MAX_BYTES)?;
                Ok(Named { path: path.clone(), digest: Sha256Digest::of(&bytes), inventory })
            });
            read.map_err(|fault| CliError {
                code: ExitCode::BadUsage,
                what: format!("the inventory {} cannot be used", path.display()),
                why: fault.to_string(),
                hint: "name a file with what `hsm-kms etcd inventory --json` printed".to_owned(),
            })
        };
        paths.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn digests(&self) -> Vec<Sha256Digest> {
        self.0.iter().map(|named| named.digest).collect()
    }

    /// Refuses if an object needs the KEK, in any of its activations, or might. `activated`: when another KEK took its place.
    pub(super) fn require_unused(&self, kek: &Kek, activated: Option<UtcTime>) -> Result<(), CliError> {
        let refuse = |why: String, hint: &str| {
            let what = "the KEK was not retired".to_owned();
            Err(CliError { code: ExitCode::DoesNotHold, what, why, hint: hint.to_owned() })
        };
        let ids: Vec<KeyId> = kek.key_ids().collect();
        for Named { path, inventory, .. } in &self.0 {
            let path = path.display();
            for used in inventory.keks() {
                let resources = used.resources.iter().copied().collect::<Vec<_>>().join(", ");
                let objects = format!("{} objects ({resources} of provider {})", used.objects, used.provider);
                match used.key_id {
                    None => {
                        let why = format!("{path} shows {objects} that are too damaged to say which KEK they need");
                        return refuse(why, "restore or remove them");
                    }
                    Some(id) if ids.iter().any(|it| it.as_str() == id) => {
                        let hint = "rewrite them (`hsm-kms etcd rewrite-plan`); of a backup, wait until it has expired";
                        return refuse(format!("{path} shows {objects} that need it"), hint);
                    }
                    Some(_) => {}
                }
            }
            if !inventory.complete {
                return refuse(format!("{path} does not cover all of its store"), "find out what could not be read");
            }
            if inventory.prefix.trim_matches('/').contains('/') {
                let why = format!("{path} covers only the keys under {}", inventory.prefix);
                return refuse(why, "count everything under the API server's --etcd-prefix");
            }
        }
        // When a snapshot was read says nothing of when it was taken.
        let live = self.0.iter().filter(|named| matches!(named.inventory.source, Source::Etcd { .. }));
        let made = live.filter_map(|named| named.inventory.made.parse::<UtcTime>().ok()).max();
        let Some(made) = made.filter(|made| UtcTime::now().since(*made) <= FRESH) else {
            let hint = "make one now with `hsm-kms etcd inventory --json`";
            return refuse(
                format!("no inventory of a running etcd is younger than {} h", FRESH.as_secs() / 3600),
                hint,
            );
        };
        if activated.is_some_and(|activated| made.since(activated) < SETTLED) {
            let minutes = SETTLED.as_secs() / 60;
            let why =
                format!("no inventory of a running etcd was made {minutes} min or more after a KEK became active");
            return refuse(why, "an API server may write with an old seed until then; make another one");
        }
        Ok(())
    }
}
