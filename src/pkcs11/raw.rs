//! The one place with `unsafe`: PKCS#11 calls that cryptoki's safe API cannot express.
//!
//! JUSTIFICATION. cryptoki always asks for the output size before it encrypts or decrypts, and sizes its buffer by the
//! answer. Modules lie there (NSS is 16 bytes short, opencryptoki 3.23 answers 2^64 - 8 for a short ciphertext), and the
//! query is a third call per operation. cryptoki also fails whole on token information that some modules fill oddly.
//! So the calls that seal and open, and those that say what a module, token or mechanism is, are made here, through one
//! function list, with buffers that we size. cryptoki also has no user type of a vendor's, and no key wrap with padding.

#![allow(unsafe_code)]

mod inspect;
mod message;
mod wrap;

pub(crate) use self::inspect::TooSmall;
pub(crate) use self::message::{Message, TAG_BYTES};

use std::ffi::CString;
use std::ops::RangeInclusive;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use cryptoki::context::{CInitializeArgs, CInitializeFlags};
use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_GCM_PARAMS, CK_INFO, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SESSION_INFO, CK_TOKEN_INFO, CK_ULONG, CK_VOID_PTR, CKR_FUNCTION_NOT_SUPPORTED, CKR_OK,
};
use zeroize::{Zeroize, Zeroizing};

use super::timing::time;

/// Room behind every output buffer: some modules write a block past the length that they were given.
const SLACK: usize = 64;

/// A PKCS#11 function that did not return `CKR_OK`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct CallFailed {
    /// PKCS#11 name, `C_...`.
    pub(crate) function: &'static str,
    /// `CK_RV`.
    pub(crate) code: u64,
    /// The operation had been begun: the session cannot be trusted any more.
    pub(crate) mid_operation: bool,
}

/// A mechanism with its parameter, for one operation.
pub(crate) struct Mechanism<'a> {
    /// `CK_MECHANISM_TYPE`.
    pub(crate) code: u64,
    pub(crate) parameter: Parameter<'a>,
}

/// What a mechanism takes beside the data.
pub(crate) enum Parameter<'a> {
    /// `CK_GCM_PARAMS` with a 128-bit tag (PKCS#11 3.1, section 6.13.3).
    Gcm {
        /// Sent to the module, which may write an IV of its own over it. Empty: a NULL pointer and length 0.
        iv: &'a mut [u8],
        /// Must not be empty: SoftHSM2 crashes on some empty forms.
        aad: &'a [u8],
    },
    /// The IV alone (PKCS#11 3.1, section 6.13.2: `CKM_AES_CBC`).
    Iv(&'a mut [u8]),
    /// Nothing.
    None,
}

/// What `C_GetTokenInfo` says, blanks and NULs trimmed.
#[derive(Clone, Debug)]
pub(crate) struct RawTokenInfo {
    pub(crate) label: String,
    pub(crate) manufacturer: String,
    pub(crate) model: String,
    pub(crate) serial: String,
    pub(crate) firmware: String,
    pub(crate) flags: u64,
}

/// What `C_GetInfo` says, blanks and NULs trimmed.
#[derive(Clone, Debug)]
pub(crate) struct RawModuleInfo {
    pub(crate) manufacturer: String,
    pub(crate) description: String,
    pub(crate) version: String,
    pub(crate) cryptoki: String,
}

/// The function list of a loaded module. Keeps the library loaded.
pub(crate) struct Functions {
    list: CK_FUNCTION_LIST,
    /// Asked for when it is first needed, since one wrapper (pkcs11-spy) crashes when it is asked for it.
    list_3_0: OnceLock<Option<CK_FUNCTION_LIST_3_0>>,
    library: cryptoki_sys::Pkcs11,
}

