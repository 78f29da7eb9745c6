//! The one place with `unsafe`: PKCS#11 calls that cryptoki's safe API cannot express.
//!
//! JUSTIFICATION. cryptoki always asks for the output size before it encrypts or decrypts, and sizes its buffer by the
//! answer. Modules lie there (NSS is 16 bytes short, opencryptoki 3.23 answers 2^64 - 8 for a short ciphertext), and the
//! query is a third call per operation. cryptoki also fails whole on token information that some modules fill oddly.
//! So `C_EncryptInit`, `C_Encrypt`, `C_DecryptInit`, `C_Decrypt`, `C_GetInfo`, `C_GetTokenInfo` and `C_GetSessionInfo` are
//! called here, through one function list, with buffers that we size.

#![allow(unsafe_code)]

use std::path::Path;
use std::ptr;

use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST, CK_GCM_PARAMS, CK_INFO, CK_MECHANISM, CK_RV, CK_SESSION_INFO, CK_TOKEN_INFO, CK_ULONG,
    CK_VOID_PTR, CKM_AES_GCM, CKR_FUNCTION_NOT_SUPPORTED, CKR_OK,
};
use zeroize::{Zeroize, Zeroizing};

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

/// AES-GCM with a 128-bit tag (PKCS#11 3.1, section 6.13.3, `CK_GCM_PARAMS`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gcm<'a> {
    /// Initialisation vector.
    pub(crate) iv: &'a [u8],
    /// Additional authenticated data; must not be empty (SoftHSM2 crashes on some empty forms).
    pub(crate) aad: &'a [u8],
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
    _library: cryptoki_sys::Pkcs11,
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
        Ok(Self { list, _library: library })
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

    /// `C_GetSessionInfo`: whether this function list knows a session that was opened through another one.
    pub(crate) fn knows_session(&self, session: u64) -> Result<(), CallFailed> {
        let mut info = CK_SESSION_INFO::default();
        // SAFETY: `info` is a valid CK_SESSION_INFO to write to.
        call("C_GetSessionInfo", self.list.C_GetSessionInfo.map(|function| unsafe { function(session, &raw mut info) }))
    }

    /// `C_EncryptInit` and `C_Encrypt`: ciphertext and tag. Exactly 16 bytes longer than the plaintext, or an error.
    pub(crate) fn encrypt_gcm(
        &self,
        session: u64,
        key: u64,
        gcm: Gcm<'_>,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CallFailed> {
        let expected = plaintext.len().saturating_add(TAG_BYTES);
        let mut output = vec![0_u8; expected.saturating_add(SLACK)];
        gcm.with_mechanism(|mechanism| {
            call(
                "C_EncryptInit",
                // SAFETY: the mechanism, its parameter, IV and AAD live in the caller's frame for the whole call, and
                // PKCS#11 lets no module keep the pointers after C_EncryptInit returns for this mechanism... so the same
                // frame also covers C_Encrypt, for those that do.
                self.list.C_EncryptInit.map(|function| unsafe { function(session, mechanism, key) }),
            )?;
            let mut length = expected as CK_ULONG;
            let input = plaintext.as_ptr().cast_mut();
            call(
                "C_Encrypt",
                // SAFETY: input and output are valid for the lengths given; the module only reads the input; the output
                // has SLACK bytes more than it is told.
                self.list.C_Encrypt.map(|function| unsafe {
                    function(session, input, plaintext.len() as CK_ULONG, output.as_mut_ptr(), &raw mut length)
                }),
            )
            .map_err(CallFailed::in_mid_operation)?;
            if length != expected as CK_ULONG {
                return Err(CallFailed { function: "C_Encrypt", code: WRONG_LENGTH, mid_operation: true });
            }
            Ok(())
        })?;
        output.truncate(expected);
        Ok(output)
    }

    /// `C_DecryptInit` and `C_Decrypt`: the plaintext. `ciphertext` must hold a tag; exactly 16 bytes shorter, or an error.
    pub(crate) fn decrypt_gcm(
        &self,
        session: u64,
        key: u64,
        gcm: Gcm<'_>,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
        // A ciphertext shorter than its tag drives one module to write to address 2^64 - 8.
        let Some(expected) = ciphertext.len().checked_sub(TAG_BYTES) else {
            return Err(CallFailed { function: "C_Decrypt", code: WRONG_LENGTH, mid_operation: false });
        };
        let mut output = Zeroizing::new(vec![0_u8; ciphertext.len().saturating_add(SLACK)]);
        gcm.with_mechanism(|mechanism| {
            call(
                "C_DecryptInit",
                // SAFETY: as in `encrypt_gcm`.
                self.list.C_DecryptInit.map(|function| unsafe { function(session, mechanism, key) }),
            )?;
            // SoftHSM2 and NSS want room for the tag, too.
            let mut length = ciphertext.len() as CK_ULONG;
            let input = ciphertext.as_ptr().cast_mut();
            call(
                "C_Decrypt",
                // SAFETY: as in `encrypt_gcm`.
                self.list.C_Decrypt.map(|function| unsafe {
                    function(session, input, ciphertext.len() as CK_ULONG, output.as_mut_ptr(), &raw mut length)
                }),
            )
            .map_err(CallFailed::in_mid_operation)?;
            if length != expected as CK_ULONG {
                return Err(CallFailed { function: "C_Decrypt", code: WRONG_LENGTH, mid_operation: true });
            }
            Ok(())
        })?;
        // Wiped before the length hides it from the wipe on drop.
        if let Some(rest) = output.get_mut(expected..) {
            rest.zeroize();
        }
        output.truncate(expected);
        Ok(output)
    }
}

/// Stands in for a return code where the call said `CKR_OK` and yet gave a wrong length.
pub(crate) const WRONG_LENGTH: u64 = u64::MAX;

const TAG_BYTES: usize = 16;

impl Gcm<'_> {
    fn with_mechanism<T>(self, run: impl FnOnce(*mut CK_MECHANISM) -> T) -> T {
        let mut iv: Zeroizing<Vec<u8>> = Zeroizing::new(self.iv.to_vec());
        let mut parameter = CK_GCM_PARAMS {
            pIv: iv.as_mut_ptr(),
            ulIvLen: iv.len() as CK_ULONG,
            // NSS refuses 0 here; all others ignore it.
            ulIvBits: (iv.len() as CK_ULONG).saturating_mul(8),
            pAAD: self.aad.as_ptr().cast_mut(),
            ulAADLen: self.aad.len() as CK_ULONG,
            ulTagBits: (TAG_BYTES as CK_ULONG).saturating_mul(8),
        };
        let mut mechanism = CK_MECHANISM {
            mechanism: CKM_AES_GCM,
            pParameter: (&raw mut parameter).cast::<std::ffi::c_void>() as CK_VOID_PTR,
            ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
        };
        run(&raw mut mechanism)
    }
}

impl CallFailed {
    fn in_mid_operation(mut self) -> Self {
        self.mid_operation = true;
        self
    }
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
