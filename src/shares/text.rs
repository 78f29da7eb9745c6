//! A share on paper: bech32m (BIP 350) of its bytes, in groups of four characters.

use std::fmt;

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, ByteIterExt, Fe32IterExt, Hrp};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{SECRET_BYTES, SHARES, SetId, Share};

/// Why a text is no share. Never says more of it than where to look.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TextError {
    /// A character that stands in no share.
    #[error("group {0} has a character that no share has: there are only digits but 1, and letters but b, i and o")]
    Character(Group),
    /// The checksum does not fit, and no single slip explains it.
    #[error("the checksum does not fit: more than one character is wrong, missing, added or swapped")]
    Checksum,
    /// It has no length that a share can have.
    #[error("a share has 47 to 124 characters without blanks, this text has {0}")]
    Length(usize),
    /// It does not begin as every share does.
    #[error("a share begins with {PREFIX}")]
    Prefix,
    /// The checksum does not fit; one slip in this group would explain it.
    #[error("the checksum does not fit: look at group {0}, where a character seems wrong, missing, added or swapped")]
    Slip(Group),
    /// The checksum fits, but this release made no such share.
    #[error("the text is whole, but it is no share of the format that this release knows")]
    Unknown,
}

/// Place of a group of four characters in a text, from 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Group(pub usize);

impl TextError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown => "read it with the release that made it, or a later one",
            _ => "compare with the paper, group by group",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Human-readable part: "hsm-kms share". With the separator it is one group.
const HRP: Hrp = Hrp::parse_unchecked("hks");
const PREFIX: &str = "hks1";
const VERSION: u8 = 1;
/// Bytes before the share's own: version, set, threshold, number.
const HEADER: usize = 7;
const GROUP: usize = 4;
/// Shortest and longest text, for secrets of 16 and 64 bytes.
const CHARACTERS: std::ops::RangeInclusive<usize> = 47..=124;
/// The 32 characters of bech32 (BIP 173).
const ALPHABET: &[u8] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

pub(super) fn write(share: &Share) -> Zeroizing<String> {
    let plain = encode(share);
    // With room for all of it: a text that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(plain.len().saturating_mul(2)));
    for (position, character) in plain.chars().enumerate() {
        if position > 0 && position.is_multiple_of(GROUP) {
            text.push(' ');
        }
        text.push(character);
    }
    text
}

fn encode(share: &Share) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(*CHARACTERS.end()));
    let header = [VERSION].into_iter().chain(share.set.0).chain([share.threshold, share.number]);
    let bytes = header.chain(share.value.iter().copied());
    text.extend(bytes.bytes_to_fes().with_checksum::<Bech32m>(&HRP).chars());
    text
}

pub(super) fn read(text: &str) -> Result<Share, TextError> {
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    plain.extend(text.chars().filter(|character| !character.is_whitespace()).map(|one| one.to_ascii_lowercase()));
    let Some(data) = plain.strip_prefix(PREFIX) else { return Err(TextError::Prefix) };
    let is_foreign = |character: char| !character.is_ascii() || !ALPHABET.contains(&(character as u8));
    if let Some(position) = data.chars().position(is_foreign) {
        return Err(TextError::Character(group(PREFIX.len().saturating_add(position))));
    }
    let checked = match CheckedHrpstring::new::<Bech32m>(&plain) {
        Ok(checked) => checked,
        Err(_) if !CHARACTERS.contains(&plain.len()) => return Err(TextError::Length(plain.len())),
        Err(_) => return Err(slip(&plain).map_or(TextError::Checksum, TextError::Slip)),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(plain.len()));
    bytes.extend(checked.byte_iter());
    let share = parts(&bytes).ok_or(TextError::Unknown)?;
    // There is one text only: the bits that fill up the last character are zero.
    if encode(&share) == plain { Ok(share) } else { Err(TextError::Unknown) }
}

fn parts(bytes: &[u8]) -> Option<Share> {
    let (&[version, a, b, c, d, threshold, number], value) = bytes.split_first_chunk::<HEADER>()?;
    let is_known = version == VERSION && SHARES.contains(&threshold) && (1..=*SHARES.end()).contains(&number);
    let fits = is_known && SECRET_BYTES.contains(&value.len());
    fits.then(|| Share { set: SetId([a, b, c, d]), threshold, number, value: Zeroizing::new(value.to_vec()) })
}

/// Whether the checksum fits.
pub(super) fn is_whole(plain: &str) -> bool {
    CheckedHrpstring::new::<Bech32m>(plain).is_ok()
}

fn group(position: usize) -> Group {
    Group((position / GROUP).saturating_add(1))
}

/// The group of the one slip that explains why the checksum does not fit: a wrong, swapped, added or missing character. The text is not
/// mended by it: whoever typed it compares it with the paper.
///
/// Every such slip is undone in turn. By chance something else fits once in about 200,000 texts.
fn slip(plain: &str) -> Option<Group> {
    let mut trial = Zeroizing::new(Vec::with_capacity(plain.len().saturating_add(1)));
    (PREFIX.len()..=plain.len()).find_map(|position| {
        let (before, rest) = plain.as_bytes().split_at_checked(position)?;
        let mut fits = |parts: &[&[u8]]| {
            trial.clear();
            for part in parts {
                trial.extend_from_slice(part);
            }
            std::str::from_utf8(&trial).is_ok_and(is_whole)
        };
        let after = rest.get(1..).unwrap_or_default();
        let swapped = matches!(rest, [first, second, after @ ..] if fits(&[before, &[*second, *first], after]));
        let found = swapped
            || (!rest.is_empty() && fits(&[before, after]))
            || ALPHABET.iter().any(|other| {
                fits(&[before, &[*other], rest]) || (!rest.is_empty() && fits(&[before, &[*other], after]))
            });
        found.then(|| group(position))
    })
}
