//! A KEK that is made outside the HSM, for HSMs that cannot give a key to another one: made in memory, shared out on paper, read back,
//! restored from what was read back, and only then put into the token. What goes into the token has come through the shares, so it cannot be
//! that they give another key.

use thiserror::Error;
use zeroize::Zeroizing;

use super::CeremonyError;
use super::generate::with_or_without_optional;
use super::keys::Keys;
use super::plan::ImportPlan;
use crate::class::Class;
use crate::pkcs11::{self, ImportWay, Session};
use crate::shares::{self, CombineError, SecretDigest, Set, Share, SplitError, TextError};

/// Why a key does not come in from outside.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The shares that were brought together do not give the secret.
    #[error(transparent)]
    Combine(#[from] CombineError),
    /// What was typed back is a share, but not the one that was handed out.
    #[error("this is share {found} of set {set}, and not share {number} as it was handed out")]
    Misread {
        /// The share that was handed out.
        number: u8,
        /// What was typed.
        found: u8,
        /// The set of what was typed.
        set: shares::SetId,
    },
    /// The token takes a key by none of the ways that there are.
    #[error("the token takes no key from outside: {}", tried.iter().map(|(way, error)| format!("{way}: {error}")).collect::<Vec<_>>().join("; "))]
    NoWay {
        /// Each way, and why not.
        tried: Vec<(ImportWay, pkcs11::Error)>,
    },
    /// There is no share of this number.
    #[error("there is no share {0}")]
    NoShare(u8),
    /// The secret is not as long as the keys that it is for.
    #[error("the shares give {found} bytes, and the keys of this plan need {expected}")]
    OtherLength {
        /// Bytes of the secret.
        found: usize,
        /// Bytes of the keys.
        expected: usize,
    },
    /// The key cannot be split as the plan says.
    #[error("{0}")]
    Split(String),
    /// What was typed back is no share.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Shares that were handed out and not read back yet.
    #[error("not read back yet: share {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Unread(Vec<u8>),
}

impl ImportError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Combine(error) => error.hint(),
            Self::Misread { .. } => "type the share from the paper that was written just now; put older papers away",
            Self::NoWay { .. } => "generate the KEK in this HSM instead: take import out of the plan",
            Self::NoShare(_) | Self::Split(_) => {
                "set import in the plan to 2 to 16 shares, and a threshold not above that"
            }
            Self::OtherLength { .. } => "use the plan that these shares were made with",
            Self::Text(error) => error.hint(),
            Self::Unread(_) => "each custodian types the share back before the key is used",
        }
    }
}

/// Bytes of each key.
const KEY_BYTES: usize = 32;

/// Keys outside any HSM. Wiped on drop. They cannot be put into a token: first they are shared out and restored.
pub(super) struct Material(Zeroizing<Vec<u8>>);

impl Material {
    /// As many random bytes as the keys of the plan need. `random` is a source as good as [`mixed`].
    pub(super) fn make(
        keys: &Keys,
        random: impl FnMut(&mut [u8]) -> Result<(), CeremonyError>,
    ) -> Result<Self, CeremonyError> {
        Self::of_keys(keys.all().count(), random)
    }

    fn of_keys(
        count: usize,
        mut random: impl FnMut(&mut [u8]) -> Result<(), CeremonyError>,
    ) -> Result<Self, CeremonyError> {
        let mut bytes = Zeroizing::new(vec![0; count.saturating_mul(KEY_BYTES)]);
        random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Splits it as the plan says, and forgets the whole.
    pub(super) fn share_out(
        self,
        plan: &ImportPlan,
        random: impl FnMut(&mut [u8]) -> Result<(), CeremonyError>,
    ) -> Result<Handout, CeremonyError> {
        // The plan has checked them; what does not fit is refused below.
        let count = |number| u8::try_from(number).unwrap_or_default();
        match shares::split(&self.0, count(plan.threshold), count(plan.shares), random) {
            Ok(set) => Ok(Handout { typed: set.shares.iter().map(|_| None).collect(), set }),
            Err(SplitError::Randomness(error)) => Err(error),
            Err(other) => Err(ImportError::Split(other.to_string()).into()),
        }
    }
}

/// The shares while they are handed out, and those that were read back.
pub(super) struct Handout {
    set: Set,
    typed: Vec<Option<Share>>,
}

impl Handout {
    /// The digest of the secret, for the record and the transcript.
    pub(super) fn digest(&self) -> SecretDigest {
        self.set.digest
    }

