//! Vendors' AES-GCM on a module that has the plain one: who makes the IV, and where it goes.
//!
//! The real module always gets a random IV of ours. Single-part operations only, as with most of these vendors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{ptr, slice};

use cryptoki_sys::*;

use crate::control;
use crate::real::ask;
use crate::vendor::{Imitate, IvLayout};

/// What an operation that was begun on a session still needs.
enum Pending {
    /// An IV of ours goes to this place when C_Encrypt succeeds.
    Encrypt { iv: Vec<u8>, place: Place },
    /// The IV is in front of what C_Decrypt will get: only then can the real operation begin.
    DecryptInside { aad: Vec<u8>, tag_bits: CK_ULONG, key: CK_OBJECT_HANDLE },
}

#[derive(Clone, Copy)]
enum Place {
    Behind,
    Before,
    /// The caller's `pIv`, which must live until C_Encrypt returns.
    Parameter(usize),
    /// Is there already.
    Written,
}

static PENDING: Mutex<BTreeMap<CK_SESSION_HANDLE, Pending>> = Mutex::new(BTreeMap::new());

/// Forgets what the session began.
pub fn forget(session: CK_SESSION_HANDLE) {
    pending().remove(&session);
}

/// # Safety
/// As C_EncryptInit.
pub unsafe fn encrypt_init(
    imitate: &Imitate,
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    // SAFETY: by the caller's word.
    let parameters = match unsafe { parameters(imitate, mechanism) } {
        Ok(Some(parameters)) => parameters,
        Ok(None) => return ask!(C_EncryptInit(session, mechanism, key)),
        Err(code) => return code,
    };
    let layout = match imitate.iv {
        None => return init(session, key, *parameters, Direction::Encrypt),
        Some(IvLayout::Sent) => {
            let bits = parameters.ulIvLen.saturating_mul(8);
            let whole = !parameters.pIv.is_null() && bits > 0 && parameters.ulIvBits == bits;
            return if whole { init(session, key, *parameters, Direction::Encrypt) } else { imitate.wrong_iv() };
        }
        Some(layout) => layout,
    };
    // SAFETY: the caller's pIv with the caller's length.
    let sent = unsafe { bytes(parameters.pIv, parameters.ulIvLen) };
    let Some((length, place)) = place(layout, parameters, sent) else { return imitate.wrong_iv() };
    let mut iv = random(length);
    let changed = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: iv.len() as CK_ULONG,
        ulIvBits: iv.len() as CK_ULONG * 8,
        ..*parameters
    };
    let code = init(session, key, changed, Direction::Encrypt);
    if code == CKR_OK {
        if layout == IvLayout::Protectserver {
            // SAFETY: the caller's pIv has `length` bytes, and C_EncryptInit is where this vendor writes to it.
            unsafe { parameters.pIv.copy_from_nonoverlapping(iv.as_ptr(), iv.len()) };
        }
        pending().insert(session, Pending::Encrypt { iv, place });
    }
    code
}

/// Length and place of the IV to make. `None`: this vendor refuses what was sent.
fn place(layout: IvLayout, parameters: &CK_GCM_PARAMS, sent: &[u8]) -> Option<(usize, Place)> {
    let none = parameters.ulIvLen == 0;
    let zeros = !sent.is_empty() && sent.iter().all(|byte| *byte == 0);
    match layout {
        IvLayout::LunaFips if none => match parameters.ulIvBits {
            0 | 128 => Some((16, Place::Behind)),
            96 => Some((12, Place::Behind)),
            _ => None,
        },
        IvLayout::Suffix if none => Some((12, Place::Behind)),
        IvLayout::Prefix | IvLayout::Inside if none => Some((12, Place::Before)),
        IvLayout::Param if zeros => Some((sent.len(), Place::Parameter(parameters.pIv.expose_provenance()))),
        IvLayout::Protectserver if zeros => Some((sent.len(), Place::Written)),
        IvLayout::ProtectserverOld if !sent.is_empty() => Some((sent.len(), Place::Behind)),
        _ => None,
    }
}