impl Functions {
    /// Loads the module (again: the loader counts references) and takes its 2.40 function list.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the library's initialisers. The path comes from the operator's configuration, and running
        // that library is what the worker process exists for.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(|error| error.to_string())?;
        if let Err(error) = &library.C_GetFunctionList {
            return Err(error.to_string());
        }
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: the symbol exists (checked above) and gets a valid pointer to write to.
        let code = unsafe { library.C_GetFunctionList(&raw mut list) };
        if code != CKR_OK || list.is_null() {
            return Err(format!("C_GetFunctionList returned {code:#x}"));
        }
        // SAFETY: not null, and the module promises a list that lives as long as the library (PKCS#11 5.4).
        let list = unsafe { *list };
        Ok(Self { list, list_3_0: OnceLock::new(), library })
    }

    /// `C_GetInfo`.
    pub(crate) fn module_info(&self) -> Result<RawModuleInfo, CallFailed> {
        let mut info = CK_INFO::default();
        // SAFETY: `info` is a valid CK_INFO to write to.
        call("C_GetInfo", self.list.C_GetInfo.map(|function| unsafe { function(&raw mut info) }))?;
        Ok(RawModuleInfo {
            manufacturer: text(&info.manufacturerID),
            description: text(&info.libraryDescription),
            version: format!("{}.{}", info.libraryVersion.major, info.libraryVersion.minor),
            cryptoki: format!("{}.{}", info.cryptokiVersion.major, info.cryptokiVersion.minor),
        })
    }

    /// `C_GetTokenInfo`.
    pub(crate) fn token_info(&self, slot: u64) -> Result<RawTokenInfo, CallFailed> {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: `info` is a valid CK_TOKEN_INFO to write to.
        call("C_GetTokenInfo", self.list.C_GetTokenInfo.map(|function| unsafe { function(slot, &raw mut info) }))?;
        Ok(RawTokenInfo {
            label: text(&info.label),
            manufacturer: text(&info.manufacturerID),
            model: text(&info.model),
            serial: text(&info.serialNumber),
            firmware: format!("{}.{}", info.firmwareVersion.major, info.firmwareVersion.minor),
            flags: info.flags,
        })
    }

    /// `C_Login` with a user type of any number (PKCS#11 3.1, section 5.6.9: vendors have their own).
    pub(crate) fn login(&self, session: u64, user: u64, pin: &[u8]) -> Result<(), CallFailed> {
        let (text, length) = (pin.as_ptr().cast_mut(), pin.len() as CK_ULONG);
        // SAFETY: the PIN is valid for its length, and a module only reads it.
        timed("C_Login", || self.list.C_Login.map(|function| unsafe { function(session, user, text, length) }))
    }

    /// `C_GetSessionInfo`: whether this function list knows a session that was opened through another one.
    pub(crate) fn knows_session(&self, session: u64) -> Result<(), CallFailed> {
        let mut info = CK_SESSION_INFO::default();
        // SAFETY: `info` is a valid CK_SESSION_INFO to write to.
        call("C_GetSessionInfo", self.list.C_GetSessionInfo.map(|function| unsafe { function(session, &raw mut info) }))
    }

    /// `C_EncryptInit` and `C_Encrypt`. Gives a number of bytes in `expected`, or an error.
    pub(crate) fn encrypt(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        plaintext: &[u8],
        expected: RangeInclusive<usize>,
    ) -> Result<Vec<u8>, CallFailed> {
        let mut output = operate(self.encryption(), session, key, mechanism, plaintext, *expected.end(), expected)?;
        Ok(std::mem::take(&mut *output))
    }

    /// `C_DecryptInit` and `C_Decrypt`. Gives a number of bytes in `expected`, which must be below the ciphertext's length.
    pub(crate) fn decrypt(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        ciphertext: &[u8],
        expected: RangeInclusive<usize>,
    ) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
        // SoftHSM2 and NSS want room for the tag, too.
        operate(self.decryption(), session, key, mechanism, ciphertext, ciphertext.len(), expected)
    }

    fn encryption(&self) -> Operation {
        (("C_EncryptInit", self.list.C_EncryptInit), ("C_Encrypt", self.list.C_Encrypt))
    }

    fn decryption(&self) -> Operation {
        (("C_DecryptInit", self.list.C_DecryptInit), ("C_Decrypt", self.list.C_Decrypt))
    }

    /// `C_SignInit` and `C_Sign`. Gives exactly `expected` bytes, or an error.
    pub(crate) fn sign(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        data: &[u8],
        expected: usize,
    ) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
        let functions = (("C_SignInit", self.list.C_SignInit), ("C_Sign", self.list.C_Sign));
        operate(functions, session, key, mechanism, data, expected, expected..=expected)
    }
}

/// The arguments of `C_Initialize`, used by `run`: locking by the system, and perhaps a text of the module's own.
pub(crate) fn with_arguments<T>(reserved: Option<&CString>, run: impl FnOnce(CInitializeArgs) -> T) -> T {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    let text = reserved.and_then(|text| NonNull::new(text.as_ptr().cast_mut().cast()));
    // SAFETY: the text ends with a NUL and outlives the call; modules that take one only read it.
    run(text
        .map_or_else(|| CInitializeArgs::new(flags), |text| unsafe { CInitializeArgs::new_with_reserved(flags, text) }))
}

