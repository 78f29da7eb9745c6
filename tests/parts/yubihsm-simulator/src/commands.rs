//! The commands of a session.

use aes::cipher::consts::{U13, U16};
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use ccm::Ccm;
use ccm::aead::Aead;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use crate::device::random;
use crate::scp03::{cbc_decrypt, cbc_encrypt};
use crate::store::{GENERATED, IMPORTED, LABEL_LENGTH, Object, Store, kind};
use crate::wire::{Fields, Refusal, command};

type Answer = Result<Vec<u8>, Refusal>;

/// Does a command.
pub fn run(store: &mut Store, command: u8, data: &[u8]) -> Answer {
    let fields = Fields(data);
    match command {
        command::ECHO => Ok(data.to_vec()),
        command::GET_DEVICE_INFO => device_info(data),
        command::CLOSE_SESSION => Ok(Vec::new()),
        command::GET_STORAGE_INFO => Ok(storage_info(store)),
        command::LIST_OBJECTS => list_objects(store, fields),
        command::GET_OBJECT_INFO => object_info(store, fields),
        command::DELETE_OBJECT => delete_object(store, fields),
        command::GET_PSEUDO_RANDOM => pseudo_random(fields),
        command::PUT_OPAQUE => put(store, kind::OPAQUE, fields),
        command::GET_OPAQUE => get_opaque(store, fields),
        command::PUT_HMAC_KEY => put(store, kind::HMAC_KEY, fields),
        command::GENERATE_HMAC_KEY => generate(store, kind::HMAC_KEY, fields),
        command::SIGN_HMAC => sign_hmac(store, fields),
        command::VERIFY_HMAC => verify_hmac(store, fields),
        command::PUT_WRAP_KEY => put(store, kind::WRAP_KEY, fields),
        command::GENERATE_WRAP_KEY => generate(store, kind::WRAP_KEY, fields),
        command::WRAP_DATA => wrap_data(store, fields),
        command::UNWRAP_DATA => unwrap_data(store, fields),
        command::PUT_SYMMETRIC_KEY => put(store, kind::SYMMETRIC_KEY, fields),
        command::GENERATE_SYMMETRIC_KEY => generate(store, kind::SYMMETRIC_KEY, fields),
        command::ENCRYPT_ECB | command::DECRYPT_ECB | command::ENCRYPT_CBC | command::DECRYPT_CBC => {
            block_cipher(store, command, fields)
        }
        _ => Err(Refusal::INVALID_COMMAND),
    }
}

// --- The device ------------------------------------------------------------

/// Firmware 2.4.1, which has all algorithms up to AES-KWP.
pub fn device_info(data: &[u8]) -> Answer {
    if !data.is_empty() {
        return Err(Refusal::INVALID_DATA); // further pages, which this firmware does not have
    }
    let (version, serial, log) = ([2, 4, 1], 12_345_678_u32.to_be_bytes(), [62, 0]);
    Ok([&version[..], &serial, &log, &(1..=55).collect::<Vec<u8>>()].concat())
}

fn storage_info(store: &Store) -> Vec<u8> {
    let records = 256 - u16::try_from(store.objects().len()).unwrap_or(256).min(256);
    [256, records, 1024, 1000, 126].into_iter().flat_map(u16::to_be_bytes).collect()
}

fn pseudo_random(mut fields: Fields) -> Answer {
    let length = fields.u16()?;
    fields.end()?;
    let mut bytes = vec![0; length.min(2048).into()];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::STORAGE_FAILED)?;
    Ok(bytes)
}

// --- Objects ---------------------------------------------------------------

/// Objects that all filters fit: tag, then a value of the tag's length.
fn list_objects(store: &Store, mut fields: Fields) -> Answer {
    let mut found: Vec<&Object> = store.objects().iter().collect();
    while !fields.is_empty() {
        match fields.u8()? {
            1 => found.retain(with(fields.u16()?, |object, id| object.id == *id)),
            2 => found.retain(with(fields.u8()?, |object, kind| object.kind == *kind)),
            3 => found.retain(with(fields.u16()?, |object, domains| object.domains & domains != 0)),
            4 => found.retain(with(fields.u64()?, |object, bits| object.capabilities & bits != 0)),
            5 => found.retain(with(fields.u8()?, |object, algorithm| object.algorithm == *algorithm)),
            6 => found.retain(with(fields.array::<LABEL_LENGTH>()?, |object, label| object.label == label)),
            _ => return Err(Refusal::INVALID_DATA),
        }
    }
    let entry = |object: &&Object| [&object.id.to_be_bytes()[..], &[object.kind, object.sequence]].concat();
    Ok(found.iter().flat_map(entry).collect())
}

fn with<T>(value: T, fits: impl Fn(&Object, &T) -> bool) -> impl FnMut(&&Object) -> bool {
    move |object| fits(object, &value)
}

