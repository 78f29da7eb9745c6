//! Whether only those can write to a file who are meant to, and nobody else reads the PIN.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::checks::{AUDIT_FILE, CONFIG, CONFIG_FILE, PIN_FILE, RECORD_FILE, SOCKET_FOLDER};
use super::plugin::Contact;
use super::{NO_CONFIG, Subject};
use crate::audit::Destination;
use crate::config::{Config, KekSource, Token};
use crate::finding::{Check, Finding, Verdict};
use crate::keyring::folder;
use crate::pin::PinSource;

pub(super) fn check(subject: &Subject<'_>, contact: Option<&Contact>) -> Vec<Finding> {
    let path = subject.config_path;
    let mut findings = vec![
        match &subject.config {
            Ok(config) => {
                let found = format!("{}, cluster {:?}", path.display(), config.cluster.as_str());
                match config.warnings().first() {
                    Some(warning) => Finding::warning(&CONFIG, found, warning),
                    None => Finding::ok(&CONFIG, found),
                }
            }
            Err(problem) => Finding::failed(&CONFIG, &problem.why, &problem.hint),
        },
        rights(&CONFIG_FILE, path, WRITE, contact),
    ];
    match &subject.config {
        Ok(config) => {
            for (token, name) in tokens(config) {
                findings.push(pin(token, contact).of(&name));
            }
            findings
                .extend(record_files(config, subject).iter().map(|path| rights(&RECORD_FILE, path, WRITE, contact)));
            findings.push(audit(config, contact));
        }
        Err(_) => {
            findings.extend([&PIN_FILE, &RECORD_FILE, &AUDIT_FILE].map(|check| Finding::not_checked(check, NO_CONFIG)));
        }
    }
    findings.push(match subject.socket().and_then(Path::parent) {
        Some(folder) => rights(&SOCKET_FOLDER, folder, WRITE, contact),
        None => Finding::not_checked(&SOCKET_FOLDER, "no socket is known"),
    });
    findings
}

/// The tokens, and what the table calls them.
pub(super) fn tokens(config: &Config) -> Vec<(&Token, String)> {
    let standby = config.standby.iter().zip(1..);
    let standby = standby.map(|(standby, number)| (&standby.token, format!("standby {number}")));
    std::iter::once((&config.token, "token".to_owned())).chain(standby).collect()
}

fn pin(token: &Token, contact: Option<&Contact>) -> Finding {
    match &token.pin {
        None => Finding::ok(&PIN_FILE, "nobody logs in with this profile"),
        Some(PinSource::File(path)) => rights(&PIN_FILE, path, READ_OR_WRITE, contact),
        Some(PinSource::Credential(name)) => {
            Finding::not_checked(&PIN_FILE, format!("it is the systemd credential {name}, which only the service sees"))
        }
        Some(PinSource::Environment(name)) => Finding::not_checked(
            &PIN_FILE,
            format!("it is in the variable {name} of the plugin, which only the plugin sees"),
        ),
        Some(PinSource::Descriptor(number)) => Finding::not_checked(
            &PIN_FILE,
            format!("it is passed on as descriptor {number}, which only the plugin has"),
        ),
    }
}

fn audit(config: &Config, contact: Option<&Contact>) -> Finding {
    let path = match config.audit.as_ref().map(|audit| &audit.to) {
        None => return Finding::not_checked(&AUDIT_FILE, "the configuration has no `audit`"),
        Some(Destination::Journal) => return Finding::ok(&AUDIT_FILE, "it goes to the journal"),
        Some(Destination::File(path)) => path,
    };
    if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Finding::not_checked(
            &AUDIT_FILE,
            format!("{} is not there: the plugin makes it at its start", path.display()),
        );
    }
    let room = rustix::fs::statvfs(path).map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    match (rights(&AUDIT_FILE, path, READ_OR_WRITE, contact), room) {
        (Finding { verdict: Verdict::Ok, found, .. }, Ok(room)) if room < LEAST_ROOM => {
            let found = format!("{found}; {} MiB are left on its disk", room >> 20);
            Finding::warning(&AUDIT_FILE, found, "make room, or rotate the file (docs/audit.md)")
        }
        (finding, _) => finding,
    }
}

/// Some days of a busy cluster, in bytes.
const LEAST_ROOM: u64 = 64 << 20;

/// The record, or the keyring and its records.
fn record_files(config: &Config, subject: &Subject<'_>) -> Vec<PathBuf> {
    match &config.kek.source {
        KekSource::Record(path) => vec![path.clone()],
        KekSource::Keyring(path) => {
            let entries =
                subject.keks().and_then(|keks| keks.keyring.as_ref()).map(|file| file.at(super::UtcTime::now()));
            let records = entries.into_iter().flatten().filter(crate::keyring::Entry::is_in_service);
            let records = records.map(|entry| folder(path).join(entry.record.as_str()));
            std::iter::once(path.clone()).chain(records).collect()
        }
    }
}

/// Bits of those who must not write.
pub(super) const WRITE: u32 = 0o022;
/// Bits of those who must neither read nor write.
const READ_OR_WRITE: u32 = 0o077;
const STICKY: u32 = 0o1000;

/// Whether nobody else has these rights on the file, and nobody else can exchange it.
pub(super) fn rights(check: &'static Check, path: &Path, forbidden: u32, contact: Option<&Contact>) -> Finding {
    let unknown = |error: std::io::Error| {
        let advice = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run it as root, or as the plugin's user",
            _ => "put it there, or correct the path",
        };
        Finding::failed(check, format!("{}: {error}", path.display()), advice)
    };
    let (found, real) = match fs::metadata(path).and_then(|found| Ok((found, fs::canonicalize(path)?))) {
        Ok(both) => both,
        Err(error) => return unknown(error),
    };
    let mode = found.mode() & 0o7777;
    let seen = format!("{}, mode {mode:04o}, uid {}", path.display(), found.uid());
    if mode & forbidden != 0 && !(found.is_dir() && mode & STICKY != 0) {
        let (who, fix) = if mode & forbidden & 0o055 != 0 { ("read or write", "go-rwx") } else { ("write", "go-w") };
        return Finding::failed(
            check,
            format!("{seen}: others may {who} it"),
            format!("chmod {fix} {}", path.display()),
        );
    }
    for folder in real.ancestors().skip(1) {
        let around = match fs::metadata(folder) {
            Ok(around) => around,
            Err(error) => return unknown(error),
        };
        let mode = around.mode() & 0o7777;
        if mode & WRITE != 0 && mode & STICKY == 0 {
            let found = format!("{seen}; {} has mode {mode:04o}, so others may exchange it", folder.display());
            return Finding::failed(check, found, format!("chmod go-w {}", folder.display()));
        }
        if !is_own(around.uid(), contact) {
            let found = format!("{seen}; {} belongs to uid {}, who may exchange it", folder.display(), around.uid());
            return Finding::warning(check, found, format!("chown root {}", folder.display()));
        }
    }
    if is_own(found.uid(), contact) {
        Finding::ok(check, seen)
    } else {
        Finding::warning(
            check,
            seen,
            "make it root's; it may only belong to another user if the plugin runs as that user",
        )
    }
}

/// Root, this user, or the plugin's.
fn is_own(uid: u32, contact: Option<&Contact>) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw() || contact.and_then(|contact| contact.uid) == Some(uid)
}