    /// Numbers of the shares, in order.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u8> {
        self.set.shares.iter().map(Share::number)
    }

    /// The text of a share, for its custodian's eyes only.
    pub(super) fn text(&self, number: u8) -> Result<Zeroizing<String>, ImportError> {
        let share = self.set.shares.iter().find(|share| share.number() == number);
        share.map(Share::to_text).ok_or(ImportError::NoShare(number))
    }

    /// Checks what the custodian typed back from the paper. On an error it is typed again.
    pub(super) fn read_back(&mut self, number: u8, typed: &str) -> Result<(), ImportError> {
        let mut places = self.set.shares.iter().zip(&mut self.typed);
        let (share, place) = places.find(|(share, _)| share.number() == number).ok_or(ImportError::NoShare(number))?;
        let read = Share::parse(typed)?;
        if !read.is(share) {
            return Err(ImportError::Misread { number, found: read.number(), set: read.set() });
        }
        *place = Some(read);
        Ok(())
    }

    /// Restores the keys from what was typed back, never from what was handed out: every run of as many shares as are needed must give the
    /// secret, so that each share has its part in it.
    pub(super) fn drill(self) -> Result<Restored, ImportError> {
        let unread: Vec<u8> =
            self.numbers().zip(&self.typed).filter(|(_, typed)| typed.is_none()).map(|(number, _)| number).collect();
        if !unread.is_empty() {
            return Err(ImportError::Unread(unread));
        }
        let typed: Vec<Share> = self.typed.into_iter().flatten().collect();
        let needed = typed.first().map_or(0, |share| usize::from(share.threshold()));
        for run in typed.windows(needed.max(1)) {
            shares::combine(run, |secret| self.set.digest.is_of(secret))?;
        }
        Restored::from_shares(&typed, &self.set.digest)
    }
}

/// Keys that shares gave: the only ones that go into a token.
pub(super) struct Restored(Zeroizing<Vec<u8>>);

impl Restored {
    /// The keys that these shares give, if they have this digest: for the token of a ceremony, and later for another one.
    pub(super) fn from_shares(shares: &[Share], digest: &SecretDigest) -> Result<Self, ImportError> {
        Ok(Self(shares::combine(shares, |secret| digest.is_of(secret))?))
    }

