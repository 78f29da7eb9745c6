//! A share as words: 36 of BIP-39's English list, in six rows of six. For shares that are kept for years and typed in a bad hour: words
//! are read without a magnifying glass, and each row is checked by itself as soon as it is typed.

use std::fmt;

use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{SHARES, SetId, Share};
use crate::strict;

/// Six words of a share, whose own checksum fits. Wiped on drop, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Row([u16; Row::WORDS]);

/// Why words are no share. Of what was typed it repeats nothing: it names the place, and the word that stands nearest in the list.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum WordError {
    /// Each row fits, but all of them together do not: a row is of another share.
    #[error("each row fits by itself, but they are not the rows of one share")]
    Checksum,
    /// A row has too few words or too many.
    #[error("row {row} has {found} words, and must have 6: words {} to {}", first(*row), last(*row))]
    Count {
        /// Its number, from 1.
        row: usize,
        /// How many there are.
        found: usize,
    },
    /// A row does not fit, though all of its words are in the list.
    #[error("row {row} does not fit: one of the words {} to {} is wrong, or two of them are swapped", first(*row), last(*row))]
    Row {
        /// Its number, from 1.
        row: usize,
    },
    /// A text has too few words or too many.
    #[error("a share has 36 words, this text has {0}")]
    Total(usize),
    /// The checksums fit, but this release made no such share.
    #[error("the words are whole, but they are no share of the format that this release knows")]
    Unknown,
    /// A word that is not in the list.
    #[error("word {place} is none of the list{}", nearest.map_or_else(String::new, |word| format!("; the nearest is {word}")))]
    Word {
        /// Its place in the share, from 1.
        place: usize,
        /// The word of the list that it resembles, if there is one.
        nearest: Option<&'static str>,
    },
}

impl WordError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown => "read it with the release that made it, or a later one",
            Self::Checksum => "type all six rows from one sheet",
            _ => "compare with the sheet, word by word",
        }
    }
}

impl Row {
    /// Words of a row.
    pub const WORDS: usize = 6;
    /// Rows of a share.
    pub const COUNT: usize = 6;

    /// Reads the row with this number, from 1: six words with blanks between them, in upper or lower case.
    pub fn parse(row: usize, text: &str) -> Result<Self, WordError> {
        let typed: Vec<&str> = text.split_whitespace().collect();
        if typed.len() != Self::WORDS {
            return Err(WordError::Count { row, found: typed.len() });
        }
        let mut words = Self([0; Self::WORDS]);
        for ((word, place), typed) in words.0.iter_mut().zip(first(row)..).zip(typed) {
            *word = index(typed).map_err(|nearest| WordError::Word { place, nearest })?;
        }
        if remainder(row, &words.0) == 0 { Ok(words) } else { Err(WordError::Row { row }) }
    }

    /// Its words.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|word| list().get(usize::from(*word)).copied())
    }

    /// The row with this number that carries these five words.
    fn of(row: usize, carried: [u16; DATA_WORDS]) -> Self {
        let mut words = Self([0; Self::WORDS]);
        // Behind them, what makes the remainder zero.
        let check = times_x(remainder(row, &carried));
        words.0.iter_mut().zip(carried.into_iter().chain([check])).for_each(|(word, value)| *word = value);
        words
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Row(..)")
    }
}

impl Share {
    /// The share as rows of words. `None`: its secret has not 32 bytes.
    pub fn to_rows(&self) -> Option<[Row; Row::COUNT]> {
        let mut bits = Zeroizing::new(Vec::with_capacity(BITS));
        push(&mut bits, VERSION.into(), 4);
        push(&mut bits, u32::from(self.threshold).checked_sub(1)?, 4);
        push(&mut bits, u32::from(self.number).checked_sub(1)?, 4);
        push(&mut bits, u32::from_be_bytes(self.set.0), 32);
        if self.value.len() != VALUE_BYTES {
            return None;
        }
        self.value.iter().for_each(|byte| push(&mut bits, (*byte).into(), 8));
        push(&mut bits, self.words_checksum(), CHECKSUM_BITS);
        let carried = bits.chunks(WORD_BITS).map(|word| word.iter().fold(0, |sum, bit| sum << 1 | u16::from(*bit)));
        let carried = Zeroizing::new(carried.collect::<Vec<_>>());
        let (rows, rest) = carried.as_chunks::<DATA_WORDS>();
        let rows: Vec<_> = rows.iter().zip(1..).map(|(words, row)| Row::of(row, *words)).collect();
        if rest.is_empty() { rows.try_into().ok() } else { None }
    }

