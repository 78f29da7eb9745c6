//! The plan: the one strict file that says what a ceremony makes. No secret stands in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::people::{People, Person};
use super::words::words;
use crate::attributes::{AttributeName, KeyUse};
use crate::cluster::Cluster;
use crate::config::{FileToken, Token};
use crate::profile::ProfileError;
use crate::record::{Origin, Sha256Digest};
use crate::recovery::{self, Fingerprint, Recipient};
use crate::seal::Sealing;
use crate::strict::{self, AbsolutePath, Fault, FileError};

/// A ceremony's only input, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster that the KEK is for.
    pub cluster: Cluster,
    /// The token to make the KEK in.
    pub token: Token,
    /// The KEK to make.
    pub kek: KekPlan,
    /// Offline public keys that every seed is also sealed to, so that a lost KEK loses no data.
    pub recipients: Vec<Recipient>,
    /// Directory for the record. Must exist, without a record in it.
    pub output: PathBuf,
    /// What a ceremony before people needs beside that. `None`: a trial, unattended.
    pub witnessed: Option<WitnessedPlan>,
}

/// What a ceremony before people needs.
#[derive(Clone, Debug)]
pub struct WitnessedPlan {
    /// Where it is held, in words.
    pub site: String,
    /// `serialNumber` of the token.
    pub serial: String,
    /// Who takes part.
    pub people: People,
    /// Tokens that must hold a copy of the KEK before the ceremony closes.
    pub copies: Vec<CopyPlan>,
    /// SHA-256 of the record of the KEK that this one follows.
    pub previous: Option<Sha256Digest>,
    /// The KEK comes from outside the HSM, in shares.
    pub import: Option<ImportPlan>,
    /// SHA-256 of the record of the KEK that is destroyed: nothing is made.
    pub destroys: Option<Sha256Digest>,
    /// The plan as everybody has agreed to it.
    pub lock: PlanLock,
}

/// A plan that nobody can change unnoticed: its content as canonical JSON (RFC 8785), and the digest of that.
#[derive(Clone, Debug)]
pub struct PlanLock {
    /// `plan.lock.json`.
    pub json: Vec<u8>,
    /// SHA-256 of it.
    pub digest: Sha256Digest,
}

/// The KEK of a plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekPlan {
    /// CKA_LABEL, at most 40 bytes (a vendor's driver hangs on very long ones). Must be free on the token, as must this
    /// label with `-mac` behind it where the seal needs a MAC key.
    #[serde(deserialize_with = "label")]
    pub label: String,
    /// Attributes that may be other than the strict template asks. Those without which no key is a KEK cannot stand here.
    #[serde(default)]
    pub permit: Vec<AttributeName>,
}

/// A token that a copy of the KEK is on when the ceremony closes.
#[derive(Clone, Debug)]
pub struct CopyPlan {
    /// `serialNumber` of the token.
    pub serial: String,
    /// How it is reached.
    pub token: Token,
}

/// How a KEK that is made outside the HSM is shared out.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportPlan {
    /// Number of shares, one for each custodian, 2 to 16.
    #[serde(deserialize_with = "strict::number::<2, 16, _>")]
    pub shares: u64,
    /// How many of them restore the KEK, at least 2.
    #[serde(deserialize_with = "strict::number::<2, 16, _>")]
    pub threshold: u64,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The profile that it names cannot be used.
    #[error("{WHAT}{}: `token.profile`: {error}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Profile {
        /// Where the plan lies, if it was read from a file.
        path: Option<PathBuf>,
        /// What is wrong with the profile.
        error: ProfileError,
    },
    /// The file of a recovery recipient has another key than the plan says.
    #[error("the recovery recipient in {} is {found}, the plan says {expected}", path.display())]
    OtherRecipient {
        /// Where the recipient lies.
        path: PathBuf,
        /// Of the key in it.
        found: Fingerprint,
        /// Of the key in the plan.
        expected: Fingerprint,
    },
    /// It is not the plan that was agreed to.
    #[error("the plan is not the one that was agreed to: it is {found} ({words})", words = words(found))]
    Unexpected {
        /// Digest of the plan.
        found: Sha256Digest,
    },
}

impl PlanError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            Self::Profile { error, .. } => error.hint(),
            Self::OtherRecipient { .. } => {
                "compare both with the fingerprint on the paper of those who hold the recovery key: who can read every secret hangs on it"
                    .to_owned()
            }
            Self::Unexpected { .. } => {
                "compare it with the printed script; a plan that was changed needs a new script and a new rehearsal"
                    .to_owned()
            }
        }
    }
}

impl Plan {
    /// Where the material of the KEK comes from.
    pub fn origin(&self) -> Origin {
        let is_import = self.witnessed.as_ref().is_some_and(|witnessed| witnessed.import.is_some());
        if is_import { Origin::Imported } else { Origin::Generated }
    }

