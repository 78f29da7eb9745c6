//! What the attacker does outside of the token, with a key whose value is known.

use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding};

/// The value of the attacker's own key.
pub const OWN: [u8; 32] = [0x42; 32];

/// AES-256-CBC with an IV of zeros, unpadded.
pub fn cbc_encrypted(key: &[u8; 32], text: &[u8]) -> Vec<u8> {
    let cipher = cbc::Encryptor::<aes::Aes256>::new(key.into(), &[0; 16].into());
    cipher.encrypt_padded_vec_mut::<block_padding::NoPadding>(text)
}

pub fn cbc_decrypted(wrapped: &[u8]) -> Option<Vec<u8>> {
    let cipher = cbc::Decryptor::<aes::Aes256>::new(&OWN.into(), &[0; 16].into());
    cipher.decrypt_padded_vec_mut::<block_padding::NoPadding>(wrapped).ok()
}

pub fn cbc_pad_decrypted(wrapped: &[u8]) -> Option<Vec<u8>> {
    let cipher = cbc::Decryptor::<aes::Aes256>::new(&OWN.into(), &[0; 16].into());
    cipher.decrypt_padded_vec_mut::<block_padding::Pkcs7>(wrapped).ok()
}

/// Each block by itself.
pub fn ecb_decrypted(wrapped: &[u8]) -> Option<Vec<u8>> {
    let blocks = wrapped.chunks(16).map(cbc_decrypted);
    Some(blocks.collect::<Option<Vec<_>>>()?.concat())
}

pub fn kw_decrypted(wrapped: &[u8]) -> Option<Vec<u8>> {
    aes_kw::KekAes256::from(OWN).unwrap_vec(wrapped).ok()
}

/// RFC 5649, or PKCS#7 padding before RFC 3394: modules differ.
pub fn kwp_decrypted(wrapped: &[u8]) -> Option<Vec<u8>> {
    let kek = aes_kw::KekAes256::from(OWN);
    let padded = || kek.unwrap_vec(wrapped).ok().map(|value| value[..32.min(value.len())].to_vec());
    kek.unwrap_with_padding_vec(wrapped).ok().or_else(padded)
}
