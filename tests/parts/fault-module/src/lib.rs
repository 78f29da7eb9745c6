//! A PKCS#11 module for the tests: forwards every function to a real module, and changes what a control file says.
//!
//! tests/parts/README.md describes the control file. Nothing here is a product; a mistake in a test's control file ends the
//! process with a text on standard error.
//!
//! SAFETY of the whole: the exported functions are called by a PKCS#11 caller, who must keep the rules of the standard
//! (pointers valid for the lengths given). They go on to the real module unchanged, or are read and written within them.

#![allow(non_snake_case, reason = "the functions bear their PKCS#11 names")]

mod call;
mod changed;
#[path = "../../../../src/profile/codes.rs"]
#[allow(dead_code, unreachable_pub, reason = "the product's own table of names, used in part")]
mod codes;
mod control;
mod imitate;
mod login;
mod mechanisms;
mod plain;
mod real;
mod sessions;
mod template;
#[cfg(test)]
mod tests;
mod vendor;

use std::ptr;
use std::sync::OnceLock;

use cryptoki_sys::*;

use crate::control::Interface;

/// The 2.40 function list of this module.
///
/// # Safety
/// `list` is null or points to a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(functions) = functions() else { return CKR_GENERAL_ERROR };
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: not null, so by the caller's word a place for a pointer.
    unsafe { list.write(ptr::from_ref(functions).cast_mut()) };
    CKR_OK
}

/// The 2.40 function list again, or what the control file's `interface` says.
///
/// # Safety
/// As C_GetInterface in PKCS#11 3.0, section 5.4.5.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    match control::current().control.interface {
        Interface::Own => {}
        Interface::Absent => return CKR_FUNCTION_NOT_SUPPORTED,
        Interface::Real => return real::interface(name, version, interface, flags),
        Interface::Other => return real::other_interface(name, version, interface, flags),
    }
    let Some(functions) = functions() else { return CKR_GENERAL_ERROR };
    if interface.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let own = OWN_INTERFACE.get_or_init(|| {
        Shared(CK_INTERFACE {
            pInterfaceName: c"PKCS 11".as_ptr().cast_mut().cast(),
            pFunctionList: ptr::from_ref(functions).cast_mut().cast(),
            flags: 0,
        })
    });
    // SAFETY: not null, so by the caller's word a place for a pointer.
    unsafe { interface.write(ptr::from_ref(&own.0).cast_mut()) };
    CKR_OK
}

struct Shared(CK_INTERFACE);

// SAFETY: its pointers lead to constants, and it is never written after it was made.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

static OWN_INTERFACE: OnceLock<Shared> = OnceLock::new();

fn functions() -> Option<&'static CK_FUNCTION_LIST> {
    static FUNCTIONS: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
    // The real module must be there before any function is called.
    real::list()?;
    Some(FUNCTIONS.get_or_init(|| {
        let mut list = CK_FUNCTION_LIST { version: CK_VERSION { major: 2, minor: 40 }, ..Default::default() };
        plain::fill(&mut list);
        changed::fill(&mut list);
        login::fill(&mut list);
        mechanisms::fill(&mut list);
        template::fill(&mut list);
        list.C_GetFunctionList = Some(C_GetFunctionList);
        list
    }))
}
