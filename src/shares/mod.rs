//! A secret in n shares, any m of which give it back, and fewer say nothing about it: Shamir's scheme over GF(256), byte by byte.
//!
//! Shares are for paper and for people: each has a text form with a checksum (`docs/formats.md`, "Shares"). Shamir's scheme by itself
//! gives a wrong secret for a wrong share and does not say so; so the secret's salted digest is kept with the set, and what does not
//! match it is refused.

mod combine;
mod digest;
mod text;
mod words;

#[cfg(test)]
mod decoder;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::RangeInclusive;

use thiserror::Error;
use vsss_rs::Gf256;
use zeroize::Zeroizing;

pub use self::combine::{CombineError, check_fit, combine};
pub use self::digest::SecretDigest;
pub use self::text::{Group, TextError};
pub use self::words::{Row, WordError};
use crate::random::Pool;

/// How many bytes a secret may have.
pub const SECRET_BYTES: RangeInclusive<usize> = 16..=64;

/// How many shares a set may have, and how many of them may be needed.
pub const SHARES: RangeInclusive<u8> = 2..=16;

/// The random name of a set: 32 bits, the same on all its shares. Written as 8 hex digits. Not secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SetId([u8; 4]);

/// One share. Wiped on drop, never printed but by [`Share::to_text`].
#[derive(Clone)]
pub struct Share {
    set: SetId,
    threshold: u8,
    number: u8,
    value: Zeroizing<Vec<u8>>,
}

/// A secret that was split.
#[derive(Clone, Debug)]
pub struct Set {
    /// The shares, numbered from 1.
    pub shares: Vec<Share>,
    /// What tells the secret from any other. Public: it belongs in the record.
    pub digest: SecretDigest,
}

/// Why a secret was not split. `E`: how the source of randomness fails.
#[derive(Debug, Error)]
pub enum SplitError<E> {
    /// The threshold, or the number of shares, is out of range.
    #[error("{threshold} of {shares} shares: a set has 2 to 16 shares, of which at least 2 and at most all are needed")]
    Counts {
        /// How many shall be needed.
        threshold: u8,
        /// How many shall be made.
        shares: u8,
    },
    /// The secret is too short or too long.
    #[error("a secret of {0} bytes: only 16 to 64 bytes can be split")]
    Length(usize),
    /// There is no randomness.
    #[error(transparent)]
    Randomness(#[from] E),
    /// The library for the scheme failed.
    #[error("the secret cannot be split: {0}")]
    Scheme(String),
}

/// Splits `secret` into `shares` shares, of which `threshold` give it back.
///
/// `random` fills a buffer with random bytes. The shares hide the secret only as well as these bytes are unpredictable, so they must be
/// as good as the secret itself.
pub fn split<E>(
    secret: &[u8],
    threshold: u8,
    shares: u8,
    mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Set, SplitError<E>> {
    if !SHARES.contains(&shares) || !SHARES.contains(&threshold) || threshold > shares {
        return Err(SplitError::Counts { threshold, shares });
    }
    if !SECRET_BYTES.contains(&secret.len()) {
        return Err(SplitError::Length(secret.len()));
    }
    let (mut set, mut salt) = ([0; 4], [0; 16]);
    random(&mut set)?;
    random(&mut salt)?;
    // The library takes a `u32` for each coefficient.
    let coefficients = secret.len().saturating_mul(usize::from(threshold.saturating_sub(1)));
    let mut pool = Pool::new(coefficients.saturating_mul(size_of::<u32>()));
    random(pool.bytes())?;

    let failed = |error: String| SplitError::Scheme(error);
    let made = Gf256::split_bytes(threshold.into(), shares.into(), secret, &mut pool);
    let made: Vec<_> = made.map_err(|error| failed(error.to_string()))?.into_iter().map(Zeroizing::new).collect();
    if pool.ran_out() {
        return Err(failed("it took more randomness than it needs".to_owned()));
    }
    let shares = made.iter().filter_map(|bytes| {
        let (number, value) = bytes.split_first()?;
        Some(Share { set: SetId(set), threshold, number: *number, value: Zeroizing::new(value.to_vec()) })
    });
    Ok(Set { shares: shares.collect(), digest: SecretDigest::new(salt, secret) })
}

impl Share {
    /// Name of the set.
    pub fn set(&self) -> SetId {
        self.set
    }

    /// How many shares of the set give the secret back.
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// Which share of the set it is, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The share as it stands on paper: in groups of four characters, blanks between them.
    pub fn to_text(&self) -> Zeroizing<String> {
        text::write(self)
    }

    /// Reads a share, with or without blanks, in upper or lower case.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        text::read(text)
    }

    /// Whether it is the very same share. In constant time.
    pub fn is(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        let same = self.set == other.set && self.threshold == other.threshold && self.number == other.number;
        same && bool::from(self.value.ct_eq(&other.value))
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Share({} of set {}, {} needed)", self.number, self.set, self.threshold)
    }
}
