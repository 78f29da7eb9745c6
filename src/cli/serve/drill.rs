//! When a recovery key last proved to work: the report that the configuration names.

use std::path::Path;

use crate::cluster::Cluster;
use crate::keyring::Keyring;
use crate::record::{UtcTime, last_drill};

/// A drill older than this is a warning.
const DAYS: i64 = 180;

/// When a key of the recipients that seal now last opened a seed. `None`: not known, or it failed.
pub(in crate::cli) fn last(path: Option<&Path>, cluster: &Cluster, keyring: &Keyring) -> Option<UtcTime> {
    look(path, cluster, keyring).ok()
}

/// Says at the start if nobody knows whether the recovery key works.
pub(super) fn warn(path: Option<&Path>, cluster: &Cluster, keyring: &Keyring) {
    if keyring.recipients().next().is_none() {
        return;
    }
    let why = match look(path, cluster, keyring) {
        Ok(time) if time.days_ago() <= DAYS => return,
        Ok(time) => format!("the last drill was {} days ago", time.days_ago()),
        Err(why) => why,
    };
    tracing::warn!("whether the recovery key works is not known: {why}; hold one: hsm-kms recovery drill");
}

fn look(path: Option<&Path>, cluster: &Cluster, keyring: &Keyring) -> Result<UtcTime, String> {
    last_drill(path, cluster, &keyring.recipients().collect::<Vec<_>>())
}
