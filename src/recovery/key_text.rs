//! The hybrid private key as text: bech32m (BIP 350), so that a slip of the pen or a cut line is noticed.

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, ByteIterExt, Fe32IterExt, Hrp};
use thiserror::Error;
use zeroize::Zeroizing;

use super::HybridKey;

/// Why a text is no private key. Never says more of it.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum KeyTextError {
    /// The checksum does not fit.
    #[error("the checksum does not fit: characters are wrong, missing or swapped")]
    Checksum,
    /// There is not one line that begins as a private key does.
    #[error("expected one line that begins with {PREFIX}, and beside it only lines that begin with #")]
    Line,
    /// The checksum fits, but this release made no such key.
    #[error("the text is whole, but it is no key of the format that this release knows")]
    Unknown,
}

impl HybridKey {
    /// The key's one line: `hkr1` and 60 characters.
    pub fn to_text(&self) -> Zeroizing<String> {
        // With room for all of it: a text that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(MOST_CHARACTERS));
        let bytes = [VERSION].into_iter().chain(*self.expose());
        text.extend(bytes.bytes_to_fes().with_checksum::<Bech32m>(&HRP).chars());
        text
    }

    /// Reads the file that [`HybridKey::to_text`] stands in; lines that begin with `#` are for people.
    pub fn parse(text: &str) -> Result<Self, KeyTextError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut lines = lines.fuse();
        let (Some(line), None) = (lines.next(), lines.next()) else { return Err(KeyTextError::Line) };
        if !line.starts_with(PREFIX) {
            return Err(KeyTextError::Line);
        }
        let checked = CheckedHrpstring::new::<Bech32m>(line).map_err(|_| KeyTextError::Checksum)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_CHARACTERS));
        bytes.extend(checked.byte_iter());
        let key = match bytes.split_first() {
            Some((&VERSION, key)) => Self::from_bytes(key.try_into().map_err(|_| KeyTextError::Unknown)?),
            _ => return Err(KeyTextError::Unknown),
        };
        // There is one text only.
        if *key.to_text() == *line { Ok(key) } else { Err(KeyTextError::Unknown) }
    }
}

/// Human-readable part: "hsm-kms recovery".
const HRP: Hrp = Hrp::parse_unchecked("hkr");
const PREFIX: &str = "hkr1";
const VERSION: u8 = 1;
const MOST_CHARACTERS: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = HybridKey::from_bytes(&[0xa5; 32]);
        let text = key.to_text();
        assert!(text.starts_with("hkr1") && text.len() < 80, "{}", text.len());
        let read = |text: &str| HybridKey::parse(text).map(|key| *key.expose());
        assert_eq!(read(&text), Ok([0xa5; 32]));
        assert_eq!(read(&format!("# kept in the safe\n{}\n", *text)), Ok([0xa5; 32]));
        for (wrong, error) in [
            (String::new(), KeyTextError::Line),
            (format!("{}\n{}", *text, *text), KeyTextError::Line),
            (text.replacen("hkr1", "hks1", 1), KeyTextError::Line),
            (text[..text.len() - 1].to_owned(), KeyTextError::Checksum),
            (text.to_uppercase().replacen("HKR1", "hkr1", 1), KeyTextError::Checksum),
        ] {
            assert_eq!(read(&wrong), Err(error), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_character_is_always_found(bytes: [u8; 32], place in 4_usize..70, other in "[!-~]") {
            let text = HybridKey::from_bytes(&bytes).to_text();
            prop_assert_eq!(HybridKey::parse(&text).map(|key| *key.expose()), Ok(bytes));
            let place = place.min(text.len() - 1);
            let changed = format!("{}{other}{}", &text[..place], &text[place + 1..]);
            prop_assert!(changed == *text || HybridKey::parse(&changed).is_err());
        }
    }
}
