//! When a recovery key last proved to work: the report that the configuration names.

use std::path::Path;

use crate::cluster::Cluster;
use crate::keyring::Keyring;
use crate::record::{DrillOutcome, DrillReport, UtcTime};

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
    let path = path.ok_or("no drill: the configuration has no kek.recovery_drill")?;
    if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Err(format!("no drill: {} is not there", path.display()));
    }
    let report = DrillReport::read(path).map_err(|error| error.to_string())?;
    let is_recipient = keyring.recipients().any(|recipient| recipient.fingerprint() == report.fingerprint);
    if report.cluster != *cluster || !is_recipient {
        return Err(format!("the drill of {} was of another cluster's or KEK's recovery key", path.display()));
    }
    match report.outcome {
        DrillOutcome::Opened => Ok(report.time),
        DrillOutcome::Failed => Err(format!("the drill of {} failed", report.time)),
    }
}
