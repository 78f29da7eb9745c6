//! The KEK record, `kek-record.json`: which key this is and what was proved about it. Public; docs/formats.md has the format.

mod drill;
mod text;
mod witnessed;

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::drill::{DrillChallenge, DrillOutcome, DrillReport, last_drill};
use self::text::ProofBlob;
pub use self::text::{CeremonyId, CkaId, Sha256Digest, UtcTime};
use self::witnessed::COPIES_TO_RECOVER;
pub use self::witnessed::{Origin, Participant, Role, ShareSet, TokenCopy, Witnessed};
use crate::attributes::Attributes;
use crate::cluster::Cluster;
use crate::envelope::{Blob, Context};
use crate::key_id::KeyId;
use crate::recovery::{self, Fingerprint, Recipient};
use crate::seal::{Seal, SealForm};
use crate::strict::{self, Fault, FileError};

/// What the ceremony wrote about one KEK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KekRecord {
    version: u64,
    /// Whether the KEK may protect a real cluster.
    pub kind: Kind,
    /// When and by what the KEK was made.
    pub ceremony: Ceremony,
    /// The cluster it was made for.
    pub cluster: Cluster,
    /// Name of the vendor profile, and its variant after a slash.
    #[serde(deserialize_with = "strict::line")]
    pub profile: String,
    /// The PKCS#11 module that made it.
    pub module: Module,
    /// The token it was made in.
    pub token: Token,
    /// The key itself.
    pub kek: TokenKey,
    /// The MAC key beside it, where the seal needs one (`aes-cbc-hmac`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_key: Option<TokenKey>,
    /// Offline public keys that every seed is also sealed to. The proofs below are bound to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "recipients")]
    pub recipients: Vec<Recipient>,
    /// Challenges that the KEK sealed on the day, at least one. Opening one proves that a key is this KEK.
    #[serde(deserialize_with = "proofs")]
    pub proofs: Vec<Proof>,
    /// Deviations from the strict template that the ceremony's plan permitted, in words.
    #[serde(deserialize_with = "lines")]
    pub deviations: Vec<String>,
    /// How seeds can be opened when the KEK is lost.
    pub recovery: Recovery,
    /// How the ceremony went; there exactly where people held it, so not in a trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnessed: Option<Witnessed>,
}

/// Whether the KEK may protect a real cluster.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Made before custodians and witnesses.
    Production,
    /// Made by the same people on a throw-away token, to learn the plan: never served.
    Rehearsal,
    /// Made unattended: served only where the configuration allows it.
    Trial,
}

/// When and by what a KEK was made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ceremony {
    /// Random name of this ceremony, never used twice.
    pub id: CeremonyId,
    /// When the record was written.
    pub time: UtcTime,
    /// Program and version, such as `hsm-kms 0.1.0`.
    #[serde(deserialize_with = "strict::line")]
    pub tool: String,
}

/// The PKCS#11 module, as it said and as its file was (`C_GetInfo`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// `libraryDescription`.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub library: String,
    /// `libraryVersion`, such as `2.6`.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub library_version: String,
    /// SHA-256 of the module's file.
    pub sha256: Sha256Digest,
}

/// The token, as it said (`C_GetTokenInfo`), without the blanks at the end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// `label`.
    #[serde(deserialize_with = "strict::line")]
    pub label: String,
    /// `manufacturerID`.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub manufacturer: String,
    /// `model`.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub model: String,
    /// `serialNumber`.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub serial: String,
    /// `firmwareVersion`, such as `2.6`.
    #[serde(deserialize_with = "strict::line_or_empty")]
    pub firmware: String,
}

/// A key on the token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKey {
    /// `CKA_ID`.
    pub id: CkaId,
    /// `CKA_LABEL`.
    #[serde(deserialize_with = "strict::line")]
    pub label: String,
    /// The attributes that were read back.
    pub attributes: Attributes,
}

