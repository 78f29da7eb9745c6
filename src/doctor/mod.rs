//! `hsm-kms doctor`: whether all is well, at a glance. It looks and changes nothing; nobody logs in to the HSM. docs/doctor.md has every row.
//!
//! Whatever is broken, each check gives a row: one whose precondition failed says which.

mod checks;
mod encryption;
mod files;
mod kek;
mod machine;
mod plugin;
mod process;
#[cfg(test)]
mod tests;
mod text;
mod token;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::checks::{GROUPS, Group};
pub use self::process::children;
pub use self::text::{Terminal, text};
use crate::config::Config;
use crate::finding::{Finding, Verdict};
use crate::keyring::{Kek, KeyringFile, NodeReport};
use crate::kubernetes::KubernetesVersion;
use crate::record::UtcTime;

/// What is looked at, as far as the command could read it.
pub struct Subject<'a> {
    /// Where the configuration lies.
    pub config_path: &'a Path,
    /// The configuration.
    pub config: Result<Config, Problem>,
    /// The KEKs that `serve` would serve. `None`: there is no configuration that says which.
    pub keks: Option<Result<Keks, Problem>>,
    /// What this node's plugin says of its keyring. `None`: the configuration has no keyring, or no endpoints to ask.
    pub node: Option<Result<NodeReport, String>>,
    /// A socket that is looked at instead of the configuration's.
    pub socket: Option<PathBuf>,
    /// The files of kube-apiserver's `--encryption-provider-config`, of one node or of several.
    pub encryption: &'a [PathBuf],
    /// The version of the API servers.
    pub version: Option<KubernetesVersion>,
}

/// The KEKs that `serve` would serve.
pub struct Keks {
    /// In the order of the keyring.
    pub keks: Vec<Kek>,
    /// The keyring that names them.
    pub keyring: Option<KeyringFile>,
}

/// Why something cannot be used.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

/// All rows.
pub struct Report {
    /// When.
    pub time: UtcTime,
    /// In the order of [`GROUPS`]; at least one of each check.
    pub findings: Vec<Finding>,
}

/// Looks at everything.
pub fn examine(subject: &Subject<'_>) -> Report {
    let contact = plugin::contact(subject);
    let mut found = Vec::new();
    found.extend(files::check(subject, contact.as_ref()));
    found.extend(token::check(subject, contact.as_ref()));
    found.extend(kek::check(subject, contact.as_ref()));
    found.extend(plugin::check(subject, contact.as_ref()));
    found.push(machine::clock(subject));
    found.extend(encryption::check(subject));
    let mut findings = Vec::new();
    for check in GROUPS.iter().flat_map(|group| group.checks.iter().copied()) {
        findings.extend(found.iter().filter(|finding| finding.check == check).cloned());
    }
    Report { time: UtcTime::now(), findings }
}

impl Report {
    /// How many rows came to this.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Whether nothing failed. Warnings are no failures.
    pub fn holds(&self) -> bool {
        self.count(Verdict::Failed) == 0
    }

    /// The report for machines. docs/doctor.md describes it.
    pub fn to_json(&self) -> String {
        let rows = GROUPS.iter().flat_map(|group| {
            let of_group = self.findings.iter().filter(|finding| group.checks.contains(&finding.check));
            of_group.map(|finding| Row {
                group: group.title,
                check: finding.check.name,
                title: finding.check.title,
                subject: finding.subject.as_deref(),
                result: finding.verdict,
                found: &finding.found,
                why: finding.check.why,
                advice: finding.advice.as_deref(),
            })
        });
        let report = Json {
            version: 1,
            tool: concat!("hsm-kms ", env!("CARGO_PKG_VERSION")),
            time: self.time,
            holds: self.holds(),
            failed: self.count(Verdict::Failed),
            warnings: self.count(Verdict::Warning),
            ok: self.count(Verdict::Ok),
            not_checked: self.count(Verdict::NotChecked),
            rows: rows.collect(),
        };
        // Texts and numbers: nothing that JSON could not say.
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    }
}

#[derive(Serialize)]
struct Json<'a> {
    version: u64,
    tool: &'a str,
    time: UtcTime,
    holds: bool,
    failed: usize,
    warnings: usize,
    ok: usize,
    not_checked: usize,
    rows: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    group: &'a str,
    check: &'a str,
    title: &'a str,
    subject: Option<&'a str>,
    result: Verdict,
    found: &'a str,
    why: &'a str,
    advice: Option<&'a str>,
}

impl Subject<'_> {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref().ok()
    }

    fn keks(&self) -> Option<&Keks> {
        self.keks.as_ref().and_then(|keks| keks.as_ref().ok())
    }

    /// The socket that is looked at, if it is known.
    fn socket(&self) -> Option<&Path> {
        self.socket.as_deref().or_else(|| self.config().map(|config| config.socket.path.as_path()))
    }
}

/// Why a check was not made that needs the configuration.
const NO_CONFIG: &str = "the configuration cannot be used";
/// Why a check was not made that needs the record.
const NO_RECORD: &str = "the KEK record cannot be used";