    /// Reads a plan strictly: unknown and duplicate keys are refused.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let bytes = strict::read(path).map_err(|fault| FileError::new(WHAT, Some(path), fault))?;
        Self::checked(&bytes, Some(path))
    }

    /// As [`Plan::load`], for bytes that are not from a file. The files that they name are read all the same.
    pub fn parse(bytes: &[u8]) -> Result<Self, PlanError> {
        Self::checked(bytes, None)
    }

    fn checked(bytes: &[u8], path: Option<&Path>) -> Result<Self, PlanError> {
        let fault = |fault| FileError::new(WHAT, path, fault);
        let file: File = strict::yaml(bytes, VERSION).map_err(fault)?;
        check_secrets(bytes).map_err(fault)?;
        let lock = PlanLock::new(bytes).map_err(fault)?;
        let profile_of = |token: &FileToken| {
            token.profile().map_err(|error| PlanError::Profile { path: path.map(Path::to_path_buf), error })
        };
        let profile = profile_of(&file.token)?;
        let mut copies = Vec::new();
        for CopyFile { serial, token } in file.copies.unwrap_or_default() {
            let profile = profile_of(&token)?;
            copies.push(CopyPlan { serial, token: token.check_without_pin(profile).map_err(fault)? });
        }
        let token = match file.kind {
            PlanKind::Trial => file.token.check(profile),
            PlanKind::Production => file.token.check_without_pin(profile),
        };
        let token = token.map_err(fault)?;
        file.kek.check_permit(&token.sealing).map_err(fault)?;
        let people = file.people.map(People::new).transpose().map_err(fault)?;
        let given = [
            ("site", file.site.is_some(), true),
            ("serial", file.serial.is_some(), true),
            ("people", people.is_some(), true),
            ("copies", !copies.is_empty(), false),
            ("previous", file.previous.is_some(), false),
            ("import", file.import.is_some(), false),
            ("destroys", file.destroys.is_some(), false),
        ];
        let destroys = file.destroys.is_some();
        check_kind(file.kind, &given).map_err(fault)?;
        let witnessed = match (file.kind, file.site, file.serial, people) {
            (PlanKind::Production, Some(site), Some(serial), Some(people)) => {
                check_copies(&serial, &copies).map_err(fault)?;
                let plan = WitnessedPlan {
                    site,
                    serial,
                    people,
                    copies,
                    previous: file.previous,
                    import: file.import,
                    destroys: file.destroys,
                    lock,
                };
                plan.check_shares().map_err(fault)?;
                plan.check_destruction().map_err(fault)?;
                Some(plan)
            }
            _ => None,
        };
        let recipients = file.recipients.unwrap_or_default().into_iter().map(RecipientFile::read);
        let recipients = recipients.collect::<Result<Vec<_>, PlanError>>()?;
        let rule =
            |problem: String, hint: &str| fault(Fault::Rule { field: "recipients", problem, hint: hint.to_owned() });
        recovery::check_recipients(&recipients).map_err(|problem| rule(problem, "name each recipient once"))?;
        if destroys && !recipients.is_empty() {
            return Err(rule("a plan that destroys a KEK makes none".to_owned(), "remove it").into());
        }
        Ok(Self { cluster: file.cluster, token, kek: file.kek, recipients, output: file.output.0, witnessed })
    }
}

impl WitnessedPlan {
    /// Whether this is the plan that was agreed to: its digest in hex, or its twelve words.
    pub fn check_expected(&self, expected: &str) -> Result<(), PlanError> {
        let plain = expected.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let found = self.lock.digest;
        if plain == found.to_string() || plain == words(&found) { Ok(()) } else { Err(PlanError::Unexpected { found }) }
    }

    /// What destroys a KEK makes none.
    fn check_destruction(&self) -> Result<(), Fault> {
        if self.destroys.is_none() || (self.import.is_none() && self.previous.is_none()) {
            return Ok(());
        }
        Err(Fault::Rule {
            field: "destroys",
            problem: "a plan that destroys a KEK makes none".to_owned(),
            hint: "remove import and previous, or hold two ceremonies".to_owned(),
        })
    }

    /// Each share has a custodian of its own.
    fn check_shares(&self) -> Result<(), Fault> {
        let Some(ImportPlan { shares, threshold }) = self.import else { return Ok(()) };
        let is_custodian = |person: &&Person| person.role == super::Role::Custodian;
        let custodians = self.people.all().iter().filter(is_custodian).count();
        let rule = |problem: String, hint: &str| Err(Fault::Rule { field: "import", problem, hint: hint.to_owned() });
        if threshold > shares {
            return rule(
                format!("{threshold} of {shares} shares cannot be brought together"),
                "choose a threshold below the number of shares",
            );
        }
        if usize::try_from(shares).ok() != Some(custodians) {
            return rule(
                format!("{shares} shares need {shares} custodians, and there are {custodians}"),
                "one custodian for each share",
            );
        }
        Ok(())
    }
}