    /// The share of these rows.
    pub fn from_rows(rows: &[Row; Row::COUNT]) -> Result<Self, WordError> {
        let mut bits = Zeroizing::new(Vec::with_capacity(BITS));
        for word in rows.iter().flat_map(|row| row.0.iter().take(DATA_WORDS)) {
            push(&mut bits, (*word).into(), WORD_BITS);
        }
        let mut bits = bits.iter().copied();
        let mut take = |count: usize| bits.by_ref().take(count).fold(0_u32, |sum, bit| sum << 1 | u32::from(bit));
        let version = take(4);
        let [threshold, number] = [take(4), take(4)].map(|count| u8::try_from(count + 1).unwrap_or_default());
        let set = SetId(take(32).to_be_bytes());
        let mut value = Zeroizing::new(Vec::with_capacity(VALUE_BYTES));
        value.extend((0..VALUE_BYTES).map(|_| u8::try_from(take(8)).unwrap_or_default()));
        let checksum = take(CHECKSUM_BITS);
        if version != u32::from(VERSION) {
            return Err(WordError::Unknown);
        }
        let share = Self { set, threshold, number, value };
        if share.words_checksum() != checksum {
            return Err(WordError::Checksum);
        }
        if SHARES.contains(&threshold) { Ok(share) } else { Err(WordError::Unknown) }
    }

    /// Reads all words of a text. Numbers before words, and lines that begin with `#`, are for people.
    pub fn parse_words(text: &str) -> Result<Self, WordError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let is_number = |word: &&str| word.trim_end_matches(['.', ')', ':']).bytes().all(|byte| byte.is_ascii_digit());
        let words: Vec<&str> = lines.flat_map(str::split_whitespace).filter(|word| !is_number(word)).collect();
        if words.len() != Row::WORDS * Row::COUNT {
            return Err(WordError::Total(words.len()));
        }
        let rows = words.chunks(Row::WORDS).zip(1..).map(|(words, row)| {
            let mut line = Zeroizing::new(String::with_capacity(text.len()));
            for word in words {
                line.push_str(word);
                line.push(' ');
            }
            Row::parse(row, &line)
        });
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        Self::from_rows(&rows.try_into().map_err(|_| WordError::Total(words.len()))?)
    }

    /// The first bits of a SHA-256 over all that the words say.
    fn words_checksum(&self) -> u32 {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update([VERSION]);
        hash.update(self.set.0);
        hash.update([self.threshold, self.number]);
        hash.update(&*self.value);
        let digest = hash.finalize();
        let first = digest.first_chunk().copied().unwrap_or_default();
        u32::from_be_bytes(first) >> (32 - CHECKSUM_BITS)
    }
}

const VERSION: u8 = 1;
const DOMAIN: &str = "hsm-kms/share-words/v1";
const VALUE_BYTES: usize = 32;
/// Bits of a word: the list has 2048.
const WORD_BITS: usize = 11;
/// Words of a row that carry the share; the last one checks them.
const DATA_WORDS: usize = Row::WORDS - 1;
/// Bits that the words carry: 4 + 4 + 4 + 32 + 256 + 30.
const BITS: usize = Row::COUNT * DATA_WORDS * WORD_BITS;
const CHECKSUM_BITS: usize = 30;

/// Place in the share of a row's first word.
fn first(row: usize) -> usize {
    row.saturating_sub(1) * Row::WORDS + 1
}

fn last(row: usize) -> usize {
    row * Row::WORDS
}

/// The row's number and its words as the coefficients of a polynomial over GF(2^11), at the point x. Zero where a row fits. A wrong word,
/// two swapped ones, and a row in another's place always change it: no power of x from 1 to 5 is 1.
fn remainder(row: usize, words: &[u16]) -> u16 {
    let number = u16::try_from(row).unwrap_or_default();
    words.iter().fold(number, |sum, word| times_x(sum) ^ word)
}

/// Times x in GF(2^11), modulo x^11 + x^2 + 1.
fn times_x(element: u16) -> u16 {
    let doubled = element << 1;
    if doubled >> WORD_BITS == 0 { doubled } else { doubled ^ 0x805 }
}

/// The lowest bits of a number, the highest of them first.
fn push(bits: &mut Vec<bool>, number: u32, count: usize) {
    bits.extend((0..count).rev().map(|bit| number >> bit & 1 == 1));
}

fn list() -> &'static [&'static str; 2048] {
    bip39::Language::English.word_list()
}

