//! Vendors' users: their types, and how their PINs look.

use std::slice;

use cryptoki_sys::*;

use crate::call::begin;
use crate::real::ask;
use crate::vendor::{Imitate, Login, NamedPin};

/// Puts these functions into the list.
pub fn fill(list: &mut CK_FUNCTION_LIST) {
    list.C_Login = Some(C_Login);
}

unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    let login = begin!("C_Login").imitate.login;
    match login {
        None => ask!(C_Login(session, user, pin, length)),
        Some(Login::User(wanted)) if user != wanted => CKR_USER_TYPE_INVALID,
        // What the caller gave, for the real module's only user.
        Some(Login::User(_)) => ask!(C_Login(session, CKU_USER, pin, length)),
        Some(Login::Needless(_)) => CKR_OK,
        Some(Login::Name(NamedPin { name, wrong })) => {
            // SAFETY: not null, so by the caller's word so many bytes.
            let given = if pin.is_null() { &[] } else { unsafe { slice::from_raw_parts(pin, length as usize) } };
            let code = match given.strip_prefix(format!("{name}:").as_bytes()) {
                // The rest of the caller's PIN.
                Some(rest) => ask!(C_Login(session, user, rest.as_ptr().cast_mut(), rest.len() as CK_ULONG)),
                None => CKR_PIN_INCORRECT,
            };
            if code == CKR_PIN_INCORRECT { wrong.map_or(code, |wrong| wrong.0) } else { code }
        }
    }
}

/// Where nobody logs in, every session has the user's rights.
pub fn known_by_the_device(imitate: &Imitate, session: CK_SESSION_HANDLE) {
    if let Some(Login::Needless(pin)) = &imitate.login {
        let mut pin = pin.clone().into_bytes();
        // A PIN of ours; after the first session, "already logged in" is right.
        ask!(C_Login(session, CKU_USER, pin.as_mut_ptr(), pin.len() as CK_ULONG));
    }
}