fn object_info(store: &Store, mut fields: Fields) -> Answer {
    let (id, kind) = (fields.u16()?, fields.u8()?);
    fields.end()?;
    let object = store.get(id, kind)?;
    // The device counts an authentication or wrap key's delegated capabilities, too.
    let delegated = if matches!(kind, kind::AUTHENTICATION_KEY | kind::WRAP_KEY) { 8 } else { 0 };
    let length = u16::try_from(object.value.len() + delegated).map_err(|_| Refusal::STORAGE_FAILED)?;
    Ok([
        &object.capabilities.to_be_bytes()[..],
        &object.id.to_be_bytes(),
        &length.to_be_bytes(),
        &object.domains.to_be_bytes(),
        &[object.kind, object.algorithm, object.sequence, object.origin],
        &object.label,
        &object.delegated.to_be_bytes(),
    ]
    .concat())
}

fn delete_object(store: &mut Store, mut fields: Fields) -> Answer {
    let (id, kind) = (fields.u16()?, fields.u8()?);
    fields.end()?;
    store.delete(id, kind)?;
    Ok(Vec::new())
}

fn get_opaque(store: &Store, mut fields: Fields) -> Answer {
    let id = fields.u16()?;
    fields.end()?;
    Ok(store.get(id, kind::OPAQUE)?.value.clone())
}

fn put(store: &mut Store, kind: u8, mut fields: Fields) -> Answer {
    let mut object = new_object(kind, IMPORTED, &mut fields)?;
    object.value = fields.rest().to_vec();
    let fits = match key_length(kind, object.algorithm)? {
        None => true,
        Some(longest) if kind == kind::HMAC_KEY => (1..=longest).contains(&object.value.len()),
        Some(length) => object.value.len() == length,
    };
    if !fits {
        return Err(Refusal::WRONG_LENGTH);
    }
    store.add(object).map(|id| id.to_be_bytes().to_vec())
}

fn generate(store: &mut Store, kind: u8, mut fields: Fields) -> Answer {
    let mut object = new_object(kind, GENERATED, &mut fields)?;
    fields.end()?;
    let length = key_length(kind, object.algorithm)?.ok_or(Refusal::INVALID_DATA)?;
    object.value = random::<128>().get(..length).ok_or(Refusal::INVALID_DATA)?.to_vec();
    store.add(object).map(|id| id.to_be_bytes().to_vec())
}

/// What every command that makes an object begins with.
fn new_object(kind: u8, origin: u8, fields: &mut Fields) -> Result<Object, Refusal> {
    Ok(Object {
        id: fields.u16()?,
        kind,
        sequence: 0,
        origin,
        label: fields.array::<LABEL_LENGTH>()?.to_vec(),
        domains: fields.u16()?,
        capabilities: fields.u64()?,
        algorithm: fields.u8()?,
        delegated: if kind == kind::WRAP_KEY { fields.u64()? } else { 0 },
        value: Vec::new(),
    })
}

/// Bytes of a key; the most of an HMAC key; none for data.
fn key_length(kind: u8, algorithm: u8) -> Result<Option<usize>, Refusal> {
    match (kind, algorithm) {
        (kind::OPAQUE, 30 | 31) => Ok(None),
        (kind::WRAP_KEY, 29) | (kind::SYMMETRIC_KEY, 50) => Ok(Some(16)),
        (kind::WRAP_KEY, 41) | (kind::SYMMETRIC_KEY, 51) => Ok(Some(24)),
        (kind::WRAP_KEY, 42) | (kind::SYMMETRIC_KEY, 52) => Ok(Some(32)),
        (kind::HMAC_KEY, 19 | 20) => Ok(Some(64)),
        (kind::HMAC_KEY, 21 | 22) => Ok(Some(128)),
        _ => Err(Refusal::INVALID_DATA),
    }
}

// --- Keys at work ----------------------------------------------------------

/// Capabilities, by the number of their bit.
mod capability {
    pub const SIGN_HMAC: u8 = 0x16;
    pub const VERIFY_HMAC: u8 = 0x17;
    pub const WRAP_DATA: u8 = 0x25;
    pub const UNWRAP_DATA: u8 = 0x26;
    pub const DECRYPT_ECB: u8 = 0x32;
    pub const ENCRYPT_ECB: u8 = 0x33;
    pub const DECRYPT_CBC: u8 = 0x34;
    pub const ENCRYPT_CBC: u8 = 0x35;
}

/// The key that the command names, if it may do this.
fn key<'a>(store: &'a Store, kind: u8, capability: u8, fields: &mut Fields) -> Result<&'a Object, Refusal> {
    let key = store.get(fields.u16()?, kind)?;
    if key.capabilities >> capability & 1 == 1 { Ok(key) } else { Err(Refusal::INSUFFICIENT_PERMISSIONS) }
}

fn sign_hmac(store: &Store, mut fields: Fields) -> Answer {
    let key = key(store, kind::HMAC_KEY, capability::SIGN_HMAC, &mut fields)?;
    hmac(key, fields.rest())
}

/// 1 for the right MAC, 0 for a wrong one.
fn verify_hmac(store: &Store, mut fields: Fields) -> Answer {
    let key = key(store, kind::HMAC_KEY, capability::VERIFY_HMAC, &mut fields)?;
    let length = hmac(key, b"")?.len();
    let (mac, data) = (fields.take(length)?, fields.rest());
    Ok(vec![u8::from(hmac(key, data)? == mac)])
}