/// # Safety
/// As C_Encrypt.
pub unsafe fn encrypt(
    imitate: &Imitate,
    session: CK_SESSION_HANDLE,
    input: *mut CK_BYTE,
    input_length: CK_ULONG,
    output: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let begun = pending().remove(&session);
    if imitate.max_bytes.is_some_and(|most| input_length > most) {
        return end(session);
    }
    let Some(Pending::Encrypt { iv, place }) = begun else {
        return ask!(C_Encrypt(session, input, input_length, output, length));
    };
    if length.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let extra = if matches!(place, Place::Behind | Place::Before) { iv.len() as CK_ULONG } else { 0 };
    let needed = input_length + TAG_BYTES + extra;
    // SAFETY: not null.
    if output.is_null() || unsafe { *length } < needed {
        // SAFETY: not null. Only the size is answered, and the operation lives on.
        unsafe { *length = needed };
        pending().insert(session, Pending::Encrypt { iv, place });
        return if output.is_null() { CKR_OK } else { CKR_BUFFER_TOO_SMALL };
    }
    let mut sealed = vec![0; (input_length + TAG_BYTES) as usize + SLACK];
    let mut sealed_length = sealed.len() as CK_ULONG;
    // The caller's input, and a buffer of ours with its length.
    let code = ask!(C_Encrypt(session, input, input_length, sealed.as_mut_ptr(), &raw mut sealed_length));
    if code != CKR_OK {
        return code;
    }
    sealed.truncate(sealed_length as usize);
    match place {
        Place::Behind => sealed.extend_from_slice(&iv),
        Place::Before => drop(sealed.splice(0..0, iv.iter().copied())),
        // SAFETY: the caller's pIv, which has this length, and which a caller of these vendors keeps until now.
        Place::Parameter(address) => unsafe {
            ptr::with_exposed_provenance_mut::<u8>(address).copy_from_nonoverlapping(iv.as_ptr(), iv.len());
        },
        Place::Written => {}
    }
    // SAFETY: `needed` bytes, and no more were made: the tag has 16 bytes at most.
    unsafe {
        output.copy_from_nonoverlapping(sealed.as_ptr(), sealed.len());
        *length = sealed.len() as CK_ULONG;
    }
    CKR_OK
}

/// Ends the operation that the real module has begun, for one that this vendor refuses.
fn end(session: CK_SESSION_HANDLE) -> CK_RV {
    let (mut input, mut output) = ([0; 16], [0; 64 + SLACK]);
    let mut length = 64;
    // Buffers of ours with their lengths; nobody sees what comes out.
    ask!(C_Encrypt(session, input.as_mut_ptr(), input.len() as CK_ULONG, output.as_mut_ptr(), &raw mut length));
    CKR_DATA_LEN_RANGE
}

/// # Safety
/// As C_DecryptInit.
pub unsafe fn decrypt_init(
    imitate: &Imitate,
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    // SAFETY: by the caller's word.
    let parameters = match unsafe { parameters(imitate, mechanism) } {
        Ok(Some(parameters)) => parameters,
        Ok(None) => return ask!(C_DecryptInit(session, mechanism, key)),
        Err(code) => return code,
    };
    let none = parameters.ulIvLen == 0;
    match imitate.iv {
        None => init(session, key, *parameters, Direction::Decrypt),
        Some(IvLayout::Inside) if none => {
            // SAFETY: the caller's pAAD with the caller's length.
            let aad = unsafe { bytes(parameters.pAAD, parameters.ulAADLen) }.to_vec();
            pending().insert(session, Pending::DecryptInside { aad, tag_bits: parameters.ulTagBits, key });
            CKR_OK
        }
        Some(IvLayout::Inside) => imitate.wrong_iv(),
        Some(_) if none => imitate.wrong_iv(),
        Some(_) => init(session, key, *parameters, Direction::Decrypt),
    }
}

