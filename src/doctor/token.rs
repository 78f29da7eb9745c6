//! Module and token, as they are before any login. What the module does happens in a process of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checks::{CONFIG_FILE, EVIDENCE, MECHANISMS, MODULE, MODULE_FILE, MODULE_KNOWN, PIN_STATE, PROFILE, TOKEN};
use super::files::{WRITE, rights, tokens};
use super::plugin::Contact;
use super::{NO_CONFIG, NO_RECORD, Subject};
use crate::config::Token;
use crate::finding::{Check, Finding, Verdict};
use crate::probe::{self, Look, Seen, TokenLook};
use crate::profile::UserKind;
use crate::record::{KekRecord, Sha256Digest};
use crate::worker::INHERITED;

/// Longest time that a module may take to load and to find its tokens.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn check(subject: &Subject<'_>, contact: Option<&Contact>) -> Vec<Finding> {
    let Some(config) = subject.config() else {
        let all = [&MODULE_FILE, &EVIDENCE].into_iter().chain(AFTER_LOADING);
        return all.map(|check| Finding::not_checked(check, NO_CONFIG)).collect();
    };
    let record = subject.keks().and_then(|keks| keks.keks.first()).map(|kek| &kek.record);
    let is_trusted = rights(&CONFIG_FILE, subject.config_path, WRITE, contact).verdict == Verdict::Ok;
    let mut findings = Vec::new();
    for (position, (token, name)) in tokens(config).into_iter().enumerate() {
        // The first token's serial stands in the record, a standby's in the configuration.
        let standby = position.checked_sub(1).and_then(|standby| config.standby.get(standby));
        let serial = standby.map(|standby| standby.serial.as_str());
        let serial = serial.or_else(|| record.map(|record| record.token.serial.as_str()));
        let file = rights(&MODULE_FILE, &token.module, WRITE, contact);
        // Whoever can write it would run what he likes, as whoever runs this.
        let is_safe = is_trusted && (file.verdict == Verdict::Ok || !token.module.exists());
        findings.extend([file, evidence(token)].map(|finding| finding.of(&name)));
        if !is_safe {
            let rest = AFTER_LOADING
                .map(|check| Finding::not_checked(check, "others could have put it there, so it is not loaded"));
            findings.extend(rest.map(|finding| finding.of(&name)));
            continue;
        }
        let seen = Seen {
            module: token.module.clone(),
            init_reserved: token.init_reserved.clone(),
            label: token.label.clone(),
            serial: serial.map(str::to_owned),
            mechanisms: token.sealing.mechanisms().into_iter().collect(),
        };
        let about = match probe::look(seen, &environment(token), LIMIT) {
            Ok(look) => looked(token, serial, record.filter(|_| standby.is_none()), &look),
            Err(failure) => {
                let rest = AFTER_LOADING.into_iter().filter(|check| **check != MODULE);
                let rest = rest.map(|check| Finding::not_checked(check, "the module cannot be used"));
                let failed = Finding::failed(&MODULE, failure.why, failure.hint);
                std::iter::once(failed).chain(rest).collect()
            }
        };
        findings.extend(about.into_iter().map(|finding| finding.of(&name)));
    }
    findings
}

/// What is seen when the module is loaded.
static AFTER_LOADING: [&Check; 6] = [&MODULE, &MODULE_KNOWN, &TOKEN, &PIN_STATE, &MECHANISMS, &PROFILE];

/// What a worker has, but for its PIN.
fn environment(token: &Token) -> BTreeMap<String, String> {
    let inherited = INHERITED.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    inherited.chain(token.environment.clone()).collect()
}

fn evidence(token: &Token) -> Finding {
    let name = token.profile.full_name();
    let unproved = token.profile.unproved();
    if unproved.is_empty() {
        return Finding::ok(&EVIDENCE, format!("profile {name}: each field was tried on the real thing"));
    }
    let found = format!("profile {name} rests on documents, or on less, for: {}", unproved.join(", "));
    Finding::warning(&EVIDENCE, found, "try the device: hsm-kms hsm probe --profile (docs/probe.md)")
}

