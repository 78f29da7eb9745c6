//! A KEK as a ceremony makes it: what the token makes of the strict template, what it refuses to do with it, and that it seals.

use std::collections::BTreeMap;

use cryptoki_sys as sys;
use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::outcome::Outcome;
use super::seals::{CONTEXT, SEED, fresh};
use super::steps::Trial;
use crate::attributes::{AttributeName, AttributeValue, Deviation, KeyUse};
use crate::ceremony::{self, CeremonyError};
use crate::pkcs11::{Error, KekKeys, Key, KeyTemplate};
use crate::record::Origin;

/// What a ceremony on this token would meet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KekFinding {
    /// Whether a KEK comes of it.
    pub outcome: Outcome,
    /// How each attribute of the KEK reads.
    pub attributes: BTreeMap<AttributeName, AttributeValue>,
    /// Attributes that read otherwise than the ceremony asks, and that its plan must permit.
    pub permit: Vec<AttributeName>,
    /// What was tried on it and refused.
    pub refusals: BTreeMap<String, String>,
}

pub(super) fn run(bench: &mut Bench, trial: Trial, omit: Vec<u64>) -> Result<KekFinding, Error> {
    let candidate = bench.candidate(trial.candidate)?.clone();
    let kek = KeyTemplate {
        purpose: candidate.sealing.kek_use(),
        id: id()?,
        label: bench.label.clone(),
        kind: candidate.kind,
        generate: candidate.generate,
        mechanism: candidate.sealing.mechanism,
        add: candidate.add.clone(),
        omit,
    };
    let mac = candidate.sealing.mac_mechanism().map(|mechanism| {
        Ok::<_, Error>(KeyTemplate {
            purpose: KeyUse::Mac,
            id: id()?,
            kind: sys::CKK_GENERIC_SECRET,
            generate: sys::CKM_GENERIC_SECRET_KEY_GEN,
            mechanism,
            ..kek.clone()
        })
    });
    let mac = mac.transpose()?;
    let mut finding = KekFinding {
        outcome: Outcome::WORKS,
        attributes: BTreeMap::new(),
        permit: Vec::new(),
        refusals: BTreeMap::new(),
    };
    if let Err(outcome) = prove(bench, trial, &kek, mac.as_ref(), &mut finding) {
        finding.outcome = outcome;
    }
    finding.permit.sort_unstable();
    finding.permit.dedup();
    bench.clear()?;
    Ok(finding)
}

/// Makes the keys, reads them, tries what they must refuse, and seals. `Err`: what keeps it from being a KEK.
fn prove(
    bench: &mut Bench,
    trial: Trial,
    kek: &KeyTemplate,
    mac: Option<&KeyTemplate>,
    finding: &mut KekFinding,
) -> Result<(), Outcome> {
    bench.in_use = true;
    let made = [Some(kek), mac].into_iter().flatten().map(|template| {
        let home = bench.home()?;
        ceremony::generate(home, template).map(|key| (template, key))
    });
    let made: Vec<(&KeyTemplate, Key)> = made.collect::<Result<_, Error>>().map_err(|error| Outcome::from(&error))?;
    for (template, key) in &made {
        let home = bench.home().map_err(|error| Outcome::from(&error))?;
        let attributes = home.attributes(*key).map_err(|error| Outcome::from(&error))?;
        let deviations = ceremony::deviations(template, Origin::Generated, &attributes);
        let is_negotiable = |deviation: &&Deviation| deviation.is_negotiable(template.purpose);
        finding.permit.extend(deviations.iter().filter(is_negotiable).map(|deviation| deviation.name));
        if template.purpose != KeyUse::Mac {
            finding.attributes.clone_from(&attributes);
        }
        if let Some(fatal) = deviations.iter().find(|deviation| !is_negotiable(deviation)) {
            return Err(Outcome::differs(fatal.to_string()));
        }
        let may_be_copied = finding.permit.contains(&AttributeName::Copyable);
        let refusals =
            ceremony::negative_tests(home, *key, template, &attributes, may_be_copied).map_err(
                |error| match error {
                    CeremonyError::NotRefused(attempt) | CeremonyError::Altered { attempt, .. } => {
                        Outcome::differs(format!("it must refuse: {attempt}"))
                    }
                    CeremonyError::Pkcs11(error) => Outcome::from(&error),
                    other => Outcome::differs(other.to_string()),
                },
            )?;
        let of_key = if template.purpose == KeyUse::Mac { "MAC key: " } else { "" };
        finding.refusals.extend(refusals.into_iter().map(|one| (format!("{of_key}{}", one.attempt), one.answer)));
    }
    let mut keys = made.iter().map(|(_, key)| *key);
    let Some(key) = keys.next() else { return Ok(()) };
    let (handles, sealing) = (KekKeys { key, mac: keys.next() }, bench.candidate(trial.candidate));
    let sealing = sealing.map_err(|error| Outcome::from(&error))?.sealing;
    let opened = fresh(bench, |session| {
        let sealed = session.seal(handles, &sealing, &CONTEXT, &SEED)?;
        session.open(handles, &sealing, sealing.form, &sealed.iv, &CONTEXT, &sealed.ciphertext)
    });
    match opened {
        Ok(opened) if opened.as_slice() == SEED => Ok(()),
        Ok(_) => Err(Outcome::differs("it opens its own seal to something else")),
        Err(error) => Err(Outcome::from(&error)),
    }
}

fn id() -> Result<Vec<u8>, Error> {
    let mut id = vec![0; 16];
    getrandom::fill(&mut id).map_err(|error| Error::Unreadable(format!("no kernel randomness: {error}")))?;
    Ok(id)
}
