//! Adding a signature to the evidence.

use std::path::{Path, PathBuf};

use super::bundle::{Bundle, read_limited};
use super::examine::{Signable, examine};
use super::signature::{allowed_signers, make, principal, verifies};
use super::{EvidenceError, SIGNATURES, write_new};

/// Where a signature comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// `ssh-keygen` makes it with this private key, or with the agent's or token's for this public key.
    Key(PathBuf),
    /// It was made elsewhere, and lies in this file.
    Signature(PathBuf),
}

/// A signature that was stored.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Who signed, as the plan says.
    pub name: String,
    /// Where the signature lies.
    pub path: PathBuf,
    /// Who has not signed yet.
    pub missing: Vec<String>,
}

/// Signs the statement in this directory as the person of this name, and stores the signature, which must not be there yet. Nothing
/// is signed that does not hold, and nothing is stored that does not verify.
pub fn sign(directory: &Path, name: &str, source: &Source) -> Result<Signed, EvidenceError> {
    let bundle = Bundle::read(directory)?;
    let (report, signable) = examine(&bundle);
    let Some(Signable { plan, people, statement }) = signable.filter(|_| report.holds()) else {
        let failed: Vec<_> = report.failed().map(|check| format!("{}: {}", check.name, check.found)).collect();
        return Err(EvidenceError::DoesNotHold(failed.join("; ")));
    };
    let unknown = || EvidenceError::Unknown {
        name: name.to_owned(),
        people: people.iter().map(|person| person.name.to_string()).collect(),
    };
    let person = people.iter().find(|person| person.is(name)).ok_or_else(unknown)?;
    let principal = principal(&plan.people, person).ok_or_else(unknown)?;
    let path = directory.join(SIGNATURES).join(format!("{principal}.sig"));
    if path.symlink_metadata().is_ok() {
        let source = std::io::ErrorKind::AlreadyExists.into();
        return Err(EvidenceError::File { path, source });
    }
    let signature = match source {
        Source::Key(key) => make(key, statement.as_bytes())?,
        Source::Signature(path) => read_limited(path)?.unwrap_or_default(),
    };
    if !verifies(&allowed_signers(&plan.people), &principal, statement.as_bytes(), &signature)? {
        return Err(EvidenceError::NotTheirs { name: person.name.to_string() });
    }
    let signatures = directory.join(SIGNATURES);
    match std::fs::create_dir(&signatures) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(EvidenceError::File { path: signatures, source: error });
        }
        _ => {}
    }
    write_new(&path, &signature)?;
    let is_missing = |other: &str| !bundle.signatures.contains_key(&format!("{other}.sig")) && other != principal;
    let missing =
        people.iter().filter(|person| super::principal(&plan.people, person).is_some_and(|other| is_missing(&other)));
    Ok(Signed { name: person.name.to_string(), path, missing: missing.map(|person| person.name.to_string()).collect() })
}
