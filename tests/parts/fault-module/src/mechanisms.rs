//! What the module says that it can do.

use cryptoki_sys::*;

use crate::call::begin;
use crate::real::ask;

/// Puts these functions into the list.
pub fn fill(list: &mut CK_FUNCTION_LIST) {
    list.C_GetMechanismList = Some(C_GetMechanismList);
    list.C_GetMechanismInfo = Some(C_GetMechanismInfo);
}

unsafe extern "C" fn C_GetMechanismList(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) -> CK_RV {
    let imitate = begin!("C_GetMechanismList").imitate;
    if count.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let mut real: Vec<CK_MECHANISM_TYPE> = vec![0; 1024];
    let mut length = real.len() as CK_ULONG;
    // A list and a length of ours.
    let code = ask!(C_GetMechanismList(slot, real.as_mut_ptr(), &raw mut length));
    if code != CKR_OK {
        return code;
    }
    real.truncate(length as usize);
    real.retain(|mechanism| !imitate.hidden.contains(mechanism));
    if let Some(number) = imitate.mechanism {
        real.iter_mut().filter(|mechanism| **mechanism == CKM_AES_GCM).for_each(|mechanism| *mechanism = number);
    }
    real.extend(&imitate.listed);
    let length = real.len() as CK_ULONG;
    // SAFETY: not null, so by the caller's word a number. The list has room for so many, if it is not null.
    unsafe {
        let room = std::mem::replace(&mut *count, length);
        if list.is_null() {
            return CKR_OK;
        }
        if room < length {
            return CKR_BUFFER_TOO_SMALL;
        }
        list.copy_from_nonoverlapping(real.as_ptr(), real.len());
    }
    CKR_OK
}

unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    let imitate = begin!("C_GetMechanismInfo").imitate;
    if imitate.listed.contains(&mechanism) && !info.is_null() {
        let flags = CKF_ENCRYPT | CKF_DECRYPT;
        // SAFETY: not null, so by the caller's word a place for it.
        unsafe { info.write(CK_MECHANISM_INFO { ulMinKeySize: 16, ulMaxKeySize: 32, flags }) };
        return CKR_OK;
    }
    match imitate.real_mechanism(mechanism) {
        Some(mechanism) => ask!(C_GetMechanismInfo(slot, mechanism, info)),
        None => CKR_MECHANISM_INVALID,
    }
}
