//! The machine.

use std::path::Path;

use super::Subject;
use super::checks::CLOCK;
use crate::finding::Finding;
use crate::record::UtcTime;

/// No clock that is right shows an earlier time: this release is younger.
const RELEASE: &str = "2026-01-01T00:00:00Z";

/// systemd-timesyncd touches it when the clock is synchronised.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

pub(super) fn clock(subject: &Subject<'_>) -> Finding {
    let now = UtcTime::now();
    let keks = subject.keks().map(|keks| keks.keks.as_slice()).unwrap_or_default();
    let made = keks.iter().map(|kek| kek.record.ceremony.time).max();
    let advice = "set the clock: timedatectl set-ntp true";
    if RELEASE.parse().is_ok_and(|release: UtcTime| now < release) {
        return Finding::failed(&CLOCK, format!("{now}: before this program was made"), advice);
    }
    if let Some(made) = made.filter(|made| now < *made) {
        return Finding::failed(&CLOCK, format!("{now}: before the KEK was made, on {made}"), advice);
    }
    let known = if Path::new(SYNCHRONISED).exists() {
        "synchronised by systemd-timesyncd"
    } else {
        "whether it is synchronised is not known here"
    };
    Finding::ok(&CLOCK, format!("{now}; {known}"))
}