fn looked(token: &Token, serial: Option<&str>, record: Option<&KekRecord>, look: &Look) -> Vec<Finding> {
    let module = &look.module;
    let digest = std::fs::read(&token.module).map(Sha256Digest::of);
    let hash = digest.as_ref().map_or_else(ToString::to_string, ToString::to_string);
    let said = format!("{} {} {}", module.manufacturer, module.library, module.library_version);
    let mut findings =
        vec![Finding::ok(&MODULE, format!("{}; {said}; SHA-256 {hash}", token.module.display())), profile(token, look)];
    findings.push(match (record, digest) {
        (None, _) => Finding::not_checked(&MODULE_KNOWN, "no record is of this token, or it cannot be used"),
        (Some(_), Err(error)) => Finding::not_checked(&MODULE_KNOWN, format!("the module cannot be read: {error}")),
        (Some(record), Ok(digest)) if record.module.sha256 == digest => {
            Finding::ok(&MODULE_KNOWN, "the file is the one that the ceremony was held with")
        }
        (Some(record), Ok(_)) => {
            let (then, now) = (&record.module.library_version, &module.library_version);
            let found = format!("another file than at the ceremony; version {then} then, {now} now");
            let advice = "if nobody has upgraded the vendor's library, find out who changed it";
            Finding::warning(&MODULE_KNOWN, found, advice)
        }
    });
    match &look.token {
        Ok(found) => findings.extend([identity(serial, found), pin_state(token, found), mechanisms(found)]),
        Err(failure) => {
            findings.push(Finding::failed(&TOKEN, &failure.why, &failure.hint));
            let rest = [&PIN_STATE, &MECHANISMS];
            findings.extend(rest.map(|check| Finding::not_checked(check, "the token was not found")));
        }
    }
    findings
}

fn profile(token: &Token, look: &Look) -> Finding {
    let (name, known, said) =
        (token.profile.full_name(), &token.profile.module.manufacturers, &look.module.manufacturer);
    if known.contains(said) {
        Finding::ok(&PROFILE, format!("{name} is for modules of {said:?}"))
    } else if known.is_empty() {
        let found = format!("{name} does not say whose modules it is for; this one's manufacturer is {said:?}");
        Finding::warning(&PROFILE, found, "see that it is the vendor's own module, and not a proxy")
    } else {
        let found = format!("{name} is for modules of {}, this one says {said:?}", known.join(" or "));
        Finding::failed(&PROFILE, found, "set token.profile or token.module to what belongs together")
    }
}

fn identity(serial: Option<&str>, found: &TokenLook) -> Finding {
    let token = &found.identity;
    let seen = format!(
        "{:?}, {} {}, serial {}, firmware {}",
        token.label, token.manufacturer, token.model, token.serial, token.firmware
    );
    if token.flags.iter().any(|flag| flag == "CKF_ERROR_STATE") {
        return Finding::failed(
            &TOKEN,
            format!("{seen}; CKF_ERROR_STATE: it failed its self-test"),
            "reset the HSM; ask its vendor",
        );
    }
    match serial {
        None => Finding::warning(
            &TOKEN,
            format!("{seen}; whether it is the right one is not known: {NO_RECORD}"),
            "see the row of the record",
        ),
        Some(serial) if serial == token.serial => Finding::ok(&TOKEN, seen),
        Some(serial) => Finding::failed(
            &TOKEN,
            format!("{seen}; the KEK's token has serial {serial}"),
            "plug the right token in, or use the record of this one's KEK",
        ),
    }
}

fn pin_state(token: &Token, found: &TokenLook) -> Finding {
    if token.profile.login.user == UserKind::None {
        return Finding::ok(&PIN_STATE, "nobody logs in with this profile");
    }
    let has = |flag: &str| found.identity.flags.iter().any(|set| set == flag);
    let wait = "stop the plugin, find out why wrong PINs were tried, and have the security officer set the PIN anew";
    if has("CKF_USER_PIN_LOCKED") {
        Finding::failed(&PIN_STATE, "the user PIN is locked (CKF_USER_PIN_LOCKED)", wait)
    } else if has("CKF_USER_PIN_FINAL_TRY") {
        Finding::failed(&PIN_STATE, "one try is left (CKF_USER_PIN_FINAL_TRY): the plugin does not log in", wait)
    } else if !has("CKF_USER_PIN_INITIALIZED") {
        Finding::failed(&PIN_STATE, "the token has no user PIN yet", "have the security officer set it")
    } else if has("CKF_USER_PIN_COUNT_LOW") {
        let advice = "find out who tried; the next right login sets the counter back on most tokens";
        Finding::warning(&PIN_STATE, "a wrong PIN was tried since the last login (CKF_USER_PIN_COUNT_LOW)", advice)
    } else if has("CKF_USER_PIN_TO_BE_CHANGED") {
        Finding::warning(&PIN_STATE, "the PIN is still the one that the token came with", "change it")
    } else {
        Finding::ok(&PIN_STATE, "set, and no wrong try is shown; not every module shows them")
    }
}

fn mechanisms(found: &TokenLook) -> Finding {
    if found.missing.is_empty() {
        return Finding::ok(&MECHANISMS, "the token has all that the profile seals with");
    }
    let advice = "choose the profile or variant that fits: hsm-kms hsm probe";
    Finding::failed(&MECHANISMS, format!("the token lacks {}", found.missing.join(", ")), advice)
}
