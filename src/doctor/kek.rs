//! The KEK: what its record promises, and what the running plugin has proved of it.

use super::checks::{DRILL, KEK, KEYRING, RECORD, RECOVERY, ROTATION};
use super::plugin::{Contact, NO_PLUGIN};
use super::{Keks, NO_CONFIG, NO_RECORD, Subject};
use crate::config::{Config, KekSource};
use crate::finding::Finding;
use crate::key_id;
use crate::keyring::{Kek, Place, State};
use crate::record::{KekRecord, Kind, Recovery, last_drill};

/// A KEK that is in use for longer is a warning.
const ROTATION_DAYS: i64 = 365;

/// A drill that is older is a warning.
const DRILL_DAYS: i64 = 90;

pub(super) fn check(subject: &Subject<'_>, contact: Option<&Contact>) -> Vec<Finding> {
    let rest = [&KEK, &RECOVERY, &DRILL, &ROTATION, &KEYRING];
    let not_checked = |because: &str| rest.map(|check| Finding::not_checked(check, because));
    let Some(config) = subject.config() else {
        let record = Finding::not_checked(&RECORD, NO_CONFIG);
        return std::iter::once(record).chain(not_checked(NO_CONFIG)).collect();
    };
    let keks = match &subject.keks {
        Some(Ok(keks)) => keks,
        Some(Err(problem)) => {
            let failed = Finding::failed(&RECORD, &problem.why, &problem.hint);
            return std::iter::once(failed).chain(not_checked(NO_RECORD)).collect();
        }
        None => return not_checked(NO_CONFIG).into(),
    };
    let Some(active) = keks.keks.iter().find(|kek| kek.state == State::Active) else {
        let failed = Finding::failed(&RECORD, "no KEK is active", "hsm-kms keyring activate");
        return std::iter::once(failed).chain(not_checked("no KEK is active")).collect();
    };
    vec![
        record(active, keks),
        proved(active, contact),
        recovery(&active.record),
        drill(config, &active.record),
        rotation(active, keks),
        keyring(subject, config),
    ]
}

fn record(active: &Kek, keks: &Keks) -> Finding {
    let KekRecord { kind, ceremony, kek, .. } = &active.record;
    let seen = format!("{}, made {}, label {:?}", kind.word(), ceremony.time, kek.label);
    let of = if keks.keks.len() > 1 { format!("; {} KEKs in service", keks.keks.len()) } else { String::new() };
    match kind {
        Kind::Production => Finding::ok(&RECORD, format!("{seen}{of}")),
        Kind::Trial | Kind::Rehearsal => Finding::warning(
            &RECORD,
            format!("{seen}{of}: nobody witnessed how it was made"),
            "do not protect a real cluster with it: hold a ceremony (docs/ceremony.md)",
        ),
    }
}

/// A worker that serves has found the KEK, compared its attributes with the record, and opened the proof blob. To do the same here, somebody
/// would have to log in.
fn proved(active: &Kek, contact: Option<&Contact>) -> Finding {
    let expected = active.key_id().hash();
    match contact.map(|contact| &contact.status) {
        None => Finding::not_checked(&KEK, format!("{NO_PLUGIN}, and the look itself would log in")),
        Some(Err(_)) => Finding::not_checked(&KEK, "the plugin gave no Status, and the look itself would log in"),
        Some(Ok((answer, _))) if key_id::hash(&answer.key_id) != expected => Finding::failed(
            &KEK,
            format!("the plugin announces {}, the record's is {expected}", key_id::hash(&answer.key_id)),
            "see that plugin and doctor have one configuration; restart the plugin if the record was exchanged",
        ),
        Some(Ok((answer, _))) if answer.healthz == "ok" => {
            Finding::ok(&KEK, format!("the running plugin compared its attributes and opened its proof; {expected}"))
        }
        Some(Ok(_)) => Finding::not_checked(&KEK, "the plugin is not well, and the look itself would log in"),
    }
}

