//! The real module behind this one: named by `HSM_KMS_FAULT_FORWARD`, loaded once.

use std::env;
use std::ptr;
use std::sync::OnceLock;

use cryptoki_sys::*;

struct Real {
    library: Pkcs11,
    list: CK_FUNCTION_LIST,
}

/// Its 2.40 function list. `None`: it could not be loaded; standard error says why.
pub fn list() -> Option<&'static CK_FUNCTION_LIST> {
    real().map(|real| &real.list)
}

/// Its own answer to C_GetInterface: calls through that pass this module by.
pub fn interface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    match real() {
        // SAFETY: the caller's arguments, unchanged. C_GetInterface was found in the library.
        Some(real) if real.library.C_GetInterface.is_ok() => unsafe {
            real.library.C_GetInterface(name, version, interface, flags)
        },
        _ => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

/// The same of another module.
pub fn other_interface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    static OTHER: OnceLock<Option<Real>> = OnceLock::new();
    match loaded(&OTHER, "HSM_KMS_FAULT_OTHER") {
        // SAFETY: as above.
        Some(other) if other.library.C_GetInterface.is_ok() => unsafe {
            other.library.C_GetInterface(name, version, interface, flags)
        },
        _ => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

fn real() -> Option<&'static Real> {
    static REAL: OnceLock<Option<Real>> = OnceLock::new();
    loaded(&REAL, "HSM_KMS_FAULT_FORWARD")
}

fn loaded(module: &'static OnceLock<Option<Real>>, variable: &str) -> Option<&'static Real> {
    module.get_or_init(|| load(variable).map_err(|reason| eprintln!("fault module: {reason}")).ok()).as_ref()
}

fn load(variable: &str) -> Result<Real, String> {
    let path = env::var_os(variable).ok_or_else(|| format!("{variable} names no module"))?;
    // SAFETY: the test's environment names a PKCS#11 module, whose initialisers are meant to run.
    let library = unsafe { Pkcs11::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut list = ptr::null_mut();
    // SAFETY: `list` is a place for a pointer.
    let code = unsafe { library.C_GetFunctionList(&raw mut list) };
    if code != CKR_OK || list.is_null() {
        return Err(format!("{}: C_GetFunctionList returned {code:#x}", path.display()));
    }
    // SAFETY: the module said CKR_OK, so this is its function list; it lives as long as the library, which stays loaded.
    let list = unsafe { *list };
    Ok(Real { library, list })
}

/// `ask!(C_Name(arguments))`: the real function's answer.
macro_rules! ask {
    ($name:ident($($argument:expr),*)) => {
        match $crate::real::list().and_then(|list| list.$name) {
            // SAFETY: the caller's own arguments, or ones made in their place that keep the same rules (each place says so).
            Some(function) => unsafe { function($($argument),*) },
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}
pub(crate) use ask;
