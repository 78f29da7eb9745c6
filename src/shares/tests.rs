//! Splitting, combining, the text form, and the vectors of the document.

use std::convert::Infallible;

use proptest::prelude::*;

use super::decoder::{self, decode};
use super::text::is_whole;
use super::{CombineError, Group, SecretDigest, Set, Share, SplitError, TextError, combine, split};

const DOCUMENT: &str = include_str!("../../docs/formats.md");
const ALPHABET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const SECRET: [u8; 32] = *b"0123456789abcdef0123456789ABCDEF";

#[test]
fn any_m_of_n_give_the_secret_back_and_fewer_do_not() {
    for (threshold, count) in (2..=7).flat_map(|count| (2..=count).map(move |threshold| (threshold, count))) {
        let set = set(&SECRET, threshold, count);
        for subset in subsets(&set.shares) {
            let given = u8::try_from(subset.len()).unwrap();
            let combined = combine(&subset, |secret| set.digest.is_of(secret));
            if given < threshold {
                let expected = if given == 0 { 2 } else { threshold };
                assert_eq!(combined.unwrap_err(), CombineError::TooFew { given, threshold: expected });
            } else {
                assert_eq!(combined.unwrap().as_slice(), SECRET);
            }
        }
    }
}

#[test]
fn the_order_of_the_shares_does_not_matter_and_neither_does_the_length_of_the_secret() {
    for length in 16..=64 {
        let secret = vec![0xa5; length];
        let mut set = set(&secret, 3, 16);
        set.shares.reverse();
        assert_eq!(combine(&set.shares[4..7], |secret| set.digest.is_of(secret)).unwrap().as_slice(), secret);
        assert_eq!(combine(&set.shares, |secret| set.digest.is_of(secret)).unwrap().as_slice(), secret);
    }
}

#[test]
fn what_cannot_be_split_is_refused() {
    for (threshold, count) in [(1, 2), (0, 0), (3, 2), (2, 17), (17, 17), (2, 1), (255, 255)] {
        assert!(matches!(try_split(&SECRET, threshold, count), Err(SplitError::Counts { .. })));
    }
    for length in [0, 15, 65] {
        assert!(matches!(try_split(&vec![1; length], 2, 3), Err(SplitError::Length(_))));
    }
    let no_randomness = split(&SECRET, 2, 3, |_| Err("none"));
    assert!(matches!(no_randomness, Err(SplitError::Randomness("none"))));
}