/// Place of a word in the list, or else the word that it resembles.
fn index(typed: &str) -> Result<u16, Option<&'static str>> {
    let word = Zeroizing::new(typed.to_lowercase());
    let found = bip39::Language::English.find_word(&word);
    found.ok_or_else(|| strict::nearest(&word, list().iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(number: u8) -> Share {
        let value = (0..32).map(|byte: u8| byte.wrapping_mul(37).wrapping_add(number)).collect();
        Share { set: SetId([0xde, 0xad, 0xbe, 0xef]), threshold: 3, number, value: Zeroizing::new(value) }
    }

    fn words(share: &Share) -> Vec<&'static str> {
        share.to_rows().unwrap().iter().flat_map(Row::words).collect()
    }

    fn read(words: &[&str]) -> Result<u8, WordError> {
        Share::parse_words(&words.join(" ")).map(|share| share.number)
    }

    #[test]
    fn a_share_is_read_as_it_was_written() {
        for number in 1..=16 {
            let written = share(number);
            assert_eq!(words(&written).len(), 36);
            assert!(Share::parse_words(&words(&written).join(" ")).unwrap().is(&written));
        }
        let text = "# sheet 3\n1. ABANDON 2. ability\n";
        assert_eq!(Share::parse_words(text).unwrap_err(), WordError::Total(2));
        let numbered: Vec<_> = words(&share(2)).iter().zip(1..).map(|(word, at)| format!("{at}. {word}\n")).collect();
        assert_eq!(Share::parse_words(&numbered.concat().to_uppercase()).unwrap().number, 2);
        let short = Share { value: Zeroizing::new(vec![1; 31]), ..share(1) };
        assert!(short.to_rows().is_none());
    }

    #[test]
    fn every_wrong_word_is_found_and_its_row_named() {
        let right = words(&share(1));
        for place in 0..36 {
            let row = place / 6 + 1;
            for other in list().iter().filter(|other| **other != right[place]) {
                let mut wrong = right.clone();
                wrong[place] = other;
                assert_eq!(read(&wrong).unwrap_err(), WordError::Row { row }, "{place} {other}");
            }
        }
    }

    #[test]
    fn every_two_swapped_words_and_rows_are_found() {
        let right = words(&share(1));
        for one in 0..36 {
            for other in one + 1..36 {
                let mut wrong = right.clone();
                wrong.swap(one, other);
                let same = right[one] == right[other];
                assert!(same || matches!(read(&wrong).unwrap_err(), WordError::Row { .. }), "{one} {other}");
            }
        }
        for one in 0..6 {
            for other in one + 1..6 {
                let mut wrong = right.clone();
                (0..6).for_each(|word| wrong.swap(one * 6 + word, other * 6 + word));
                assert_eq!(read(&wrong).unwrap_err(), WordError::Row { row: one + 1 });
            }
        }
    }

    #[test]
    fn rows_of_two_shares_are_no_share() {
        let (one, other) = (words(&share(1)), words(&share(2)));
        for row in 0..6 {
            let mut mixed = one.clone();
            mixed[row * 6..row * 6 + 6].copy_from_slice(&other[row * 6..row * 6 + 6]);
            assert!(mixed == one || read(&mixed).unwrap_err() == WordError::Checksum, "{row}");
        }
    }

    #[test]
    fn a_word_that_is_none_is_named_by_its_place_and_nearest() {
        let right = words(&share(1));
        for (place, typed, nearest) in [
            (0, "abandn", Some("abandon")),
            (7, "zooo", Some("zoo")),
            (35, "accout", Some("account")),
            (20, "qqqqqqqqqq", None),
        ] {
            let mut wrong = right.clone();
            wrong[place] = typed;
            let error = read(&wrong).unwrap_err();
            assert_eq!(error, WordError::Word { place: place + 1, nearest });
            assert!(!error.to_string().contains(typed) || nearest.is_none_or(|word| word.contains(typed)), "{error}");
        }
        assert_eq!(Row::parse(2, "abandon").unwrap_err(), WordError::Count { row: 2, found: 1 });
        assert_eq!(read(&right[1..]).unwrap_err(), WordError::Total(35));
    }

    #[test]
    fn a_later_version_is_told_from_a_slip() {
        let mut bits = Vec::new();
        push(&mut bits, 2, 4);
        bits.resize(BITS, false);
        let carried: Vec<u16> =
            bits.chunks(WORD_BITS).map(|word| word.iter().fold(0, |sum, bit| sum << 1 | u16::from(*bit))).collect();
        let rows = carried.as_chunks::<DATA_WORDS>().0.iter().zip(1..).map(|(words, row)| Row::of(row, *words));
        let rows: [Row; 6] = rows.collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(Share::from_rows(&rows).unwrap_err(), WordError::Unknown);
    }
}
