//! The key ceremony: makes a KEK on a token from a plan, proves what can be proved about it, and writes its record.
//!
//! Runs PKCS#11 in its own process: nothing untrusted comes in here, and a link with frames for generation, copies and
//! attribute changes would give the worker powers that it must not have.

mod generate;
mod keys;
mod negative;
mod plan;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub(crate) use self::generate::{deviations, generate};
use self::keys::Keys;
pub use self::negative::Refusal;
pub(crate) use self::negative::run as negative_tests;
pub use self::plan::{Plan, PlanError};
use crate::attributes::{AttributeName, Deviation, KeyUse};
use crate::class::Class;
use crate::envelope::{Blob, Context};
use crate::pkcs11::{self, KekKeys, KeyTemplate, Module, Sealed, Session, Token};
use crate::record::{Ceremony, CeremonyId, CkaId, KekRecord, Kind, Proof, TokenKey, UtcTime};
use crate::record::{Module as ModuleRecord, Token as TokenRecord};
use crate::seal::Sealing;
use crate::strict::FileError;

/// What stops a ceremony.
#[derive(Debug, Error)]
pub enum CeremonyError {
    /// A negative test succeeded, and what it did to the key could not be undone.
    #[error("the token did what it must refuse: {attempt}; and it does not let it be undone: {error}")]
    Altered {
        /// What was tried.
        attempt: &'static str,
        /// Why it could not be undone.
        error: Box<pkcs11::Error>,
    },
    /// A copy that was made to try the token could not be destroyed.
    #[error(
        "a copy of the key {label:?}, made to try what the token refuses ({attempt}), cannot be destroyed: {error}"
    )]
    CopyLeft {
        /// `CKA_LABEL` of the key, and so of the copy.
        label: String,
        /// What was tried, and done.
        attempt: &'static str,
        /// Why it could not be destroyed.
        error: Box<pkcs11::Error>,
    },
    /// The key that was made is not a KEK; it was destroyed.
    #[error("the key {label:?} is not what a KEK needs: {}", deviations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Deviates {
        /// Its `CKA_LABEL`.
        label: String,
        /// What differs.
        deviations: Vec<Deviation>,
    },
    /// Something with the KEK's label is on the token already.
    #[error("{count} object(s) with label {label:?} are on the token already")]
    LabelTaken {
        /// The label.
        label: String,
        /// How many objects have it.
        count: usize,
    },
    /// The ceremony stopped, and the key that it had made could not be destroyed.
    #[error("{cause}; and the key {label:?} with CKA_ID {id} is still on the token: {error}")]
    LeftBehind {
        /// Its `CKA_LABEL`.
        label: String,
        /// Its `CKA_ID`, in hex.
        id: String,
        /// Why it could not be destroyed.
        error: Box<pkcs11::Error>,
        /// Why the ceremony stopped.
        cause: Box<CeremonyError>,
    },
    /// A negative test succeeded: the token did what it must refuse. The key was destroyed.
    #[error("the token did what it must refuse: {0}")]
    NotRefused(&'static str),
    /// The output directory or file cannot be used.
    #[error("{}: {reason}", path.display())]
    Output {
        /// Directory or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The PKCS#11 layer failed.
    #[error(transparent)]
    Pkcs11(#[from] pkcs11::Error),
    /// The record cannot be written in its own format.
    #[error(transparent)]
    Record(#[from] FileError),
    /// A proof blob did not behave as it must. The key was destroyed.
    #[error("the KEK failed its proof: {0}")]
    Proof(&'static str),
    /// The system failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
}

impl CeremonyError {
    /// What an operator can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Altered { .. } => {
                "the key was altered: do not use it; destroy one that the vendor's tool made, and tell the vendor".to_owned()
            }
            Self::CopyLeft { .. } => {
                "do not use this token for a KEK; destroy what is left of that label with the vendor's tool".to_owned()
            }
            Self::Deviates { .. } => {
                "if the plan's owner accepts it, name the attribute under kek.permit in the plan; a key that the ceremony made was destroyed"
                    .to_owned()
            }
            Self::LabelTaken { .. } => {
                "choose a new kek.label in the plan; a ceremony never touches an existing object".to_owned()
            }
            Self::LeftBehind { .. } => {
                "no record was written, so no plugin uses this key; destroy it with the vendor's tool".to_owned()
            }
            Self::NotRefused(_) | Self::Proof(_) => {
                "do not use this token for a KEK, and tell the vendor; a key that the ceremony made was destroyed".to_owned()
            }
            Self::Output { .. } => {
                "name an existing directory without a kek-record.json under output in the plan".to_owned()
            }
            Self::Pkcs11(error) => error.hint(),
            Self::Record(error) => error.hint(),
            Self::System { .. } => "mend it and run the ceremony again".to_owned(),
        }
    }

    /// Whether the HSM was out of reach, as against a refusal or a mistake in the plan.
    pub fn is_out_of_reach(&self) -> bool {
        // A token that was found, and has not what the plan needs, was not out of reach.
        let answered = |error: &pkcs11::Error| {
            matches!(error, pkcs11::Error::KekAbsent { .. } | pkcs11::Error::MechanismAbsent { .. })
        };
        matches!(self, Self::Pkcs11(error) if error.class() != Class::PinOrConfig && !answered(error))
    }
}

/// What a ceremony is doing, for whoever watches.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A step begins.
    Begins(&'a str),
    /// The step that began is done, and this came of it.
    Done(&'a str),
}

/// Told of each step.
pub type Watcher<'a> = &'a mut dyn FnMut(Progress<'_>);

/// What a ceremony made.
pub struct Outcome {
    /// The record, as written.
    pub record: KekRecord,
    /// Where it lies.
    pub path: PathBuf,
    /// What was tried and refused, in order.
    pub refusals: Vec<Refusal>,
}

/// Name of the record file in the plan's output directory.
const RECORD_FILE: &str = "kek-record.json";

/// Proof blobs made: one for health probes, one for copies, one kept for disputes.
const PROOFS: usize = 3;

/// Runs the plan. Leaves either a KEK with its record, or neither.
pub fn run(plan: &Plan, watcher: Watcher<'_>) -> Result<Outcome, CeremonyError> {
    let path = check_output(&plan.output)?;
    // It holds the PIN, and runs a module that may crash: no core dump, and nobody of the same user reads its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| CeremonyError::System {
        what: "memory cannot be kept from core dumps",
        source: error.into(),
    })?;
    // Before the module opens files of its own: a descriptor that nobody passed on could be one of them.
    let profile = &plan.token.profile;
    let pin = plan
        .token
        .pin
        .as_ref()
        .map(|source| source.read(profile.login.pin))
        .transpose()
        .map_err(pkcs11::Error::from)?;

    watcher(Progress::Begins("load the module and find the token"));
    let reserved = plan.token.init_reserved.as_deref();
    let module = Module::load(&plan.token.module, reserved, &profile.module.manufacturers, profile.codes.clone())?;
    let token = module.token(&plan.token.label)?;
    let info = token.info();
    watcher(Progress::Done(&format!("{} {}, serial {}", info.manufacturer, info.model, info.serial)));

    token.require(&plan.token.sealing)?;

    watcher(Progress::Begins("log in, one attempt"));
    let login = token.login(profile.login.user, pin.as_ref())?;
    drop(pin);
    watcher(Progress::Done("the user is logged in"));

    let keys = keys::make(plan, &login, watcher)?;
    // From here on there are keys on the token: either they get their record, or they go.
    let outcome = prove(plan, &token, &keys, watcher).and_then(|proved| {
        let Proved { ceremony, kek, mac_key, proofs, refusals, deviations } = proved;
        let record = KekRecord::new(
            Kind::Trial,
            ceremony,
            plan.cluster.clone(),
            profile.full_name(),
            module_record(&module, &plan.token.module)?,
            token_record(&token),
            kek,
            mac_key,
            proofs,
            deviations,
            None,
        );
        watcher(Progress::Begins("write the record"));
        write_new(&path, record.to_json()?.as_bytes())?;
        watcher(Progress::Done(&path.display().to_string()));
        Ok(Outcome { record, path: path.clone(), refusals })
    });
    outcome.map_err(|cause| keys.destroy(&login, cause, watcher))
}

/// What was found true of the keys.
struct Proved {
    ceremony: Ceremony,
    kek: TokenKey,
    mac_key: Option<TokenKey>,
    proofs: Vec<Proof>,
    refusals: Vec<Refusal>,
    deviations: Vec<String>,
}

/// Everything that must be true of the keys, seen through a new session.
fn prove(plan: &Plan, token: &Token, keys: &Keys, watcher: Watcher<'_>) -> Result<Proved, CeremonyError> {
    watcher(Progress::Begins("read every attribute back in a new session"));
    let session = token.open_session()?;
    let ceremony = Ceremony {
        id: CeremonyId::new(random()?),
        time: UtcTime::now(),
        tool: concat!("hsm-kms ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let (mut deviations, mut read) = (Vec::new(), 0);
    let mut audit = |template: &KeyTemplate| {
        let key = session.key(&template.label, &template.id)?;
        let attributes = session.attributes(key)?;
        read += attributes.len();
        let is_permitted = |deviation: &Deviation| {
            deviation.is_negotiable(template.purpose) && plan.kek.permit.contains(&deviation.name)
        };
        let (permitted, refused): (Vec<_>, Vec<_>) =
            generate::deviations(template, &attributes).into_iter().partition(is_permitted);
        if !refused.is_empty() {
            return Err(CeremonyError::Deviates { label: template.label.clone(), deviations: refused });
        }
        let of_key = if template.purpose == KeyUse::Mac { format!("{}: ", template.label) } else { String::new() };
        deviations.extend(permitted.iter().map(|deviation| format!("{of_key}{deviation}")));
        let id = CkaId::new(&template.id).ok_or(CeremonyError::Proof("its id has a wrong length"))?;
        Ok((key, TokenKey { id, label: template.label.clone(), attributes }))
    };
    let (key, kek) = audit(&keys.kek)?;
    let mac = keys.mac.as_ref().map(audit).transpose()?;
    watcher(Progress::Done(&format!(
        "{} attributes as they must be, {} permitted deviations",
        read - deviations.len(),
        deviations.len()
    )));

    watcher(Progress::Begins("try what the token must refuse"));
    let may_be_copied = plan.kek.permit.contains(&AttributeName::Copyable);
    let mut refusals = negative::run(&session, key, &keys.kek, &kek.attributes, may_be_copied)?;
    if let (Some((key, mac)), Some(template)) = (&mac, &keys.mac) {
        refusals.extend(negative::run(&session, *key, template, &mac.attributes, may_be_copied)?);
    }
    watcher(Progress::Done(&format!("{} attempts, none made a key less secret", refusals.len())));

    watcher(Progress::Begins("seal and open proof blobs"));
    let handles = KekKeys { key, mac: mac.as_ref().map(|(key, _)| *key) };
    let sealing = &plan.token.sealing;
    let context = Context::proof(sealing.form, &ceremony.id.to_string(), kek.id.as_bytes());
    // Lengths that are padded: a key wrap that is not RFC 5649 would give the padding back.
    reopened(&session, handles, sealing, &context, &random::<1>()?)?;
    reopened(&session, handles, sealing, &context, &random::<33>()?)?;
    let proofs = (0..PROOFS).map(|_| proof(&session, handles, sealing, &context)).collect::<Result<Vec<_>, _>>()?;
    watcher(Progress::Done(&format!(
        "{PROOFS} proof blobs; 1 byte and 33 came back as they were; a changed blob and a wrong context were refused"
    )));
    Ok(Proved { ceremony, kek, mac_key: mac.map(|(_, key)| key), proofs, refusals, deviations })
}

/// Seals these bytes, and makes sure that the very same come out again.
fn reopened(
    session: &Session,
    key: KekKeys,
    sealing: &Sealing,
    context: &Context,
    plaintext: &[u8],
) -> Result<Sealed, CeremonyError> {
    let sealed = session.seal(key, sealing, context.as_bytes(), plaintext)?;
    let opened = session.open(key, sealing, sealing.form, &sealed.iv, context.as_bytes(), &sealed.ciphertext)?;
    if opened.as_slice() == plaintext {
        Ok(sealed)
    } else {
        Err(CeremonyError::Proof("it opened its own seal to something else"))
    }
}

/// Seals a random challenge, opens it again, and checks that nothing but the very same thing opens.
fn proof(session: &Session, key: KekKeys, sealing: &Sealing, context: &Context) -> Result<Proof, CeremonyError> {
    let form = sealing.form;
    let challenge = random::<32>()?;
    let Sealed { iv, ciphertext } = reopened(session, key, sealing, context, &challenge)?;
    let mut changed = ciphertext.clone();
    if let Some(byte) = changed.first_mut() {
        *byte ^= 1;
    }
    if session.open(key, sealing, form, &iv, context.as_bytes(), &changed).is_ok() {
        return Err(CeremonyError::Proof("it opened a changed blob"));
    }
    if session.open(key, sealing, form, &iv, &[0; 32], &ciphertext).is_ok() {
        return Err(CeremonyError::Proof("it opened a blob under another context"));
    }
    let blob = Blob::new(form, &iv, &ciphertext).map_err(|_| CeremonyError::Proof("its blob has a wrong length"))?;
    Ok(Proof::new(blob, Sha256::digest(challenge).into()))
}

fn check_output(directory: &Path) -> Result<PathBuf, CeremonyError> {
    let refuse = |path: &Path, reason: &str| CeremonyError::Output { path: path.to_owned(), reason: reason.to_owned() };
    if !directory.is_dir() {
        return Err(refuse(directory, "is no directory"));
    }
    let path = directory.join(RECORD_FILE);
    if path.symlink_metadata().is_ok() {
        return Err(refuse(&path, "is there already"));
    }
    Ok(path)
}

/// Writes a file that must not exist yet, and makes sure that it is on the disk.
fn write_new(path: &Path, content: &[u8]) -> Result<(), CeremonyError> {
    let output = |error: std::io::Error| CeremonyError::Output { path: path.to_owned(), reason: error.to_string() };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map_err(output)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let synced = written.and_then(|()| path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all()));
    synced.map_err(|error| {
        // A record that is not whole must not be taken for one.
        let _ = std::fs::remove_file(path);
        output(error)
    })
}

fn random<const N: usize>() -> Result<[u8; N], CeremonyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| CeremonyError::System {
        what: "no kernel randomness",
        source: std::io::Error::other(error),
    })?;
    Ok(bytes)
}

fn module_record(module: &Module, path: &Path) -> Result<ModuleRecord, CeremonyError> {
    let info = module.info()?;
    let bytes = std::fs::read(path)
        .map_err(|source| CeremonyError::System { what: "the module file cannot be read for its hash", source })?;
    Ok(ModuleRecord {
        library: info.library,
        library_version: info.library_version,
        sha256: crate::record::Sha256Digest(Sha256::digest(bytes).into()),
    })
}

fn token_record(token: &Token) -> TokenRecord {
    let info = token.info().clone();
    TokenRecord {
        label: info.label,
        manufacturer: info.manufacturer,
        model: info.model,
        serial: info.serial,
        firmware: info.firmware,
    }
}