type Init = Option<unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV>;
type Finish =
    Option<unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV>;

/// The two calls of an operation in one part, by name.
type Operation = ((&'static str, Init), (&'static str, Finish));

/// One operation in one part: two calls, one buffer sized by us, told to have `room` bytes.
fn operate(
    (init, finish): Operation,
    session: u64,
    key: u64,
    mechanism: Mechanism<'_>,
    input: &[u8],
    room: usize,
    expected: RangeInclusive<usize>,
) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
    let mut output = Zeroizing::new(vec![0_u8; room.saturating_add(SLACK)]);
    let mut length = room as CK_ULONG;
    mechanism.with_raw(|mechanism| {
        // SAFETY: the mechanism, its parameter, IV and AAD are valid for this call, and for the next one too, since some
        // modules keep the pointers until the operation ends.
        timed(init.0, || init.1.map(|function| unsafe { function(session, mechanism, key) }))?;
        let (data, data_length) = (input.as_ptr().cast_mut(), input.len() as CK_ULONG);
        timed(finish.0, || {
            finish.1.map(|function| {
                // SAFETY: input and output are valid for the lengths given; a module only reads its input (PKCS#11 5.2); the
                // output has SLACK bytes more than the module is told.
                unsafe { function(session, data, data_length, output.as_mut_ptr(), &raw mut length) }
            })
        })
        .map_err(CallFailed::in_mid_operation)
    })?;
    cut(finish.0, output, length, room, &expected)
}

/// The output, as long as the module says, if that is one of the lengths that can be right.
fn cut(
    function: &'static str,
    mut output: Zeroizing<Vec<u8>>,
    length: CK_ULONG,
    room: usize,
    expected: &RangeInclusive<usize>,
) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
    let length = usize::try_from(length).ok().filter(|length| expected.contains(length));
    let Some(length) = length.filter(|length| *length <= room) else {
        return Err(CallFailed { function, code: WRONG_LENGTH, mid_operation: true });
    };
    // Wiped before the shorter length hides it from the wipe on drop.
    if let Some(rest) = output.get_mut(length..) {
        rest.zeroize();
    }
    output.truncate(length);
    Ok(output)
}

/// Stands in for a return code where the call said `CKR_OK` and yet gave a wrong length.
pub const WRONG_LENGTH: u64 = u64::MAX;

/// Bits of every GCM tag.
const TAG_BITS: CK_ULONG = 128;

impl Mechanism<'_> {
    fn with_raw<T>(self, run: impl FnOnce(*mut CK_MECHANISM) -> T) -> T {
        let raw = |parameter: CK_VOID_PTR, length: usize| CK_MECHANISM {
            mechanism: self.code,
            pParameter: parameter,
            ulParameterLen: length as CK_ULONG,
        };
        match self.parameter {
            Parameter::Gcm { iv, aad } => {
                let mut parameter = CK_GCM_PARAMS {
                    pIv: if iv.is_empty() { ptr::null_mut() } else { iv.as_mut_ptr() },
                    ulIvLen: iv.len() as CK_ULONG,
                    // NSS refuses 0 here; all others ignore it.
                    ulIvBits: (iv.len() as CK_ULONG).saturating_mul(8),
                    pAAD: aad.as_ptr().cast_mut(),
                    ulAADLen: aad.len() as CK_ULONG,
                    ulTagBits: TAG_BITS,
                };
                run(&mut raw((&raw mut parameter).cast(), size_of::<CK_GCM_PARAMS>()))
            }
            Parameter::Iv(iv) => run(&mut raw(iv.as_mut_ptr().cast(), iv.len())),
            Parameter::None => run(&mut raw(ptr::null_mut(), 0)),
        }
    }
}

impl CallFailed {
    fn in_mid_operation(mut self) -> Self {
        self.mid_operation = true;
        self
    }
}

/// A call that is made for an RPC, or to log in: how long it takes is of interest.
fn timed(function: &'static str, code: impl FnOnce() -> Option<CK_RV>) -> Result<(), CallFailed> {
    call(function, time(function, code))
}

fn call(function: &'static str, code: Option<CK_RV>) -> Result<(), CallFailed> {
    match code.unwrap_or(CKR_FUNCTION_NOT_SUPPORTED) {
        CKR_OK => Ok(()),
        code => Err(CallFailed { function, code, mid_operation: false }),
    }
}

/// A blank-padded PKCS#11 text field; some modules pad with NULs instead.
fn text(field: &[CK_BYTE]) -> String {
    String::from_utf8_lossy(field).trim_end_matches([' ', '\0']).to_owned()
}
