//! Checks the test vectors of docs/formats.md, read from that very file, with an AES-GCM that is not the HSM's.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, KeyIvInit};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use super::{Annotations, Blob, Context, annotations};
use crate::key_id::KeyId;
use crate::seal::{Seal, SealForm};

const DOCUMENT: &str = include_str!("../../docs/formats.md");

#[test]
fn key_ids_are_as_written() {
    for vector in vectors("key_id", 3) {
        let epoch = vector.text("epoch").parse().unwrap();
        let made = KeyId::derive(vector.text("cluster"), &vector.bytes("cka_id"), vector.text("ceremony"), epoch);
        assert_eq!(made.as_str(), vector.text("key_id"));
        assert_eq!(KeyId::parse(vector.text("key_id")), Some(made));
    }
}

#[test]
fn annotation_hashes_are_as_written() {
    for vector in vectors("annotations", 3) {
        assert_eq!(annotations::hash(&vector.annotations()).to_vec(), vector.bytes("hash"));
        assert_eq!(annotations::check(&vector.annotations()), Ok(()));
    }
}

#[test]
fn seeds_are_sealed_as_written() {
    for vector in vectors("seed", 4) {
        let key_id = KeyId::parse(vector.text("key_id")).unwrap();
        let context = |form| Context::seed(form, vector.text("cluster"), &key_id, &vector.annotations());
        let plaintext = vector.plaintext();
        let blob = check_seal(&vector, context, &plaintext);
        match vector.find("blob") {
            Some(_) => assert_eq!(blob, vector.bytes("blob")),
            None => assert_eq!(Sha256::digest(&blob).to_vec(), vector.bytes("blob_sha256")),
        }
    }
}

#[test]
fn proofs_are_sealed_as_written() {
    for vector in vectors("proof", 1) {
        let context = |form| Context::proof(form, vector.text("ceremony"), &vector.bytes("cka_id"), []);
        let challenge = vector.bytes("challenge");
        assert_eq!(Sha256::digest(&challenge).to_vec(), vector.bytes("challenge_sha256"));
        assert_eq!(check_seal(&vector, context, &challenge), vector.bytes("blob"));
    }
}

#[test]
fn seeds_with_a_mac_open_as_written() {
    for vector in vectors("seed_cbc", 2) {
        let (bytes, context) = blob_of(&vector, Seal::AesCbcHmac);
        let blob = Blob::parse(&bytes).unwrap();
        assert_eq!(blob.iv(), vector.bytes("iv"));
        let (encrypted, mac) = blob.ciphertext().split_last_chunk::<32>().unwrap();
        let mut expected: Hmac<Sha256> = KeyInit::new_from_slice(&hex(blocks("mac_key")[0].trim())).unwrap();
        expected.update(&[&context, blob.iv(), encrypted].concat());
        assert_eq!(expected.finalize().into_bytes().as_slice(), mac);
        let cipher = cbc::Decryptor::<aes::Aes256>::new_from_slices(&kek_bytes(), blob.iv()).unwrap();
        assert_eq!(cipher.decrypt_padded_vec_mut::<Pkcs7>(encrypted).unwrap(), vector.plaintext());
    }
}

#[test]
fn wrapped_seeds_open_as_written() {
    for vector in vectors("seed_kwp", 2) {
        let (bytes, context) = blob_of(&vector, Seal::AesKwp);
        let kek = aes_kw::KekAes256::try_from(kek_bytes().as_slice()).unwrap();
        let bound = kek.unwrap_with_padding_vec(Blob::parse(&bytes).unwrap().ciphertext()).unwrap();
        assert_eq!(bound, [context, vector.plaintext()].concat());
    }
}