/// # Safety
/// As C_Decrypt.
pub unsafe fn decrypt(
    imitate: &Imitate,
    session: CK_SESSION_HANDLE,
    mut input: *mut CK_BYTE,
    mut input_length: CK_ULONG,
    output: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let begun = pending().remove(&session);
    if let Some(Pending::DecryptInside { mut aad, tag_bits, key }) = begun {
        if input_length < INSIDE_BYTES || input.is_null() {
            return CKR_ENCRYPTED_DATA_LEN_RANGE;
        }
        if output.is_null() && !length.is_null() {
            // SAFETY: not null.
            unsafe { *length = input_length - INSIDE_BYTES };
            pending().insert(session, Pending::DecryptInside { aad, tag_bits, key });
            return CKR_OK;
        }
        let parameters = CK_GCM_PARAMS {
            pIv: input,
            ulIvLen: INSIDE_BYTES,
            ulIvBits: INSIDE_BYTES * 8,
            pAAD: aad.as_mut_ptr(),
            ulAADLen: aad.len() as CK_ULONG,
            ulTagBits: tag_bits,
        };
        let code = init(session, key, parameters, Direction::Decrypt);
        if code != CKR_OK {
            return code;
        }
        // SAFETY: the input is longer than the IV.
        input = unsafe { input.add(INSIDE_BYTES as usize) };
        input_length -= INSIDE_BYTES;
        // The IV and AAD must live until the operation ends: some modules keep the pointers.
        let code = ask!(C_Decrypt(session, input, input_length, output, length));
        drop(aad);
        return bad_tag(imitate, code);
    }
    bad_tag(imitate, ask!(C_Decrypt(session, input, input_length, output, length)))
}

fn bad_tag(imitate: &Imitate, code: CK_RV) -> CK_RV {
    match (imitate.bad_tag, code) {
        (
            Some(vendor),
            CKR_GENERAL_ERROR | CKR_ENCRYPTED_DATA_INVALID | CKR_ENCRYPTED_DATA_LEN_RANGE | CKR_AEAD_DECRYPT_FAILED,
        ) => vendor.0,
        _ => code,
    }
}

enum Direction {
    Encrypt,
    Decrypt,
}

/// Begins CKM_AES_GCM on the real module.
fn init(
    session: CK_SESSION_HANDLE,
    key: CK_OBJECT_HANDLE,
    mut parameters: CK_GCM_PARAMS,
    direction: Direction,
) -> CK_RV {
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: (&raw mut parameters).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    };
    // A mechanism of ours, whose pointers are the caller's or lead to buffers that live on.
    match direction {
        Direction::Encrypt => ask!(C_EncryptInit(session, &raw mut mechanism, key)),
        Direction::Decrypt => ask!(C_DecryptInit(session, &raw mut mechanism, key)),
    }
}

/// The parameters of the vendor's AES-GCM. `None`: something else, which is not imitated.
///
/// # Safety
/// `mechanism` is null or the caller's, with a parameter of the length that it says.
unsafe fn parameters<'a>(
    imitate: &Imitate,
    mechanism: *const CK_MECHANISM,
) -> Result<Option<&'a CK_GCM_PARAMS>, CK_RV> {
    if mechanism.is_null() {
        return Ok(None);
    }
    // SAFETY: not null.
    let mechanism = unsafe { &*mechanism };
    match imitate.real_mechanism(mechanism.mechanism) {
        None => return Err(CKR_MECHANISM_INVALID),
        Some(CKM_AES_GCM) if imitate.iv.is_some() || imitate.mechanism.is_some() => {}
        Some(_) => return Ok(None),
    }
    if mechanism.pParameter.is_null() || mechanism.ulParameterLen != size_of::<CK_GCM_PARAMS>() as CK_ULONG {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    // SAFETY: not null and of the right size.
    Ok(Some(unsafe { &*mechanism.pParameter.cast::<CK_GCM_PARAMS>() }))
}

/// # Safety
/// `start` is null or points to `length` bytes, which live as long as the call.
unsafe fn bytes<'a>(start: *const CK_BYTE, length: CK_ULONG) -> &'a [u8] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: by the caller's word.
    unsafe { slice::from_raw_parts(start, length as usize) }
}

pub fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.unwrap_or_else(|error| control::give_up(&format!("/dev/urandom: {error}")));
    bytes
}

fn pending() -> MutexGuard<'static, BTreeMap<CK_SESSION_HANDLE, Pending>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

const TAG_BYTES: CK_ULONG = 16;
/// Length of the IV in front of what the layout `inside` gives.
const INSIDE_BYTES: CK_ULONG = 12;
/// Room behind the output: some modules write a block past the end.
const SLACK: usize = 64;
