//! Wrapping and unwrapping keys (PKCS#11 3.1, sections 5.18.3 and 5.18.4), with mechanisms that cryptoki has no name for.

use std::ptr;

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BBOOL, CK_FALSE, CK_KEY_TYPE, CK_MECHANISM, CK_OBJECT_CLASS, CK_TRUE, CK_ULONG,
    CKA_CLASS, CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_SENSITIVE, CKA_TOKEN, CKK_GENERIC_SECRET, CKO_SECRET_KEY,
};
use zeroize::Zeroizing;

use super::{CallFailed, Functions, Mechanism, SLACK, cut, timed};

impl Functions {
    /// `C_WrapKey`. Gives exactly `expected` bytes, or an error.
    pub(crate) fn wrap(
        &self,
        session: u64,
        mechanism: Mechanism<'_>,
        wrapping: u64,
        key: u64,
        expected: usize,
    ) -> Result<Vec<u8>, CallFailed> {
        const NAME: &str = "C_WrapKey";
        let mut output = Zeroizing::new(vec![0_u8; expected.saturating_add(SLACK)]);
        let mut length = expected as CK_ULONG;
        let written = output.as_mut_ptr();
        let code = || {
            self.list.C_WrapKey.map(|function| {
                mechanism.with_raw(|mechanism| {
                    // SAFETY: the mechanism and its parameter are valid for the call; the output has SLACK bytes more than
                    // the module is told.
                    unsafe { function(session, mechanism, wrapping, key, written, &raw mut length) }
                })
            })
        };
        timed(NAME, code).map_err(CallFailed::in_mid_operation)?;
        let mut output = cut(NAME, output, length, expected, &(expected..=expected))?;
        Ok(std::mem::take(&mut *output))
    }

    /// `C_UnwrapKey` with a mechanism that takes no parameter. Gives a secret that is kept nowhere and can be read: the seed
    /// must leave the token.
    pub(crate) fn unwrap(
        &self,
        session: u64,
        mechanism: u64,
        unwrapping: u64,
        wrapped: &[u8],
    ) -> Result<ObjectHandle, CallFailed> {
        let mut mechanism = CK_MECHANISM { mechanism, pParameter: ptr::null_mut(), ulParameterLen: 0 };
        let (mut class, mut kind): (CK_OBJECT_CLASS, CK_KEY_TYPE) = (CKO_SECRET_KEY, CKK_GENERIC_SECRET);
        let (mut yes, mut no): (CK_BBOOL, CK_BBOOL) = (CK_TRUE, CK_FALSE);
        let mut template = [
            attribute(CKA_CLASS, &mut class),
            attribute(CKA_KEY_TYPE, &mut kind),
            attribute(CKA_TOKEN, &mut no),
            attribute(CKA_SENSITIVE, &mut no),
            attribute(CKA_EXTRACTABLE, &mut yes),
        ];
        let (bytes, length) = (wrapped.as_ptr().cast_mut(), wrapped.len() as CK_ULONG);
        let (attributes, count) = (template.as_mut_ptr(), template.len() as CK_ULONG);
        let mut handle = 0;
        let code = || {
            self.list.C_UnwrapKey.map(|function| {
                // SAFETY: mechanism, input, template and the values in it are valid for the call; the module only writes the
                // handle.
                unsafe {
                    function(session, &raw mut mechanism, unwrapping, bytes, length, attributes, count, &raw mut handle)
                }
            })
        };
        timed("C_UnwrapKey", code)?;
        // SAFETY: the module has just given this handle.
        Ok(unsafe { ObjectHandle::new_from_raw(handle) })
    }
}

fn attribute<T>(name: CK_ATTRIBUTE_TYPE, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE { type_: name, pValue: (&raw mut *value).cast(), ulValueLen: size_of::<T>() as CK_ULONG }
}