impl PlanLock {
    fn new(yaml: &[u8]) -> Result<Self, Fault> {
        let content: serde_json::Value = strict::yaml(yaml, VERSION)?;
        let json = serde_json_canonicalizer::to_vec(&content).map_err(|error| Fault::Syntax {
            problem: error.to_string(),
            place: strict::Place { line: 1, column: 1 },
        })?;
        let digest = Sha256Digest::of(&json);
        Ok(Self { json, digest })
    }
}

impl KekPlan {
    /// What is permitted holds for each key of the plan, so it must be negotiable for each.
    fn check_permit(&self, sealing: &Sealing) -> Result<(), Fault> {
        let mac = sealing.mac_mechanism().map(|_| KeyUse::Mac);
        let is_fixed = |name: &&AttributeName| {
            [Some(sealing.kek_use()), mac].into_iter().flatten().any(|purpose| !name.is_negotiable(purpose))
        };
        self.permit.iter().find(is_fixed).map_or(Ok(()), |name| {
            Err(Fault::Rule {
                field: "kek.permit",
                problem: format!("{name} is not negotiable"),
                hint: format!("remove {name}: without it no key is a KEK"),
            })
        })
    }
}

/// A trial has nothing that takes people; a production ceremony has all that it needs.
fn check_kind(kind: PlanKind, given: &[(&'static str, bool, bool)]) -> Result<(), Fault> {
    for (field, is_given, is_needed) in given.iter().copied() {
        let (problem, hint) = match (kind, is_given, is_needed) {
            (PlanKind::Trial, true, _) => {
                ("a trial has none: nobody attends it", "remove it, or hold a ceremony: `kind: production`")
            }
            (PlanKind::Production, false, true) => (
                "it is missing",
                "see `hsm-kms ceremony plan new` for a whole plan; a KEK for trials alone is `kind: trial`",
            ),
            _ => continue,
        };
        return Err(Fault::Rule { field, problem: problem.to_owned(), hint: hint.to_owned() });
    }
    Ok(())
}

/// A plan is printed and handed around: no key stands in it, not even in a comment.
fn check_secrets(yaml: &[u8]) -> Result<(), Fault> {
    let text = String::from_utf8_lossy(yaml);
    text.lines().position(|line| line.contains("PRIVATE KEY")).map_or(Ok(()), |line| {
        Err(Fault::Conflict {
            field: "plan".to_owned(),
            place: Some(strict::Place { line: line + 1, column: 1 }),
            problem: "a private key stands there".to_owned(),
            hint: "remove it, and use that key no more: whoever saw the plan may have it".to_owned(),
        })
    })
}

/// A copy on the same device is none.
fn check_copies(serial: &str, copies: &[CopyPlan]) -> Result<(), Fault> {
    let mut seen = vec![serial];
    for copy in copies {
        if seen.contains(&copy.serial.as_str()) {
            return Err(Fault::Rule {
                field: "copies",
                problem: format!("the token with serial number {} stands there twice", copy.serial),
                hint: "name each token once: a copy on the same token is none".to_owned(),
            });
        }
        seen.push(&copy.serial);
    }
    Ok(())
}

const VERSION: u64 = 1;
const WHAT: &str = "ceremony plan";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "version")]
    _version: u64,
    kind: PlanKind,
    cluster: Cluster,
    #[serde(default, deserialize_with = "some_line")]
    site: Option<String>,
    #[serde(default, deserialize_with = "some_line")]
    serial: Option<String>,
    token: FileToken,
    kek: KekPlan,
    people: Option<Vec<Person>>,
    copies: Option<Vec<CopyFile>>,
    recipients: Option<Vec<RecipientFile>>,
    previous: Option<Sha256Digest>,
    import: Option<ImportPlan>,
    destroys: Option<Sha256Digest>,
    output: AbsolutePath,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyFile {
    #[serde(deserialize_with = "strict::line")]
    serial: String,
    token: FileToken,
}

/// The plan names the key itself: the file could be exchanged after everybody has agreed to the plan.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipientFile {
    file: AbsolutePath,
    fingerprint: Fingerprint,
}

impl RecipientFile {
    fn read(self) -> Result<Recipient, PlanError> {
        let AbsolutePath(path) = self.file;
        let recipient = Recipient::read(&path)?;
        let (found, expected) = (recipient.fingerprint(), self.fingerprint);
        if found == expected { Ok(recipient) } else { Err(PlanError::OtherRecipient { path, found, expected }) }
    }
}

/// What a ceremony is for.
#[derive(Clone, Copy, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum PlanKind {
    /// A KEK for a real cluster, made before people.
    Production,
    /// A KEK for trials, made unattended.
    Trial,
}

fn some_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    strict::line(deserializer).map(Some)
}

fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let label = strict::line(deserializer)?;
    if label.len() > 40 {
        return Err(serde::de::Error::custom("expected at most 40 bytes"));
    }
    Ok(label)
}
