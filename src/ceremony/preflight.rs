//! What can be checked before anything is touched: the machine, the module, the token. Read-only, and nobody logs in.

use std::path::Path;
use std::time::{Duration, Instant};

use comfy_table::{ContentArrangement, Table, presets};
use cryptoki_sys as sys;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::site::Site;
use super::{CeremonyError, Plan, WitnessedPlan, rehearsal};
use crate::pkcs11;
use crate::profile::KeyGeneration;
use crate::record::Sha256Digest;

/// Something that was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name, for exceptions.
    pub name: &'static str,
    /// What came of it.
    pub outcome: CheckOutcome,
    /// What was found.
    pub found: String,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It holds.
    Holds,
    /// It does not, and no exception helps.
    Fails,
    /// It does not; an exception that somebody answers for lets it pass.
    NeedsException,
    /// Nothing to hold: it is written down.
    Noted,
}

impl CheckOutcome {
    /// In a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Fails => "FAILS",
            Self::NeedsException => "fails",
            Self::Noted => "noted",
        }
    }

    fn hard(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Fails }
    }

    fn soft(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::NeedsException }
    }
}

/// Names of the checks that an exception can let pass.
pub const EXCEPTIONS: [&str; 6] = ["clock", "pin-counter", "rehearsal", "space", "swap", "unused"];

/// The checks as a table of at most 80 columns.
pub fn table(checks: &[Check]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["check", "", "found"]);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    for check in checks {
        table.add_row([check.name, check.outcome.words(), &check.found]);
    }
    table.to_string()
}

/// Looks at everything that can be looked at outside a ceremony.
pub fn alone(plan: &Plan, witnessed: &WitnessedPlan, rehearsal: Option<&Path>) -> Result<Vec<Check>, CeremonyError> {
    let site = Site::open(&plan.token, Some(&witnessed.serial))?;
    let mut checks = run(plan, witnessed, &site)?;
    checks.push(rehearsal::check(rehearsal, witnessed));
    Ok(checks)
}

/// Looks at everything.
pub(super) fn run(plan: &Plan, witnessed: &WitnessedPlan, site: &Site) -> Result<Vec<Check>, CeremonyError> {
    let mut checks = machine(&plan.output);
    checks.extend(token(plan, witnessed, site)?);
    Ok(checks)
}

/// The machine.
fn machine(output: &Path) -> Vec<Check> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1).count();
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let has_default = routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"));
    let tracing = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let free = rustix::fs::statvfs(output).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        Check { name: "kernel", outcome: CheckOutcome::Noted, found: host.trim().to_owned() },
        Check {
            name: "swap",
            outcome: CheckOutcome::soft(swaps == 0),
            found: if swaps == 0 {
                "off".to_owned()
            } else {
                format!("{swaps} areas in use: turn them off with swapoff -a")
            },
        },
        Check {
            name: "network",
            outcome: CheckOutcome::Noted,
            found: if has_default { "there is a default route" } else { "no default route" }.to_owned(),
        },
        Check {
            name: "tracing",
            outcome: CheckOutcome::Noted,
            found: match tracing.trim() {
                "" => "the kernel does not say who may trace".to_owned(),
                scope => format!("kernel.yama.ptrace_scope is {scope}"),
            },
        },
        Check {
            name: "space",
            outcome: CheckOutcome::soft(free >= SPACE),
            found: format!("{} MiB free for the evidence", free / MIB),
        },
    ]
}