    /// The keys for another process of this ceremony, which puts them into another token.
    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What the ceremony's process has handed over.
    pub(super) fn handed_over(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Each key.
    fn keys(&self) -> impl Iterator<Item = Zeroizing<[u8; KEY_BYTES]>> {
        self.0.as_chunks::<KEY_BYTES>().0.iter().copied().map(Zeroizing::new)
    }
}

/// Puts the keys into the token, and says how. If that fails, some may have been made: see [`Keys::destroy`].
pub(super) fn import(keys: &mut Keys, login: &Session, restored: &Restored) -> Result<ImportWay, CeremonyError> {
    let (found, expected) = (restored.0.len(), keys.all().count().saturating_mul(KEY_BYTES));
    if found != expected {
        return Err(ImportError::OtherLength { found, expected }.into());
    }
    let mut tried = Vec::new();
    for way in ImportWay::ALL {
        match import_by(way, keys, login, restored) {
            Err(CeremonyError::Pkcs11(error)) if keys.is_nothing_made() && is_refusal(&error) => {
                tried.push((way, error));
            }
            outcome => return outcome.map(|()| way),
        }
    }
    Err(ImportError::NoWay { tried }.into())
}

fn import_by(way: ImportWay, keys: &mut Keys, login: &Session, restored: &Restored) -> Result<(), CeremonyError> {
    let transport = login.transport(way)?;
    let mut values = restored.keys();
    let made = keys.make(login, |template| {
        let value = values.next().ok_or_else(|| pkcs11::Error::Unreadable("there is no value for a key".to_owned()))?;
        with_or_without_optional(template, |template| transport.import(template, &value))
    });
    let destroyed = transport.destroy();
    made?;
    Ok(destroyed?)
}

/// Whether another way may work: the token answers, and the session is good.
fn is_refusal(error: &pkcs11::Error) -> bool {
    !matches!(error.class(), Class::Login | Class::Busy)
        && !matches!(error, pkcs11::Error::Call { code, .. } if OUT_OF_REACH.contains(code))
}

const OUT_OF_REACH: [u64; 6] = [
    cryptoki_sys::CKR_DEVICE_ERROR,
    cryptoki_sys::CKR_DEVICE_REMOVED,
    cryptoki_sys::CKR_TOKEN_NOT_PRESENT,
    cryptoki_sys::CKR_SESSION_CLOSED,
    cryptoki_sys::CKR_SESSION_HANDLE_INVALID,
    cryptoki_sys::CKR_CRYPTOKI_NOT_INITIALIZED,
];

/// Random bytes of the token's mixed with the kernel's: they cannot be foretold as long as one of the two cannot.
pub(super) fn mixed(session: &Session) -> impl FnMut(&mut [u8]) -> Result<(), CeremonyError> {
    |buffer| {
        // Some tokens give no more than a few hundred bytes at a time.
        for piece in buffer.chunks_mut(64) {
            session.random(piece)?;
            let kernel = Zeroizing::new(super::keys::random::<64>()?);
            piece.iter_mut().zip(kernel.iter()).for_each(|(byte, other)| *byte ^= other);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: ImportPlan = ImportPlan { shares: 5, threshold: 3 };

    #[expect(clippy::unnecessary_wraps, reason = "as a token's randomness is, which can fail")]
    fn kernel(buffer: &mut [u8]) -> Result<(), CeremonyError> {
        getrandom::fill(buffer).unwrap();
        Ok(())
    }

    fn handout() -> (Vec<u8>, Handout) {
        let material = Material::of_keys(2, kernel).unwrap();
        (material.0.to_vec(), material.share_out(&PLAN, kernel).unwrap())
    }

    #[test]
    fn what_goes_into_the_token_came_through_the_shares_that_were_read_back() {
        let (secret, mut handout) = handout();
        assert_eq!(handout.numbers().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        for number in [5, 1, 3, 2, 4] {
            let typed = handout.text(number).unwrap().to_uppercase();
            handout.read_back(number, &typed).unwrap();
        }
        let restored = handout.drill().unwrap();
        let keys: Vec<_> = restored.keys().collect();
        assert_eq!([keys[0].as_slice(), keys[1].as_slice()].concat(), secret);
        assert_eq!(keys.len(), 2);
    }

    #[test]
    fn the_key_is_not_used_before_every_share_was_read_back() {
        let (_, mut handout) = handout();
        for number in [1, 2, 4] {
            let typed = handout.text(number).unwrap();
            handout.read_back(number, &typed).unwrap();
        }
        assert!(matches!(handout.drill(), Err(ImportError::Unread(numbers)) if numbers == [3, 5]));
    }

    #[test]
    fn another_share_is_not_taken_for_the_one_that_was_handed_out() {
        let ((_, mut ours), (_, theirs)) = (handout(), handout());
        let second = ours.text(2).unwrap();
        assert!(matches!(ours.read_back(1, &second), Err(ImportError::Misread { number: 1, found: 2, .. })));
        let foreign = theirs.text(1).unwrap();
        assert!(matches!(ours.read_back(1, &foreign), Err(ImportError::Misread { number: 1, found: 1, .. })));
        let miswritten = ours.text(1).unwrap().replacen(' ', " q", 1);
        assert!(matches!(ours.read_back(1, &miswritten), Err(ImportError::Text(_))));
        assert!(matches!(ours.read_back(6, &second), Err(ImportError::NoShare(6))));
        assert!(matches!(ours.text(0), Err(ImportError::NoShare(0))));
        assert!(matches!(ours.drill(), Err(ImportError::Unread(numbers)) if numbers.len() == 5));
    }

    #[test]
    fn a_later_token_gets_the_same_keys_from_any_shares() {
        let (secret, handout) = handout();
        let shares: Vec<Share> = [5, 2, 4].map(|number| Share::parse(&handout.text(number).unwrap()).unwrap()).to_vec();
        assert_eq!(Restored::from_shares(&shares, &handout.digest()).unwrap().0.as_slice(), secret);
        let too_few = Restored::from_shares(&shares[..2], &handout.digest());
        assert!(matches!(too_few, Err(ImportError::Combine(CombineError::TooFew { given: 2, threshold: 3 }))));
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        for (shares, threshold) in [(2, 3), (300, 2), (5, 1)] {
            let material = Material::of_keys(1, kernel).unwrap();
            let refused = material.share_out(&ImportPlan { shares, threshold }, kernel);
            assert!(matches!(refused, Err(CeremonyError::Import(ImportError::Split(_)))));
        }
    }
}
