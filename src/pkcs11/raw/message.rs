//! Message encryption (PKCS#11 3.1, sections 5.9 and 5.11): the module makes the IV, and gives it and the tag apart.

use std::ptr;

use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST_3_0, CK_GCM_MESSAGE_PARAMS, CK_INTERFACE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_ULONG, CK_VERSION, CK_VOID_PTR, CKG_GENERATE_RANDOM, CKR_OK,
};
use zeroize::Zeroizing;

use super::{CallFailed, Functions, SLACK, TAG_BITS, cut, timed};

/// Everything of a message but its text and tag.
pub(crate) struct Message<'a> {
    /// `CK_MECHANISM_TYPE`.
    pub(crate) mechanism: u64,
    /// The module writes its own IV here when it encrypts.
    pub(crate) iv: &'a mut [u8],
    pub(crate) aad: &'a [u8],
}

/// Bytes of every GCM tag.
pub(crate) const TAG_BYTES: usize = 16;

impl Functions {
    /// `C_MessageEncryptInit`, `C_EncryptMessage` and `C_MessageEncryptFinal`. Gives the ciphertext with the tag behind it.
    pub(crate) fn encrypt_message(
        &self,
        session: u64,
        key: u64,
        message: Message<'_>,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CallFailed> {
        let list = self.list_3_0();
        let calls = Calls {
            init: ("C_MessageEncryptInit", list.and_then(|list| list.C_MessageEncryptInit)),
            message: ("C_EncryptMessage", list.and_then(|list| list.C_EncryptMessage)),
            last: ("C_MessageEncryptFinal", list.and_then(|list| list.C_MessageEncryptFinal)),
        };
        let mut tag = [0; TAG_BYTES];
        let mut output = calls.run(session, key, message, &mut tag, plaintext)?;
        output.extend_from_slice(&tag);
        Ok(std::mem::take(&mut *output))
    }

    /// `C_MessageDecryptInit`, `C_DecryptMessage` and `C_MessageDecryptFinal`. The tag stands behind the ciphertext.
    pub(crate) fn decrypt_message(
        &self,
        session: u64,
        key: u64,
        message: Message<'_>,
        ciphertext: &[u8],
        tag: &mut [u8; TAG_BYTES],
    ) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
        let list = self.list_3_0();
        let calls = Calls {
            init: ("C_MessageDecryptInit", list.and_then(|list| list.C_MessageDecryptInit)),
            message: ("C_DecryptMessage", list.and_then(|list| list.C_DecryptMessage)),
            last: ("C_MessageDecryptFinal", list.and_then(|list| list.C_MessageDecryptFinal)),
        };
        calls.run(session, key, message, tag, ciphertext)
    }

    /// Absent in modules older than PKCS#11 3.0. That a function is there says nothing: ask for the mechanism's flags.
    fn list_3_0(&self) -> Option<&CK_FUNCTION_LIST_3_0> {
        self.list_3_0.get_or_init(|| list_3_0(&self.library)).as_ref()
    }
}

/// The module's list of PKCS#11 3.0, if it has one.
fn list_3_0(library: &cryptoki_sys::Pkcs11) -> Option<CK_FUNCTION_LIST_3_0> {
    let get = library.C_GetInterface.as_ref().ok()?;
    let mut version = CK_VERSION { major: 3, minor: 0 };
    let mut interface: *mut CK_INTERFACE = ptr::null_mut();
    // SAFETY: the name ends with a NUL and is only read, as is the version; `interface` is a valid place to write to
    // (PKCS#11 3.1, section 5.4.6).
    let code = unsafe { get(c"PKCS 11".as_ptr().cast_mut().cast(), &raw mut version, &raw mut interface, 0) };
    if code != CKR_OK || interface.is_null() {
        return None;
    }
    // SAFETY: not null, and the module promises an interface that lives as long as the library.
    let list = unsafe { (*interface).pFunctionList.cast::<CK_FUNCTION_LIST_3_0>() };
    if list.is_null() {
        return None;
    }
    // SAFETY: not null, and every function list begins with its version (PKCS#11 3.1, section 3.6).
    let version = unsafe { *list.cast::<CK_VERSION>() };
    if version.major < 3 {
        return None;
    }
    // SAFETY: not null, and a list of this version is of this type, or a longer one.
    Some(unsafe { *list })
}

/// Three functions that belong together.
struct Calls {
    init: (&'static str, Option<unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV>),
    message: (&'static str, MessageFunction),
    last: (&'static str, Option<unsafe extern "C" fn(CK_SESSION_HANDLE) -> CK_RV>),
}

type MessageFunction = Option<
    unsafe extern "C" fn(
        CK_SESSION_HANDLE,
        CK_VOID_PTR,
        CK_ULONG,
        *mut CK_BYTE,
        CK_ULONG,
        *mut CK_BYTE,
        CK_ULONG,
        *mut CK_BYTE,
        *mut CK_ULONG,
    ) -> CK_RV,
>;

impl Calls {
    /// One message, whose output is as long as its input.
    fn run(
        &self,
        session: u64,
        key: u64,
        message: Message<'_>,
        tag: &mut [u8; TAG_BYTES],
        input: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CallFailed> {
        let Message { mechanism, iv, aad } = message;
        let mut parameter = CK_GCM_MESSAGE_PARAMS {
            pIv: iv.as_mut_ptr(),
            ulIvLen: iv.len() as CK_ULONG,
            ulIvFixedBits: 0,
            ivGenerator: CKG_GENERATE_RANDOM,
            pTag: tag.as_mut_ptr(),
            ulTagBits: TAG_BITS,
        };
        let (pointer, size) = ((&raw mut parameter).cast(), size_of::<CK_GCM_MESSAGE_PARAMS>() as CK_ULONG);
        let mut mechanism = CK_MECHANISM { mechanism, pParameter: pointer, ulParameterLen: size };
        // SAFETY: the mechanism, its parameter, IV and tag are valid until this function ends, and with it the operation.
        timed(self.init.0, || self.init.1.map(|function| unsafe { function(session, &raw mut mechanism, key) }))?;
        let mut output = Zeroizing::new(vec![0_u8; input.len().saturating_add(SLACK)]);
        let mut length = input.len() as CK_ULONG;
        let (text, text_length) = (input.as_ptr().cast_mut(), input.len() as CK_ULONG);
        let (aad, aad_length) = (aad.as_ptr().cast_mut(), aad.len() as CK_ULONG);
        let written = output.as_mut_ptr();
        let code = || {
            self.message.1.map(|function| {
                // SAFETY: AAD and input are valid for the lengths given and only read; the module writes to the IV, the tag and
                // the output, which has SLACK bytes more than the module is told.
                unsafe {
                    function(session, pointer, size, aad, aad_length, text, text_length, written, &raw mut length)
                }
            })
        };
        let done = timed(self.message.0, code).map_err(CallFailed::in_mid_operation);
        // After a failed message, too: the operation must not outlive what it has pointers to.
        // SAFETY: no pointers.
        let ended = timed(self.last.0, || self.last.1.map(|function| unsafe { function(session) }));
        done.and(ended.map_err(CallFailed::in_mid_operation))?;
        cut(self.message.0, output, length, input.len(), &(input.len()..=input.len()))
    }
}