/// A random challenge that the KEK sealed at the ceremony, under `Context::proof`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The sealed challenge.
    blob: ProofBlob,
    /// SHA-256 of the challenge, which itself is kept nowhere.
    pub challenge_sha256: Sha256Digest,
}

/// How seeds can be opened when the KEK is lost.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// Not at all.
    None,
    /// From one of at least two further tokens that proved to hold the KEK.
    Copies,
    /// From the shares that it came in.
    Shares,
    /// By the offline key of a recovery recipient, and neither by copies nor by shares.
    Recipients,
}

impl Recovery {
    /// The first way that there is to open seeds without the token.
    pub fn of(copies: usize, has_shares: bool, has_recipients: bool) -> Self {
        match (copies >= COPIES_TO_RECOVER, has_shares, has_recipients) {
            (true, _, _) => Self::Copies,
            (false, true, _) => Self::Shares,
            (false, false, true) => Self::Recipients,
            (false, false, false) => Self::None,
        }
    }
}

impl Kind {
    /// As files write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Rehearsal => "rehearsal",
            Self::Trial => "trial",
        }
    }
}

impl KekRecord {
    /// A record of the only version that there is.
    #[allow(clippy::too_many_arguments, reason = "one argument per field of the file, each of its own type")]
    pub fn new(
        kind: Kind,
        ceremony: Ceremony,
        cluster: Cluster,
        profile: String,
        module: Module,
        token: Token,
        kek: TokenKey,
        mac_key: Option<TokenKey>,
        recipients: Vec<Recipient>,
        proofs: Vec<Proof>,
        deviations: Vec<String>,
        witnessed: Option<Witnessed>,
    ) -> Self {
        let (version, recovery) = (VERSION, recovery(witnessed.as_ref(), &recipients));
        Self {
            version,
            kind,
            ceremony,
            cluster,
            profile,
            module,
            token,
            kek,
            mac_key,
            recipients,
            proofs,
            deviations,
            recovery,
            witnessed,
        }
    }

    /// What a proof blob of this form is bound to.
    pub fn proof_context(&self, form: SealForm) -> Context {
        proof_context(form, &self.ceremony.id, &self.kek.id, &self.recipients)
    }

    /// The `key_id` of the KEK in its `epoch`-th activation, from 1.
    pub fn key_id(&self, epoch: u64) -> KeyId {
        KeyId::derive(self.cluster.as_str(), self.kek.id.as_bytes(), &self.ceremony.id.to_string(), epoch)
    }

    /// Reads a record strictly: unknown and duplicate keys are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        checked(bytes).map_err(|fault| FileError::new(WHAT, None, fault))
    }

    /// Reads the record in this file, at most 64 KiB.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        strict::read(path).and_then(|bytes| checked(&bytes)).map_err(|fault| FileError::new(WHAT, Some(path), fault))
    }

    /// The file's text: the same record always gives the same bytes. A record that could not be read back is refused.
    pub fn to_json(&self) -> Result<String, FileError> {
        let unwritable = |problem: String| {
            let place = strict::Place { line: 1, column: 1 };
            FileError::new(WHAT, None, Fault::Syntax { problem, place })
        };
        let mut text = serde_json::to_string_pretty(self).map_err(|error| unwritable(error.to_string()))?;
        text.push('\n');
        if Self::parse(text.as_bytes())? == *self {
            Ok(text)
        } else {
            Err(unwritable("the record does not read back as it was written".to_owned()))
        }
    }
}

impl Proof {
    /// A proof of these parts.
    pub fn new(blob: Blob<'_>, challenge_sha256: [u8; 32]) -> Self {
        Self { blob: ProofBlob(blob.into()), challenge_sha256: Sha256Digest(challenge_sha256) }
    }

    /// The sealed challenge.
    pub fn blob(&self) -> Blob<'_> {
        self.blob.0.as_blob()
    }
}

