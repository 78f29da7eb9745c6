//! A digest in words that people can read to each other.

use crate::record::Sha256Digest;

/// Twelve words: the BIP-39 English mnemonic of the first 16 bytes. Half of the digest, and 4 bits that tell a misheard word.
/// To find another text with the same words takes 2^64 attempts, so the digest itself is what decides.
pub fn words(digest: &Sha256Digest) -> String {
    let half = digest.0.first_chunk::<16>().copied().unwrap_or_default();
    // 16 bytes are a length that BIP-39 has.
    bip39::Mnemonic::from_entropy(&half).map(|mnemonic| mnemonic.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_bip39() {
        // Test vectors of BIP-39 itself.
        let mut digest = [0x7f; 32];
        assert_eq!(
            words(&Sha256Digest(digest)),
            "legal winner thank year wave sausage worth useful legal winner thank yellow"
        );
        digest[16] = 0;
        assert!(words(&Sha256Digest(digest)).ends_with("yellow"));
        digest[..16].fill(0xff);
        assert_eq!(words(&Sha256Digest(digest)), "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong");
    }
}
