//! The secure channel of a session: Global Platform's SCP03 with AES-128, as the YubiHSM 2 uses it.

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use cmac::{Cmac, Mac};
use sha2::Sha256;

/// Bytes of a MAC and of a cryptogram on the wire.
pub const MAC_LENGTH: usize = 8;
pub const CHALLENGE_LENGTH: usize = 8;

type Block = [u8; 16];

/// What an authentication key is: made of its password.
#[derive(Clone, Copy)]
pub struct StaticKeys {
    encryption: Block,
    mac: Block,
}

impl StaticKeys {
    /// Bytes of both keys together.
    pub const LENGTH: usize = 32;

    /// The keys of a password, by the salt and count that libyubihsm has.
    pub fn bytes_of_password(password: &[u8]) -> [u8; Self::LENGTH] {
        pbkdf2::pbkdf2_hmac_array::<Sha256, { Self::LENGTH }>(password, b"Yubico", 10_000)
    }

    pub fn new(bytes: &[u8]) -> Option<Self> {
        let (encryption, mac) = bytes.split_first_chunk()?;
        Some(Self { encryption: *encryption, mac: mac.try_into().ok()? })
    }
}

/// One side of the channel: the device's.
pub struct Channel {
    encryption: Block,
    mac: Block,
    answer_mac: Block,
    context: Block,
    /// The whole MAC of the last command.
    chain: Block,
    counter: u128,
}

impl Channel {
    pub fn new(keys: &StaticKeys, host: [u8; CHALLENGE_LENGTH], card: [u8; CHALLENGE_LENGTH]) -> Self {
        let mut context = Block::default();
        context[..CHALLENGE_LENGTH].copy_from_slice(&host);
        context[CHALLENGE_LENGTH..].copy_from_slice(&card);
        Self {
            encryption: derive(&keys.encryption, 0x04, 128, &context),
            mac: derive(&keys.mac, 0x06, 128, &context),
            answer_mac: derive(&keys.mac, 0x07, 128, &context),
            context,
            chain: Block::default(),
            counter: 1,
        }
    }

    pub fn card_cryptogram(&self) -> [u8; MAC_LENGTH] {
        first_half(derive(&self.mac, 0x00, 64, &self.context))
    }

    pub fn host_cryptogram(&self) -> [u8; MAC_LENGTH] {
        first_half(derive(&self.mac, 0x01, 64, &self.context))
    }

    /// Checks the MAC at the end of a command's message; the next one continues from it.
    pub fn accept(&mut self, message: &[u8]) -> bool {
        let Some((text, mac)) = message.split_last_chunk::<MAC_LENGTH>() else { return false };
        let whole = cmac(&self.mac, &[&self.chain, text]);
        let good = first_half(whole) == *mac;
        if good {
            self.chain = whole;
        }
        good
    }

    /// The MAC of an answer, which continues from the command's.
    pub fn answer_mac(&self, text: &[u8]) -> [u8; MAC_LENGTH] {
        first_half(cmac(&self.answer_mac, &[&self.chain, text]))
    }

    /// Decrypts a command.
    pub fn decrypt(&self, ciphertext: &[u8]) -> Option<Vec<u8>> {
        if !ciphertext.len().is_multiple_of(16) {
            return None;
        }
        let cipher = Aes128::new(&self.encryption.into());
        let mut text = cbc_decrypt(&cipher, self.initial_vector(&cipher), ciphertext);
        let end = text.iter().rposition(|byte| *byte != 0).filter(|end| text[*end] == 0x80)?;
        text.truncate(end);
        Some(text)
    }

    /// Encrypts the answer to it, and goes on to the next.
    pub fn encrypt(&mut self, text: &[u8]) -> Vec<u8> {
        let mut padded = [text, &[0x80]].concat();
        padded.resize(padded.len().next_multiple_of(16), 0);
        let cipher = Aes128::new(&self.encryption.into());
        let ciphertext = cbc_encrypt(&cipher, self.initial_vector(&cipher), &padded);
        self.counter += 1;
        ciphertext
    }

    fn initial_vector(&self, cipher: &Aes128) -> Block {
        let mut block = self.counter.to_be_bytes().into();
        cipher.encrypt_block(&mut block);
        block.into()
    }
}

/// CBC of whole blocks; a part of a block at the end is left out.
pub fn cbc_encrypt(
    cipher: &impl BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>,
    mut last: Block,
    text: &[u8],
) -> Vec<u8> {
    let (blocks, _) = text.as_chunks::<16>();
    let encrypted = blocks.iter().flat_map(|block| {
        last.iter_mut().zip(block).for_each(|(byte, text)| *byte ^= text);
        let mut block = last.into();
        cipher.encrypt_block(&mut block);
        last = block.into();
        last
    });
    encrypted.collect()
}

/// The inverse of [`cbc_encrypt`].
pub fn cbc_decrypt(
    cipher: &impl BlockCipherDecrypt<BlockSize = aes::cipher::consts::U16>,
    mut last: Block,
    text: &[u8],
) -> Vec<u8> {
    let (blocks, _) = text.as_chunks::<16>();
    let decrypted = blocks.iter().flat_map(|block| {
        let mut plain = (*block).into();
        cipher.decrypt_block(&mut plain);
        plain.iter_mut().zip(last).for_each(|(byte, last)| *byte ^= last);
        last = *block;
        Block::from(plain)
    });
    decrypted.collect()
}

/// NIST SP 800-108 in counter mode, with CMAC, for results of one block; shorter ones are its first bytes.
fn derive(key: &Block, constant: u8, bits: u16, context: &Block) -> Block {
    let [high, low] = bits.to_be_bytes();
    let label = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, constant, 0, high, low, 1];
    cmac(key, &[&label, context])
}

fn cmac(key: &Block, parts: &[&[u8]]) -> Block {
    let mut mac = Cmac::<Aes128>::new(&(*key).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn first_half(block: Block) -> [u8; MAC_LENGTH] {
    let [half, _] = *block.as_chunks::<MAC_LENGTH>().0 else { unreachable!("a block has two halves") };
    half
}