/// Module and token.
fn token(plan: &Plan, witnessed: &WitnessedPlan, site: &Site) -> Result<Vec<Check>, CeremonyError> {
    let module = site.module_record(&plan.token)?;
    let info = site.token.info();
    let flags = site.token.limits()?.flags;
    let has = |flag: u64| flags & flag != 0;
    let sealing = site.token.require(&plan.token.sealing);
    let generation = match plan.token.profile.key.generate {
        KeyGeneration::Mechanism(mechanism) => site.token.has_mechanism(mechanism, 0)?,
        KeyGeneration::Tool => true,
    };
    let pin_is_safe = !has(sys::CKF_USER_PIN_FINAL_TRY) && !has(sys::CKF_USER_PIN_LOCKED);
    Ok(vec![
        Check {
            name: "module",
            outcome: CheckOutcome::Noted,
            found: format!("{} {}, SHA-256 {}", module.library, module.library_version, module.sha256),
        },
        Check {
            name: "token",
            outcome: CheckOutcome::hard(info.serial == witnessed.serial),
            found: format!(
                "{:?}, {} {}, firmware {}, serial {}{}",
                info.label,
                info.manufacturer,
                info.model,
                info.firmware,
                info.serial,
                if info.serial == witnessed.serial {
                    String::new()
                } else {
                    format!("; the plan says {}", witnessed.serial)
                }
            ),
        },
        Check {
            name: "flags",
            outcome: CheckOutcome::hard(!has(sys::CKF_WRITE_PROTECTED) && has(sys::CKF_TOKEN_INITIALIZED)),
            found: format!(
                "{}, {}",
                if has(sys::CKF_TOKEN_INITIALIZED) { "initialised" } else { "NOT initialised" },
                if has(sys::CKF_WRITE_PROTECTED) { "WRITE-PROTECTED" } else { "not write-protected" }
            ),
        },
        Check {
            name: "pin",
            outcome: CheckOutcome::hard(pin_is_safe),
            found: if pin_is_safe { "not locked, not on its last try" } else { "locked, or on its last try" }
                .to_owned(),
        },
        Check {
            name: "pin-counter",
            outcome: CheckOutcome::soft(!has(sys::CKF_USER_PIN_COUNT_LOW)),
            found: if has(sys::CKF_USER_PIN_COUNT_LOW) {
                "a wrong PIN was tried since the last login".to_owned()
            } else {
                "no wrong PIN since the last login".to_owned()
            },
        },
        Check {
            name: "mechanisms",
            outcome: CheckOutcome::hard(sealing.is_ok() && generation),
            found: match (sealing, generation) {
                (Err(error), _) => error.to_string(),
                (Ok(()), false) => "the token cannot generate a key as the profile says".to_owned(),
                (Ok(()), true) => format!("all that {} needs", plan.token.sealing.form.seal.word()),
            },
        },
        randomness(site)?,
    ])
}

/// The health tests of NIST SP 800-90B, sections 4.4.1 and 4.4.2, on bytes of the token's generator, for a source that claims 8 bits of
/// entropy per byte; cut off where a sound source fails once in 2^40 samples. They find a generator that is stuck, no more.
fn randomness(site: &Site) -> Result<Check, CeremonyError> {
    let name = "randomness";
    let session = site.token.open_session()?;
    // Some devices do nothing at all for those who have not logged in.
    if let Err(pkcs11::Error::Call { code: sys::CKR_USER_NOT_LOGGED_IN, .. }) = session.random(&mut [0]) {
        let found = "not tried: the token gives none before the login".to_owned();
        return Ok(Check { name, outcome: CheckOutcome::Noted, found });
    }
    let began = Instant::now();
    let (mut total, mut repeated, mut most_repeated, mut last, mut is_even) = (0_usize, 0_usize, 0_usize, None, true);
    let mut before = [0_u8; WINDOW];
    let mut digest = Sha256::new();
    while total < MOST && (total < LEAST || began.elapsed() < LONGEST) {
        let mut window = [0_u8; WINDOW];
        session.random(&mut window)?;
        for byte in window {
            repeated = if last == Some(byte) { repeated + 1 } else { 1 };
            last = Some(byte);
            most_repeated = most_repeated.max(repeated);
        }
        let first = window.first();
        is_even &= window.iter().filter(|byte| Some(*byte) == first).count() < PROPORTION && window != before;
        before = window;
        digest.update(window);
        total += WINDOW;
    }
    let holds = is_even && most_repeated < REPETITIONS;
    let words = if holds { "pass" } else { "FAIL" };
    // What was drawn is used for nothing.
    let digest = Sha256Digest(digest.finalize().into());
    let found = format!("{} KiB {words} repetition and proportion tests; SHA-256 {digest}", total / 1024);
    Ok(Check { name, outcome: CheckOutcome::hard(holds), found })
}

/// Bytes of one look at the generator.
const WINDOW: usize = 512;
/// Bytes that are looked at: at least, and at most.
const LEAST: usize = 4 * 1024;
const MOST: usize = 1024 * 1024;
/// Slow tokens are not drained.
const LONGEST: Duration = Duration::from_secs(5);
/// Equal bytes one after the other.
const REPETITIONS: usize = 6;
/// Bytes of a window that are like its first.
const PROPORTION: usize = 20;
const MIB: u64 = 1024 * 1024;
/// Bytes that must be free for the evidence.
const SPACE: u64 = 16 * MIB;
