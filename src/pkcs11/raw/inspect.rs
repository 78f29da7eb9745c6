//! Calls that look closer, most of them a probe's: what a module lists, how it answers a size query or a buffer that is too
//! small, and an attribute of any number. Every buffer is ours and of a fixed size: no answer of the module's decides over memory.

use std::ptr;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_INTERFACE, CK_MECHANISM_INFO, CK_RV, CK_SESSION_HANDLE, CK_TOKEN_INFO, CK_ULONG,
    CK_UNAVAILABLE_INFORMATION, CK_VERSION,
};
use zeroize::Zeroizing;

use super::{CallFailed, Finish, Functions, Init, Mechanism, Operation, SLACK, call, operate, text};

/// What `C_GetMechanismInfo` says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawMechanismInfo {
    pub(crate) least: u64,
    pub(crate) most: u64,
    pub(crate) flags: u64,
}

/// What `C_GetTokenInfo` says of limits and state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawTokenLimits {
    pub(crate) flags: u64,
    pub(crate) pin: (u64, u64),
    pub(crate) sessions: u64,
}

/// What came of an operation whose buffer was too small at first, and of the same operation with enough room.
pub(crate) struct TooSmall {
    pub(crate) first: Result<(), CallFailed>,
    pub(crate) then: Result<(), CallFailed>,
}

/// Most entries of a list that are looked at.
const LIST: usize = 4096;

/// Bytes of an attribute's value that are read at most.
const VALUE: usize = 1024;

/// Room for an output whose length is not known.
const OUTPUT: usize = 4096;

impl Functions {
    /// `C_GetInterfaceList`: name and version of each. `None`: the module has no such function.
    pub(crate) fn interfaces(&self) -> Option<Vec<String>> {
        let list = self.library.C_GetInterfaceList.as_ref().ok()?;
        let empty = CK_INTERFACE { pInterfaceName: ptr::null_mut(), pFunctionList: ptr::null_mut(), flags: 0 };
        let mut interfaces = [empty; 32];
        let mut count = interfaces.len() as CK_ULONG;
        // SAFETY: the array has room for `count` entries (PKCS#11 3.1, section 5.4.5).
        let code = unsafe { list(interfaces.as_mut_ptr(), &raw mut count) };
        call("C_GetInterfaceList", Some(code)).ok()?;
        let filled = interfaces.get(..usize::try_from(count).ok()?)?;
        Some(filled.iter().filter_map(interface).collect())
    }

    /// `C_GetTokenInfo`: limits and flags.
    pub(crate) fn token_limits(&self, slot: u64) -> Result<RawTokenLimits, CallFailed> {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: `info` is a valid CK_TOKEN_INFO to write to.
        call("C_GetTokenInfo", self.list.C_GetTokenInfo.map(|function| unsafe { function(slot, &raw mut info) }))?;
        let pin = (info.ulMinPinLen, info.ulMaxPinLen);
        Ok(RawTokenLimits { flags: info.flags, pin, sessions: info.ulMaxSessionCount })
    }

