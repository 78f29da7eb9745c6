//! The KEK again, from its shares, on another token: for HSMs that cannot copy one, and for the day when the token is lost.

use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::copies::{KeyProof, Sameness, Visit};
use super::import::{self, Restored};
use super::keys::Keys;
use super::plan::CopyPlan;
use super::{CeremonyError, Console};
use crate::pkcs11::{ImportWay, Session};
use crate::record::{KekRecord, Origin};
use crate::secret::Pin;
use crate::shares::Share;

/// How often one share may be typed.
const TRIES: usize = 5;

/// Puts keys that a ceremony's process hands over through this descriptor into the token, and has them prove that they are the KEK.
pub fn import_copy(
    copy: &CopyPlan,
    record: &KekRecord,
    pin: Option<&Pin>,
    descriptor: i32,
) -> Result<KeyProof, CeremonyError> {
    let system = |source| CeremonyError::System { what: "the KEK was not handed over", source };
    let bytes = Zeroizing::new(std::fs::read(format!("/proc/self/fd/{descriptor}")).map_err(system)?);
    let visit = Visit::new(&copy.token, &copy.serial, pin)?;
    let (keys, _) = put_in(&visit.login, copy, record, &Restored::handed_over(bytes))?;
    prove(&visit, keys, record)
}

/// Asks for shares until there are enough, puts what they restore into the token under label and `CKA_ID` of the record, and has it prove
/// that it is that KEK. A key that does not is destroyed.
pub fn restore(
    copy: &CopyPlan,
    record: &KekRecord,
    pin: Option<&Pin>,
    console: &mut Console,
) -> Result<KeyProof, CeremonyError> {
    let shares = record.witnessed.as_ref().and_then(|witnessed| witnessed.shares);
    let set =
        shares.ok_or(CeremonyError::Refused("the KEK of this record did not come in shares: nothing restores it"))?;
    console.begin("find the token, and log in");
    let visit = Visit::new(&copy.token, &copy.serial, pin)?;
    Keys::on(&copy.token, &record.kek.label, Origin::Imported).check_free(&visit.login)?;
    console.done("nothing there has the KEK's label");
    let mut typed: Vec<Share> = Vec::new();
    for number in 1..=set.threshold {
        typed.push(ask(console, number, set.threshold, &typed)?);
    }
    console.begin("bring the shares together");
    let restored = Restored::from_shares(&typed, &set.digest)?;
    drop(typed);
    console.done("they restore the KEK");
    console.begin("put the KEK into the token");
    let (keys, way) = put_in(&visit.login, copy, record, &restored)?;
    drop(restored);
    console.done(&way.to_string());
    console.begin("open the proof blobs");
    let proof = prove(&visit, keys, record)?;
    console.done("it is the KEK of the record");
    Ok(proof)
}

/// A share as it is typed, not one of those that are there already.
fn ask(console: &mut Console, number: u64, of: u64, before: &[Share]) -> Result<Share, CeremonyError> {
    for _ in 0..TRIES {
        let typed = console.ask_hidden("share", &format!("share {number} of {of}"))?;
        match Share::parse(typed.expose_secret()) {
            Ok(share) if before.iter().any(|other| other.number() == share.number()) => {
                console.tell(&format!("Share {} is there already.", share.number()));
            }
            Ok(share) => {
                console.clear();
                return Ok(share);
            }
            Err(error) => console.tell(&format!("Not right: {error}. {}.", error.hint())),
        }
    }
    Err(CeremonyError::Unanswered("share".to_owned()))
}

/// The key on the token. What is not whole is destroyed.
fn put_in(
    login: &Session,
    copy: &CopyPlan,
    record: &KekRecord,
    restored: &Restored,
) -> Result<(Keys, ImportWay), CeremonyError> {
    let mut keys = Keys::on(&copy.token, &record.kek.label, Origin::Imported);
    keys.take_ids(record);
    keys.check_free(login)?;
    match import::import(&mut keys, login, restored) {
        Ok(way) => Ok((keys, way)),
        Err(cause) => Err(keys.destroy(login, cause, &mut |_| ())),
    }
}

/// What was put in proves to be the KEK, or does not stay.
fn prove(visit: &Visit<'_>, mut keys: Keys, record: &KekRecord) -> Result<KeyProof, CeremonyError> {
    match visit.prove(record, Sameness::Copy) {
        Ok((_, proof)) => Ok(proof),
        Err(cause) => Err(keys.destroy(&visit.login, cause, &mut |_| ())),
    }
}