/// What no single field can say: which of them go together.
fn checked(bytes: &[u8]) -> Result<KekRecord, Fault> {
    let record: KekRecord = strict::json(bytes, VERSION)?;
    let rule = |field, problem: &str| Fault::Rule {
        field,
        problem: problem.to_owned(),
        hint: "restore the record as the ceremony wrote it".to_owned(),
    };
    let has_mac = record.mac_key.is_some();
    if record.proofs.iter().any(|proof| (proof.blob().form().seal == Seal::AesCbcHmac) != has_mac) {
        return Err(rule("mac_key", "it stands exactly in the records whose proofs are sealed with aes-cbc-hmac"));
    }
    if record.witnessed.is_some() == (record.kind == Kind::Trial) {
        return Err(rule("witnessed", "it stands exactly in the records of kind production or rehearsal"));
    }
    if record.recovery != recovery(record.witnessed.as_ref(), &record.recipients) {
        return Err(rule(
            "recovery",
            "it is `copies` exactly where witnessed.copies lists at least two tokens, else `shares` where there are any, else \
             `recipients` where there are any",
        ));
    }
    let shares_fit = |witnessed: &Witnessed| match witnessed.shares {
        Some(set) => witnessed.origin == Origin::Imported && set.threshold <= set.shares,
        None => witnessed.origin == Origin::Generated,
    };
    if !record.witnessed.as_ref().is_none_or(shares_fit) {
        return Err(rule(
            "witnessed.shares",
            "it stands exactly where the KEK was imported, with a threshold not above the number",
        ));
    }
    let copies = record.witnessed.iter().flat_map(|witnessed| &witnessed.copies);
    let mut tokens: Vec<_> = copies.map(|copy| (&copy.serial, &copy.library)).collect();
    tokens.push((&record.token.serial, &record.module.library));
    let count = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    if tokens.len() != count {
        return Err(rule("witnessed.copies", "each is another token, and none is the token that made the KEK"));
    }
    Ok(record)
}

/// What a proof blob is bound to, before there is a record.
pub fn proof_context(form: SealForm, ceremony: &CeremonyId, kek: &CkaId, recipients: &[Recipient]) -> Context {
    let fingerprints: Vec<_> = recipients.iter().map(Recipient::fingerprint).collect();
    Context::proof(form, &ceremony.to_string(), kek.as_bytes(), fingerprints.iter().map(Fingerprint::as_bytes))
}

fn recovery(witnessed: Option<&Witnessed>, recipients: &[Recipient]) -> Recovery {
    let copies = witnessed.map_or(0, |witnessed| witnessed.copies.len());
    Recovery::of(copies, witnessed.is_some_and(|witnessed| witnessed.shares.is_some()), !recipients.is_empty())
}

fn recipients<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Recipient>, D::Error> {
    let recipients = Vec::deserialize(deserializer)?;
    recovery::check_recipients(&recipients).map_err(serde::de::Error::custom)?;
    Ok(recipients)
}

fn proofs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Proof>, D::Error> {
    let proofs = Vec::deserialize(deserializer)?;
    if proofs.is_empty() { Err(serde::de::Error::custom("expected at least one proof")) } else { Ok(proofs) }
}

fn lines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    struct Line(#[serde(deserialize_with = "strict::line")] String);
    Ok(Vec::<Line>::deserialize(deserializer)?.into_iter().map(|line| line.0).collect())
}