    /// `C_GetMechanismList`: how many there are, those without a name included.
    pub(crate) fn mechanism_count(&self, slot: u64) -> Result<usize, CallFailed> {
        let mut list = vec![0; LIST];
        let mut count = LIST as CK_ULONG;
        // SAFETY: the list has room for `count` numbers.
        let code =
            self.list.C_GetMechanismList.map(|function| unsafe { function(slot, list.as_mut_ptr(), &raw mut count) });
        call("C_GetMechanismList", code)?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// `C_GetMechanismInfo`.
    pub(crate) fn mechanism_info(&self, slot: u64, mechanism: u64) -> Result<RawMechanismInfo, CallFailed> {
        let mut info = CK_MECHANISM_INFO::default();
        // SAFETY: `info` is a valid CK_MECHANISM_INFO to write to.
        let code = self.list.C_GetMechanismInfo.map(|function| unsafe { function(slot, mechanism, &raw mut info) });
        call("C_GetMechanismInfo", code)?;
        Ok(RawMechanismInfo { least: info.ulMinKeySize, most: info.ulMaxKeySize, flags: info.flags })
    }

    /// `C_GetAttributeValue` of one attribute. `None`: the module says that there is no such value.
    pub(crate) fn attribute(
        &self,
        session: u64,
        object: u64,
        number: u64,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, CallFailed> {
        let mut value = Zeroizing::new(vec![0_u8; VALUE.saturating_add(SLACK)]);
        let mut attribute =
            CK_ATTRIBUTE { type_: number, pValue: value.as_mut_ptr().cast(), ulValueLen: VALUE as CK_ULONG };
        // SAFETY: the one attribute has room for VALUE bytes, and SLACK bytes more.
        let code =
            self.list.C_GetAttributeValue.map(|function| unsafe { function(session, object, &raw mut attribute, 1) });
        call("C_GetAttributeValue", code)?;
        let length = Some(attribute.ulValueLen).filter(|length| *length != CK_UNAVAILABLE_INFORMATION);
        let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else { return Ok(None) };
        value.truncate(length.min(VALUE));
        Ok(Some(value))
    }

    /// The size that `C_Encrypt` asks for. The operation stays open: the session must be closed.
    pub(crate) fn encrypted_size(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        plaintext: &[u8],
    ) -> Result<u64, CallFailed> {
        size(self.encryption(), session, key, mechanism, plaintext)
    }

    /// The size that `C_Decrypt` asks for. The operation stays open: the session must be closed.
    pub(crate) fn decrypted_size(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        ciphertext: &[u8],
    ) -> Result<u64, CallFailed> {
        size(self.decryption(), session, key, mechanism, ciphertext)
    }

    /// `C_Encrypt` into one byte, and then into enough.
    pub(crate) fn encrypt_into_one_byte(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        plaintext: &[u8],
    ) -> Result<TooSmall, CallFailed> {
        let functions = self.encryption();
        begin(functions.0, session, key, mechanism, || {
            let mut output = vec![0_u8; OUTPUT];
            let mut finish = |room: CK_ULONG| {
                let mut length = room;
                call(functions.1.0, end(functions.1.1, session, plaintext, output.as_mut_ptr(), &mut length))
            };
            Ok(TooSmall { first: finish(1), then: finish((OUTPUT - SLACK) as CK_ULONG) })
        })
    }

    /// `C_Encrypt`, with much room.
    pub(crate) fn encrypt_anything(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CallFailed> {
        let output = operate(self.encryption(), session, key, mechanism, plaintext, OUTPUT, 0..=OUTPUT);
        output.map(|mut output| std::mem::take(&mut *output))
    }

    /// `C_Decrypt` of anything, with much room. Gives the number of bytes that came out.
    pub(crate) fn decrypt_anything(
        &self,
        session: u64,
        key: u64,
        mechanism: Mechanism<'_>,
        ciphertext: &[u8],
    ) -> Result<usize, CallFailed> {
        operate(self.decryption(), session, key, mechanism, ciphertext, OUTPUT, 0..=OUTPUT).map(|output| output.len())
    }
}

/// The answer to an output that is NULL.
fn size(
    functions: Operation,
    session: u64,
    key: u64,
    mechanism: Mechanism<'_>,
    input: &[u8],
) -> Result<u64, CallFailed> {
    begin(functions.0, session, key, mechanism, || {
        let mut length = 0;
        call(functions.1.0, end(functions.1.1, session, input, ptr::null_mut(), &mut length))?;
        Ok(length)
    })
}

/// Begins an operation and runs the rest of it while the mechanism's parameter still lives.
fn begin<T>(
    (name, init): (&'static str, Init),
    session: u64,
    key: u64,
    mechanism: Mechanism<'_>,
    rest: impl FnOnce() -> Result<T, CallFailed>,
) -> Result<T, CallFailed> {
    mechanism.with_raw(|mechanism| {
        // SAFETY: the mechanism and all that it points to are valid until `rest` is done.
        call(name, init.map(|function| unsafe { function(session, mechanism, key) }))?;
        rest().map_err(CallFailed::in_mid_operation)
    })
}

fn end(
    finish: Finish,
    session: CK_SESSION_HANDLE,
    input: &[u8],
    output: *mut CK_BYTE,
    length: &mut CK_ULONG,
) -> Option<CK_RV> {
    let (data, data_length) = (input.as_ptr().cast_mut(), input.len() as CK_ULONG);
    // SAFETY: the input is valid and only read; the output is NULL, or has SLACK bytes more than `length` says.
    finish.map(|function| unsafe { function(session, data, data_length, output, &raw mut *length) })
}

/// Name and version of an interface.
fn interface(interface: &CK_INTERFACE) -> Option<String> {
    if interface.pInterfaceName.is_null() || interface.pFunctionList.is_null() {
        return None;
    }
    // SAFETY: not null; the name ends with a NUL, and every function list begins with its version (PKCS#11 3.1, section 3.6).
    let (name, version) = unsafe {
        let name = std::ffi::CStr::from_ptr(interface.pInterfaceName.cast());
        (name.to_bytes().to_vec(), *interface.pFunctionList.cast::<CK_VERSION>())
    };
    Some(format!("{} {}.{}", text(&name), version.major, version.minor))
}