/// The blob of a vector and its context, made from what stands there.
fn blob_of(vector: &Vector, seal: Seal) -> (Vec<u8>, Vec<u8>) {
    let bytes = vector.bytes("blob");
    let form = Blob::parse(&bytes).unwrap().form();
    assert_eq!(form.seal, seal);
    let key_id = KeyId::parse(vector.text("key_id")).unwrap();
    let context = Context::seed(form, vector.text("cluster"), &key_id, &vector.annotations());
    assert_eq!(context.as_bytes().to_vec(), vector.bytes("context"));
    (bytes, context.as_bytes().to_vec())
}

/// Seals, opens again, and refuses every single-bit change of the blob and of the context.
fn check_seal(vector: &Vector, context_of: impl Fn(SealForm) -> Context, plaintext: &[u8]) -> Vec<u8> {
    let context = context_of(SealForm::AES_GCM_SENT);
    assert_eq!(context.as_bytes().to_vec(), vector.bytes("context"));
    let iv = vector.bytes("iv");
    let payload = Payload { msg: plaintext, aad: context.as_bytes() };
    let ciphertext = kek().encrypt(&Nonce::try_from(&iv[..]).unwrap(), payload).unwrap();
    let blob = Blob::new(SealForm::AES_GCM_SENT, &iv, &ciphertext).unwrap().encode();

    assert_eq!(open(&blob, context.as_bytes()).as_deref(), Some(plaintext));
    for bit in 0..blob.len() * 8 {
        let mut changed = blob.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // As the plugin does: the form comes from the blob, and counts in the context.
        let Ok(parsed) = Blob::parse(&changed) else { continue };
        assert_eq!(open(&changed, context_of(parsed.form()).as_bytes()), None);
    }
    for bit in 0..256 {
        let mut changed = *context.as_bytes();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(&blob, &changed), None);
    }
    blob
}

fn open(blob: &[u8], context: &[u8]) -> Option<Vec<u8>> {
    let blob = Blob::parse(blob).ok()?;
    let iv = Nonce::try_from(blob.iv()).ok()?;
    kek().decrypt(&iv, Payload { msg: blob.ciphertext(), aad: context }).ok()
}

fn kek() -> Aes256Gcm {
    Aes256Gcm::new_from_slice(&kek_bytes()).unwrap()
}

fn kek_bytes() -> Vec<u8> {
    hex(blocks("kek")[0].trim())
}

/// The fields of one fenced block, in order.
struct Vector(Vec<(&'static str, &'static str)>);

impl Vector {
    fn find(&self, name: &str) -> Option<&'static str> {
        self.0.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    fn text(&self, name: &str) -> &'static str {
        self.find(name).unwrap_or_else(|| panic!("no field {name}"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        hex(self.text(name))
    }

    fn plaintext(&self) -> Vec<u8> {
        let Some(repeated) = self.find("plaintext_repeated") else { return self.bytes("plaintext") };
        let (byte, count) = repeated.split_once(' ').unwrap();
        hex(byte).repeat(count.parse().unwrap())
    }

    fn annotations(&self) -> Annotations {
        let all = self.0.iter().filter(|(name, _)| *name == "annotation");
        all.map(|(_, text)| {
            let (key, value) = text.split_once(' ').unwrap_or((text, ""));
            (key.to_owned(), hex(value).into())
        })
        .collect()
    }
}

/// All vectors of a kind; the number must be known, so that none is lost unseen.
fn vectors(kind: &str, count: usize) -> Vec<Vector> {
    let parse = |block: &'static str| Vector(block.lines().map(|line| line.split_once(": ").unwrap()).collect());
    let all = blocks("vector").into_iter().map(parse);
    let found: Vec<_> = all.filter(|vector| vector.text("kind") == kind).collect();
    assert_eq!(found.len(), count, "vectors of kind {kind}");
    found
}

fn blocks(mark: &str) -> Vec<&'static str> {
    let fenced = DOCUMENT.split("```").skip(1).step_by(2);
    fenced
        .filter_map(|block| block.split_once('\n'))
        .filter(|(found, _)| *found == mark)
        .map(|(_, text)| text)
        .collect()
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}