fn hmac(key: &Object, data: &[u8]) -> Answer {
    fn with<M: Mac + KeyInit>(key: &[u8], data: &[u8]) -> Answer {
        let mut mac = <M as KeyInit>::new_from_slice(key).map_err(|_| Refusal::STORAGE_FAILED)?;
        mac.update(data);
        Ok(mac.finalize().into_bytes().to_vec())
    }
    match key.algorithm {
        19 => with::<Hmac<Sha1>>(&key.value, data),
        20 => with::<Hmac<Sha256>>(&key.value, data),
        21 => with::<Hmac<Sha384>>(&key.value, data),
        _ => with::<Hmac<Sha512>>(&key.value, data),
    }
}

/// Bytes of the nonce that the device makes.
const NONCE_LENGTH: usize = 13;
type Nonce = [u8; NONCE_LENGTH];

/// AES-CCM with a tag of 16 bytes. The driver reckons with one byte more than nonce and tag; here it stands in front and names the algorithm.
fn wrap_data(store: &Store, mut fields: Fields) -> Answer {
    let key = key(store, kind::WRAP_KEY, capability::WRAP_DATA, &mut fields)?;
    let nonce: Nonce = random();
    let sealed = match key.value.len() {
        16 => ccm_encrypt::<Aes128>(key, nonce, fields.rest()),
        24 => ccm_encrypt::<Aes192>(key, nonce, fields.rest()),
        _ => ccm_encrypt::<Aes256>(key, nonce, fields.rest()),
    }?;
    Ok([&[key.algorithm][..], &nonce, &sealed].concat())
}

fn unwrap_data(store: &Store, mut fields: Fields) -> Answer {
    let key = key(store, kind::WRAP_KEY, capability::UNWRAP_DATA, &mut fields)?;
    let (algorithm, nonce): (u8, Nonce) = (fields.u8()?, fields.array()?);
    if algorithm != key.algorithm {
        return Err(Refusal::INVALID_DATA);
    }
    match key.value.len() {
        16 => ccm_decrypt::<Aes128>(key, nonce, fields.rest()),
        24 => ccm_decrypt::<Aes192>(key, nonce, fields.rest()),
        _ => ccm_decrypt::<Aes256>(key, nonce, fields.rest()),
    }
}

fn ccm_encrypt<C: Cipher>(key: &Object, nonce: Nonce, text: &[u8]) -> Answer {
    let cipher = Ccm::<C, U16, U13>::new_from_slice(&key.value).map_err(|_| Refusal::STORAGE_FAILED)?;
    cipher.encrypt(&nonce.into(), text).map_err(|_| Refusal::WRONG_LENGTH)
}

fn ccm_decrypt<C: Cipher>(key: &Object, nonce: Nonce, text: &[u8]) -> Answer {
    let cipher = Ccm::<C, U16, U13>::new_from_slice(&key.value).map_err(|_| Refusal::STORAGE_FAILED)?;
    cipher.decrypt(&nonce.into(), text).map_err(|_| Refusal::INVALID_DATA)
}

/// AES of any size of key.
trait Cipher: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + KeyInit {}
impl<C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + KeyInit> Cipher for C {}

/// ECB and CBC of whole blocks. CBC's initial vector stands before the text.
fn block_cipher(store: &Store, command: u8, mut fields: Fields) -> Answer {
    let capability = match command {
        command::ENCRYPT_ECB => capability::ENCRYPT_ECB,
        command::DECRYPT_ECB => capability::DECRYPT_ECB,
        command::ENCRYPT_CBC => capability::ENCRYPT_CBC,
        _ => capability::DECRYPT_CBC,
    };
    let key = key(store, kind::SYMMETRIC_KEY, capability, &mut fields)?;
    match key.value.len() {
        16 => blocks::<Aes128>(key, command, fields),
        24 => blocks::<Aes192>(key, command, fields),
        _ => blocks::<Aes256>(key, command, fields),
    }
}

fn blocks<C: Cipher>(key: &Object, command: u8, mut fields: Fields) -> Answer {
    let cipher = C::new_from_slice(&key.value).map_err(|_| Refusal::STORAGE_FAILED)?;
    if !fields.0.len().is_multiple_of(16) {
        return Err(Refusal::WRONG_LENGTH);
    }
    // ECB is CBC block by block, each from a vector of zeros.
    let zeros = [0; 16];
    Ok(match command {
        command::ENCRYPT_ECB => fields.rest().chunks(16).flat_map(|block| cbc_encrypt(&cipher, zeros, block)).collect(),
        command::DECRYPT_ECB => fields.rest().chunks(16).flat_map(|block| cbc_decrypt(&cipher, zeros, block)).collect(),
        command::ENCRYPT_CBC => cbc_encrypt(&cipher, fields.array()?, fields.rest()),
        _ => cbc_decrypt(&cipher, fields.array()?, fields.rest()),
    })
}