fn recovery(record: &KekRecord) -> Finding {
    let recipients = record.recipients.len();
    let keys: Vec<_> = record.recipients.iter().map(|recipient| recipient.fingerprint().to_string()).collect();
    let also =
        if recipients > 0 { format!("; every seed is also sealed to {}", keys.join(", ")) } else { String::new() };
    let copies = record.witnessed.as_ref().map_or(0, |witnessed| witnessed.copies.len());
    match record.recovery {
        Recovery::Copies => Finding::ok(&RECOVERY, format!("{copies} further tokens proved to hold the KEK{also}")),
        Recovery::Shares => Finding::ok(&RECOVERY, format!("the shares that the KEK came in{also}")),
        Recovery::Recipients => Finding::ok(&RECOVERY, format!("recovery key{also}")),
        // `serve` takes this of a trial, or where the configuration accepts it; otherwise the record is refused.
        Recovery::None => Finding::warning(
            &RECOVERY,
            "none: no copies, no shares, no recovery key",
            "hold a ceremony with a recovery recipient (docs/recovery.md), and change over to its KEK",
        ),
    }
}

fn drill(config: &Config, record: &KekRecord) -> Finding {
    if record.recipients.is_empty() {
        return Finding::not_checked(&DRILL, "the KEK has no recovery key");
    }
    let advice = "hold one: hsm-kms recovery drill, and name its report in kek.recovery_drill";
    let recipients: Vec<_> = record.recipients.iter().collect();
    match last_drill(config.kek.recovery_drill.as_deref(), &config.cluster, &recipients) {
        Ok(time) if time.days_ago() <= DRILL_DAYS => {
            Finding::ok(&DRILL, format!("held {} days ago, on {time}", time.days_ago()))
        }
        Ok(time) => Finding::warning(&DRILL, format!("the last one was {} days ago", time.days_ago()), advice),
        Err(why) => Finding::warning(&DRILL, why, advice),
    }
}

fn rotation(active: &Kek, keks: &Keks) -> Finding {
    let activated = keks.keyring.as_ref().and_then(crate::keyring::KeyringFile::last_activation);
    let since = activated.unwrap_or(active.record.ceremony.time);
    let found = format!("{} days in use, epoch {}", since.days_ago(), active.activations);
    if since.days_ago() > ROTATION_DAYS {
        Finding::warning(&ROTATION, found, "change over to a new KEK (docs/rotation.md)")
    } else {
        Finding::ok(&ROTATION, found)
    }
}

fn keyring(subject: &Subject<'_>, config: &Config) -> Finding {
    let KekSource::Keyring(path) = &config.kek.source else {
        return Finding::not_checked(&KEYRING, "the configuration has one record and no keyring");
    };
    let Some(file) = subject.keks().and_then(|keks| keks.keyring.as_ref()) else {
        return Finding::not_checked(&KEYRING, NO_RECORD);
    };
    let advice = format!("hsm-kms keyring converged --keyring {} --nodes with every node", path.display());
    match &subject.node {
        None => Finding::not_checked(&KEYRING, "the configuration has no `endpoints` to ask"),
        Some(Err(why)) => Finding::not_checked(&KEYRING, format!("the endpoints do not answer: {why}")),
        Some(Ok(report)) => {
            let verdict = report.judge(file);
            let found = format!("this node serves epoch {}", report.epoch);
            if let Some(refused) = &report.refused {
                Finding::failed(&KEYRING, format!("{found}, and refuses the file on its disk: {refused}"), advice)
            } else if verdict.place != Place::Same {
                Finding::warning(&KEYRING, format!("{found}, and not the file on its disk"), advice)
            } else if verdict.missing.is_empty() {
                Finding::ok(&KEYRING, format!("{found} of the file, and opens with all its KEKs"))
            } else {
                Finding::failed(&KEYRING, format!("{found}, and cannot open with each KEK of the file"), advice)
            }
        }
    }
}