const VERSION: u64 = 1;
const WHAT: &str = "KEK record";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attributes::{AttributeName, AttributeValue};

    fn record() -> KekRecord {
        let blob = Blob::new(SealForm::AES_GCM_SENT, &[1; 12], &[2; 48]).unwrap();
        KekRecord::new(
            Kind::Trial,
            Ceremony {
                id: CeremonyId::new([0xab; 16]),
                time: "2026-01-31T12:00:00Z".parse().unwrap(),
                tool: "hsm-kms 0.1.0".to_owned(),
            },
            "prod-eu-1".parse().unwrap(),
            "softhsm2".to_owned(),
            Module {
                library: "Implementation of PKCS11".to_owned(),
                library_version: "2.6".to_owned(),
                sha256: Sha256Digest([3; 32]),
            },
            Token {
                label: "kek".to_owned(),
                manufacturer: "SoftHSM project".to_owned(),
                model: "SoftHSM v2".to_owned(),
                serial: "0f1e2d3c4b5a6978".to_owned(),
                firmware: "2.6".to_owned(),
            },
            TokenKey {
                id: CkaId::new(&[4; 16]).unwrap(),
                label: "kek-1".to_owned(),
                attributes: Attributes::from([
                    (AttributeName::Wrap, AttributeValue::Bool(false)),
                    (AttributeName::ValueLen, AttributeValue::Number(32)),
                    (AttributeName::AllowedMechanisms, AttributeValue::Mechanisms(vec![0x1087])),
                    (AttributeName::Copyable, AttributeValue::UNAVAILABLE),
                ]),
            },
            None,
            Vec::new(),
            vec![Proof::new(blob, [5; 32])],
            vec!["CKA_COPYABLE is unavailable on this module".to_owned()],
            None,
        )
    }

    fn witnessed() -> Witnessed {
        let copy = |serial: &str| TokenCopy { serial: serial.to_owned(), library: "SoftHSM".to_owned() };
        Witnessed {
            plan_sha256: Sha256Digest([6; 32]),
            transcript_head: Sha256Digest([7; 32]),
            origin: Origin::Generated,
            people: vec![Participant { name: "Ada Lovelace".to_owned(), role: Role::Administrator }],
            copies: vec![copy("01"), copy("02")],
            shares: None,
            exceptions: Vec::new(),
            previous_record_sha256: None,
        }
    }

    fn with(witnessed: Witnessed) -> KekRecord {
        let none = record();
        KekRecord {
            kind: Kind::Production,
            recovery: recovery(Some(&witnessed), &[]),
            witnessed: Some(witnessed),
            ..none
        }
    }

    #[test]
    fn two_copies_are_a_recovery_and_one_is_none() {
        let two = with(witnessed());
        assert_eq!(two.recovery, Recovery::Copies);
        assert_eq!(KekRecord::parse(two.to_json().unwrap().as_bytes()).unwrap(), two);
        let mut one = witnessed();
        one.copies.truncate(1);
        assert_eq!(with(one).recovery, Recovery::None);
        let edits: [fn(&mut KekRecord); 5] = [
            |edited| edited.recovery = Recovery::None,
            |edited| edited.kind = Kind::Trial,
            |edited| edited.witnessed.as_mut().unwrap().people.clear(),
            |edited| edited.witnessed.as_mut().unwrap().copies[1].serial = "01".to_owned(),
            |edited| {
                let copy = TokenCopy { serial: edited.token.serial.clone(), library: edited.module.library.clone() };
                edited.witnessed.as_mut().unwrap().copies[0] = copy;
            },
        ];
        for edit in edits {
            let mut edited = two.clone();
            edit(&mut edited);
            edited.to_json().unwrap_err();
        }
    }

    fn error_after(old: &str, new: &str) -> String {
        let text = record().to_json().unwrap();
        assert!(text.contains(old), "{old}");
        KekRecord::parse(text.replacen(old, new, 1).as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        let text = record().to_json().unwrap();
        let read = KekRecord::parse(text.as_bytes()).unwrap();
        assert_eq!(read, record());
        assert_eq!(read.to_json().unwrap(), text);
        assert_eq!(read.proofs[0].blob().iv(), [1; 12]);
    }

    #[test]
    fn the_form_of_the_file_is_fixed() {
        let text = record().to_json().unwrap();
        assert!(
            text.starts_with("{\n  \"version\": 1,\n  \"kind\": \"trial\",\n  \"ceremony\": {\n    \"id\": \"abab")
        );
        assert!(text.ends_with("\"recovery\": \"none\"\n}\n"));
    }

    #[test]
    fn faults_are_named_with_field_and_line() {
        for (old, new, error) in [
            ("\"version\": 1", "\"version\": 2", "KEK record: version 2 is not known, this release reads version 1"),
            ("\"kind\"", "\"kinds\"", "line 3, column 9: unknown key `kinds`"),
            ("\"trial\"", "\"trail\"", "`kind`: expected one of `production`, `rehearsal`, `trial`"),
            ("\"trial\"", "\"production\"", "`witnessed`: it stands exactly in the records of kind production or"),
            ("\"none\"", "\"copies\"", "`recovery`: it is `copies` exactly where witnessed.copies lists at least two"),
            ("\"kind\": \"trial\",", "\"version\": 1,", "line 3, column 11: duplicate key `version`"),
            ("\"CKA_WRAP\"", "\"CKA_COPYABLE\"", "duplicate key `CKA_COPYABLE`"),
            ("\"CKA_WRAP\"", "\"CKA_WARP\"", "unknown key `kek.attributes.CKA_WARP`"),
            ("abab\"", "abaB\"", "`ceremony.id`: expected 32 lower-case hex digits"),
            ("abab\"", "ab\"", "`ceremony.id`: expected 32 lower-case hex digits"),
            ("12:00:00Z", "12:00:00+01:00", "`ceremony.time`: expected a time in UTC"),
            ("prod-eu-1", "Prod", "`cluster`: a cluster id has"),
            ("\"label\": \"kek\"", "\"label\": \"\"", "`token.label`: must not be empty"),
            ("\"2.6\"", "2.6", "`module.library_version`: expected a text, found floating point"),
            ("0404\"", "040\"", "`kek.id`: expected 1 to 64 bytes"),
            ("aGttcw", "aGttcx", "`proofs[0].blob`: sealed blob has version 17"),
            ("aGttcw", "?", "`proofs[0].blob`: expected base64"),
            ("\"none\"", "\"some\"", "`recovery`: expected one of `none`, `copies`, `shares`, `recipients`"),
        ] {
            let found = error_after(old, new);
            assert!(found.contains(error), "{found}\n{error}");
        }
        let mut needless = record();
        needless.mac_key = Some(needless.kek.clone());
        assert!(needless.to_json().unwrap_err().to_string().contains("`mac_key`: it stands exactly in the records"));
        let mut needless = record();
        needless.witnessed = Some(witnessed());
        assert!(needless.to_json().unwrap_err().to_string().contains("`witnessed`: it stands exactly in the records"));
        let mut none = record();
        none.proofs.clear();
        assert!(none.to_json().unwrap_err().to_string().contains("`proofs`: expected at least one proof"));
    }

    #[test]
    fn the_documented_record_is_read_and_written() {
        let document = include_str!("../../docs/formats.md");
        let block = |text: &'static str, mark: &str| {
            let start = text.find(mark).unwrap() + mark.len();
            &text[start..start + text[start..].find("```").unwrap()]
        };
        let text = block(document, "```json\n");
        let record = KekRecord::parse(text.as_bytes()).unwrap();
        assert_eq!(record.to_json().unwrap(), text);
        assert_eq!(record.kek.id.as_bytes()[..2], [0xa0, 0xa1]);
        let (_, rest) = document.split_once(text).unwrap();
        let text = block(rest, "```json\n");
        let witnessed: Witnessed = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string_pretty(&witnessed).unwrap() + "\n", text);
        with(witnessed).to_json().unwrap();
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_reads_as_the_same_record(place in 0_usize..2000, bit in 0..8) {
            let mut text = record().to_json().unwrap().into_bytes();
            let place = place % text.len();
            text[place] ^= 1_u8 << bit;
            if let Ok(read) = KekRecord::parse(&text) {
                prop_assert!(read != record() || text[place].is_ascii_whitespace());
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = KekRecord::read(Path::new("/nonexistent/kek-record.json")).unwrap_err();
        assert!(error.to_string().starts_with("KEK record /nonexistent/kek-record.json: the file cannot be read: "));
        assert!(!error.hint().is_empty());
    }
}