#[test]
fn shares_that_do_not_belong_together_are_refused() {
    let (ours, theirs) = (set(&SECRET, 2, 3), set_with(&[9; 32], 2, 3, 99));
    let [first, second, third] = <[Share; 3]>::try_from(ours.shares.clone()).unwrap();
    let combined = |shares: &[&Share]| {
        combine(&shares.iter().map(|share| (*share).clone()).collect::<Vec<_>>(), |secret| ours.digest.is_of(secret))
            .unwrap_err()
    };
    assert_eq!(combined(&[&first, &second, &first]), CombineError::Twice { number: 1 });
    let other = CombineError::OtherSet { number: 2, found: theirs.shares[0].set(), expected: first.set() };
    assert_eq!(combined(&[&first, &theirs.shares[1]]), other);
    let asks_for_more = Share { threshold: 3, ..second.clone() };
    let other = CombineError::OtherThreshold { number: 2, found: 3, expected: 2 };
    assert_eq!(combined(&[&first, &asks_for_more]), other);
    let longer = Share { value: vec![0; 33].into(), ..second.clone() };
    assert_eq!(combined(&[&first, &longer]), CombineError::OtherLength { number: 2 });
    assert_eq!(combine(&ours.shares, |secret| theirs.digest.is_of(secret)).unwrap_err(), CombineError::NotTheSecret);
    // Each single changed bit of a share, also of one more than needed.
    for bit in 0..256 {
        let mut forged = second.clone();
        forged.value[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(combined(&[&first, &forged]), CombineError::NotTheSecret);
        assert_eq!(combined(&[&first, &third, &forged]), CombineError::NotTheSecret);
    }
    // A lowered threshold does not lower it.
    let set = set(&SECRET, 3, 3);
    let lowered: Vec<_> = set.shares.iter().take(2).map(|share| Share { threshold: 2, ..share.clone() }).collect();
    assert_eq!(combine(&lowered, |secret| set.digest.is_of(secret)).unwrap_err(), CombineError::NotTheSecret);
}

/// The leading coefficient counts too: a library that never lets it be zero gives shares that exclude one value of the secret.
#[test]
fn fewer_shares_than_needed_are_evenly_distributed() {
    const SPLITS: u64 = 1_000_000 / 64;
    // One share of two, and both of the shares that do not suffice for three: every pair of values is as frequent.
    let (mut single, mut pairs) = (vec![0_u32; 256], vec![0_u32; 256 * 256]);
    for seed in 0..SPLITS {
        let set = set_with(&[0x5a; 64], 2, 2, seed);
        set.shares[0].value.iter().for_each(|byte| single[usize::from(*byte)] += 1);
        let set = set_with(&[0x5a; 64], 3, 3, seed);
        for (first, second) in set.shares[0].value.iter().zip(set.shares[2].value.iter()) {
            pairs[usize::from(*first) << 8 | usize::from(*second)] += 1;
        }
    }
    // p > 0.01. The randomness is the same in every run, so it is no matter of luck.
    for counts in [single, pairs] {
        let (chi_square, freedom) = (chi_square(&counts), bins(&counts) - 1.0);
        // Wilson and Hilferty: the cube root is close to normal, and 2.326 is its 99th percentile.
        let deviation = (2.0 / (9.0 * freedom)).sqrt();
        let normal = ((chi_square / freedom).cbrt() - (1.0 - 2.0 / (9.0 * freedom))) / deviation;
        assert!(normal.abs() < 2.326, "{normal} for {freedom} degrees of freedom");
    }
}

#[test]
fn a_share_is_read_as_it_was_written_in_either_case_and_with_any_blanks() {
    for length in 16..=64 {
        for share in set(&vec![7; length], 2, 16).shares {
            let text = share.to_text();
            assert!(text.split(' ').rev().skip(1).all(|group| group.len() == 4), "{}", *text);
            let plain = text.replace(' ', "");
            for variant in [text.to_string(), text.to_uppercase(), plain.clone(), format!("\t{plain} \r\n")] {
                assert!(Share::parse(&variant).unwrap().is(&share));
            }
        }
    }
}

#[test]
fn every_single_slip_is_found() {
    for text in [16, 32, 64].map(plain) {
        for position in 0..text.len() {
            let (before, rest) = text.split_at(position);
            let (this, after) = rest.split_at(1);
            assert!(!is_whole(&format!("{before}{after}")));
            for other in ALPHABET.chars().filter(|other| !this.contains(*other)) {
                assert!(!is_whole(&format!("{before}{other}{after}")));
            }
            for added in ALPHABET.chars() {
                assert!(!is_whole(&format!("{before}{added}{rest}")));
            }
            let swapped = swapped(&text, position);
            assert!(swapped == text || !is_whole(&swapped));
        }
    }
}

#[test]
fn a_slip_is_shown_in_its_group() {
    // Not the shortest: with a character less, that one has no length of a share.
    for text in [17, 24].map(plain) {
        for position in 4..text.len() {
            let (before, rest) = text.split_at(position);
            let (this, after) = rest.split_at(1);
            let group = Group(position / 4 + 1);
            let error = |changed: &str| Share::parse(changed).unwrap_err();
            for foreign in ["1", "b", "I", "o", "-", "\u{e9}"] {
                assert_eq!(error(&format!("{before}{foreign}{after}")), TextError::Character(group));
            }
            let other = ALPHABET.chars().find(|other| !this.contains(*other)).unwrap();
            assert_eq!(error(&format!("{before}{other}{after}")), TextError::Slip(group));
            let swapped = swapped(&text, position);
            assert!(swapped == text || error(&swapped) == TextError::Slip(group));
            // Of several in a row, any may be the one too many or too few: the first is shown.
            let first = Group((text[..position].trim_end_matches(this).len()) / 4 + 1);
            assert_eq!(error(&format!("{before}{this}{rest}")), TextError::Slip(first));
            assert_eq!(error(&format!("{before}{after}")), TextError::Slip(first));
        }
        for position in 0..4 {
            assert_eq!(Share::parse(&swapped(&text, position)).unwrap_err(), TextError::Prefix);
        }
    }
}

#[test]
fn several_slips_are_found_but_not_placed() {
    let text = plain(32);
    let changed = format!("{}{}{}", &text[..10], ALPHABET, &text[42..]);
    assert_eq!(Share::parse(&changed).unwrap_err(), TextError::Checksum);
}

#[test]
fn what_is_whole_but_no_share_is_refused() {
    let share = &set(&SECRET, 2, 2).shares[0];
    for wrong in [
        Share { threshold: 1, ..share.clone() },
        Share { threshold: 17, ..share.clone() },
        Share { number: 0, ..share.clone() },
        Share { number: 17, ..share.clone() },
        Share { value: vec![0; 15].into(), ..share.clone() },
        Share { value: vec![0; 65].into(), ..share.clone() },
    ] {
        assert_eq!(Share::parse(&wrong.to_text()).unwrap_err(), TextError::Unknown);
    }
    // bech32, not bech32m; and version 2.
    let hrp = bech32::Hrp::parse("hks").unwrap();
    let mut bytes = [&[1, 9, 9, 9, 9, 2, 1][..], &SECRET].concat();
    let older = bech32::encode::<bech32::Bech32>(hrp, &bytes).unwrap();
    assert!(Share::parse(&older).is_err());
    bytes[0] = 2;
    let newer = bech32::encode::<bech32::Bech32m>(hrp, &bytes).unwrap();
    assert_eq!(Share::parse(&newer).unwrap_err(), TextError::Unknown);
    assert_eq!(Share::parse("").unwrap_err(), TextError::Prefix);
    assert_eq!(Share::parse("hks1").unwrap_err(), TextError::Length(4));
}

#[test]
fn nothing_of_a_share_is_printed_by_accident() {
    let share = &set(&SECRET, 2, 2).shares[0];
    assert_eq!(format!("{share:?}"), format!("Share(1 of set {}, 2 needed)", share.set()));
}

#[test]
fn shares_are_as_the_document_says() {
    let blocks = DOCUMENT.split("```vector\nkind: shares\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut count = 0;
    for block in blocks {
        count += 1;
        let all = |name: &str| {
            let fields = block.lines().map(|line| line.split_once(": ").unwrap());
            fields.filter(|(found, _)| *found == name).map(|(_, value)| value).collect::<Vec<_>>()
        };
        let secret = data_encoding::HEXLOWER.decode(all("secret")[0].as_bytes()).unwrap();
        let digest: SecretDigest = all("digest")[0].parse().unwrap();
        let texts = all("share");
        let shares: Vec<Share> = texts.iter().map(|text| Share::parse(text).unwrap()).collect();
        for (share, text) in shares.iter().zip(&texts) {
            assert_eq!(share.to_text().as_str(), *text);
            assert_eq!(share.set().to_string(), all("set")[0]);
            assert_eq!(share.threshold().to_string(), all("threshold")[0]);
        }
        for subset in subsets(&shares) {
            match combine(&subset, |secret| digest.is_of(secret)) {
                Ok(found) => assert_eq!(found.as_slice(), secret),
                Err(error) => assert!(matches!(error, CombineError::TooFew { .. })),
            }
        }
    }
    assert_eq!(count, 3, "vectors of shares");
}

#[test]
fn words_are_as_the_document_says() {
    let blocks = DOCUMENT.split("```vector\nkind: share-words\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut count = 0;
    for block in blocks {
        let all = |name: &str| {
            let fields = block.lines().map(|line| line.split_once(": ").unwrap());
            fields.filter(|(found, _)| *found == name).map(|(_, value)| value).collect::<Vec<_>>()
        };
        let (share, words) = (Share::parse(all("share")[0]).unwrap(), all("row"));
        let written: Vec<_> =
            share.to_rows().unwrap().iter().map(|row| row.words().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(written, words);
        assert!(Share::parse_words(&words.join("\n")).unwrap().is(&share));
        count += 1;
    }
    assert_eq!(count, 3, "vectors of words");
}

#[test]
fn a_second_reader_opens_our_shares() {
    for (threshold, count) in [(2, 2), (3, 5), (16, 16)] {
        let set = set(&SECRET, threshold, count);
        let decoded: Vec<_> = set.shares.iter().map(|share| decode(&share.to_text())).collect();
        for (decoded, share) in decoded.iter().zip(&set.shares) {
            assert_eq!((decoded.set, decoded.threshold, decoded.number), (share.set.0, threshold, share.number));
        }
        assert_eq!(decoder::secret(&decoded[..threshold.into()]), SECRET);
    }
}

#[test]
fn a_digest_is_read_as_it_was_written_and_in_no_other_form() {
    let digest = set(&SECRET, 2, 2).digest;
    let text = digest.to_string();
    assert_eq!(text.parse(), Ok(digest));
    assert!(digest.is_of(&SECRET) && !digest.is_of(&SECRET[1..]));
    assert_eq!(serde_json::from_str::<SecretDigest>(&serde_json::to_string(&digest).unwrap()).unwrap(), digest);
    for wrong in [text.to_uppercase(), text.replace(':', ""), text[2..].to_owned(), format!("{text}00"), String::new()]
    {
        assert!(wrong.parse::<SecretDigest>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*", tail in "[ a-zA-Z0-9]{0,200}") {
        let _ = Share::parse(&text);
        let _ = Share::parse(&format!("hks1{tail}"));
        let _ = Share::parse(&format!("HKS1{text}"));
        let _ = text.parse::<SecretDigest>();
    }

    #[test]
    fn what_is_whole_is_read_to_the_same_text_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
        let hrp = bech32::Hrp::parse("hks").unwrap();
        let text = bech32::encode::<bech32::Bech32m>(hrp, &bytes).unwrap();
        if let Ok(share) = Share::parse(&text) {
            prop_assert_eq!(share.to_text().replace(' ', ""), text);
        }
    }

    #[test]
    fn what_was_split_is_combined(secret in proptest::collection::vec(any::<u8>(), 16..=64), seed: u64, m in 2..=16_u8, more in 0..=14_u8) {
        let set = set_with(&secret, m, (m + more).min(16), seed);
        let combined = combine(&set.shares[set.shares.len() - usize::from(m)..], |secret| set.digest.is_of(secret));
        prop_assert_eq!(combined.unwrap().to_vec(), secret);
    }
}

/// A share of a secret of so many bytes, without blanks.
fn plain(length: usize) -> String {
    set(&vec![0xc3; length], 3, 4).shares[2].to_text().replace(' ', "")
}

/// The text with this character and the next one changing places.
fn swapped(text: &str, position: usize) -> String {
    let mut text: Vec<char> = text.chars().collect();
    let next = (position + 1).min(text.len() - 1);
    text.swap(position, next);
    text.into_iter().collect()
}

fn set(secret: &[u8], threshold: u8, count: u8) -> Set {
    set_with(secret, threshold, count, 1)
}

fn set_with(secret: &[u8], threshold: u8, count: u8, seed: u64) -> Set {
    split(secret, threshold, count, splitmix(seed << 32)).unwrap()
}

fn try_split(secret: &[u8], threshold: u8, count: u8) -> Result<Set, SplitError<Infallible>> {
    split(secret, threshold, count, splitmix(1))
}

/// `SplitMix64`: even enough for counting, and the same in every run.
fn splitmix(mut state: u64) -> impl FnMut(&mut [u8]) -> Result<(), Infallible> {
    move |buffer| {
        for chunk in buffer.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

fn subsets(shares: &[Share]) -> impl Iterator<Item = Vec<Share>> {
    (0..1_u32 << shares.len()).map(|chosen| {
        let is_chosen = |position: &usize| chosen >> position & 1 == 1;
        (0..shares.len()).filter(is_chosen).map(|position| shares[position].clone()).collect()
    })
}

fn chi_square(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / bins(counts);
    counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
}

fn bins(counts: &[u32]) -> f64 {
    u32::try_from(counts.len()).unwrap().into()
}
