//! From shares back to the secret.

use thiserror::Error;
use vsss_rs::Gf256;
use zeroize::Zeroizing;

use super::{SetId, Share};

/// Why shares do not give a secret. None of it says anything about the secret.
#[derive(Debug, Eq, Error, PartialEq)]
pub enum CombineError {
    /// The result is not the secret: a share was forged, or the digest is another set's.
    #[error("the shares fit together, but what they give is not the secret of this set")]
    NotTheSecret,
    /// A share of the same set is longer or shorter than the first, which no true one is.
    #[error("share {number} has another length than the first one")]
    OtherLength {
        /// Its number.
        number: u8,
    },
    /// A share of another set.
    #[error("share {number} belongs to set {found}, the first one to set {expected}")]
    OtherSet {
        /// Its number.
        number: u8,
        /// Its set.
        found: SetId,
        /// The set of the first share.
        expected: SetId,
    },
    /// A share of the same set that asks for another number of shares, which no true one does.
    #[error("share {number} asks for {found} shares, the first one for {expected}")]
    OtherThreshold {
        /// Its number.
        number: u8,
        /// What it asks for.
        found: u8,
        /// What the first share asks for.
        expected: u8,
    },
    /// The library for the scheme failed.
    #[error("the shares cannot be combined: {0}")]
    Scheme(String),
    /// Fewer shares than the set asks for.
    #[error("{given} of the {threshold} shares that are needed: {} more", threshold.saturating_sub(*given))]
    TooFew {
        /// How many there are.
        given: u8,
        /// How many must be. Not known without any share: then the least that any set asks for.
        threshold: u8,
    },
    /// The same share twice.
    #[error("share {number} is there twice")]
    Twice {
        /// Its number.
        number: u8,
    },
}

impl CombineError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooFew { .. } => "get the missing shares from their holders",
            Self::Twice { .. } => "enter each share once: two people may hold copies of the same one",
            Self::OtherSet { .. } => "leave out the share of the other set; the set stands on every share",
            Self::NotTheSecret | Self::OtherLength { .. } | Self::OtherThreshold { .. } => {
                "take the other shares of the set, one in place of each, to find the wrong one; keep it, it may be forged"
            }
            Self::Scheme(_) => "report this",
        }
    }
}

/// Whether these shares can stand together: of one set, none of them twice. There may be too few of them.
pub fn check_fit(shares: &[Share]) -> Result<(), CombineError> {
    let Some(first) = shares.first() else { return Ok(()) };
    for (position, share) in shares.iter().enumerate() {
        let number = share.number;
        if share.set != first.set {
            return Err(CombineError::OtherSet { number, found: share.set, expected: first.set });
        }
        if share.threshold != first.threshold {
            let (found, expected) = (share.threshold, first.threshold);
            return Err(CombineError::OtherThreshold { number, found, expected });
        }
        if share.value.len() != first.value.len() {
            return Err(CombineError::OtherLength { number });
        }
        if shares.iter().take(position).any(|other| other.number == number) {
            return Err(CombineError::Twice { number });
        }
    }
    Ok(())
}

/// The secret that these shares of one set give, if `is_secret` knows it, by a digest or by what belongs to it. More than needed may be
/// given: then all must fit.
pub fn combine(shares: &[Share], is_secret: impl FnOnce(&[u8]) -> bool) -> Result<Zeroizing<Vec<u8>>, CombineError> {
    check_fit(shares)?;
    let threshold = shares.first().map_or(*super::SHARES.start(), |first| first.threshold);
    // No two have the same number, so there are at most 16.
    let given = u8::try_from(shares.len()).unwrap_or(u8::MAX);
    if given < threshold {
        return Err(CombineError::TooFew { given, threshold });
    }
    let points: Zeroizing<Vec<Vec<u8>>> =
        Zeroizing::new(shares.iter().map(|share| [&[share.number], share.value.as_slice()].concat()).collect());
    let secret = Gf256::combine_bytes(points.as_slice()).map(Zeroizing::new);
    let secret = secret.map_err(|error| CombineError::Scheme(error.to_string()))?;
    if is_secret(&secret) { Ok(secret) } else { Err(CombineError::NotTheSecret) }
}
