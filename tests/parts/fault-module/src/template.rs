//! What vendors take, refuse and demand in the template of a key that is to stay on the token.

use std::slice;

use cryptoki_sys::*;

use crate::call::begin;
use crate::control::AttributeName;
use crate::imitate::random;
use crate::real::ask;
use crate::vendor::Template;

/// Puts these functions into the list.
pub fn fill(list: &mut CK_FUNCTION_LIST) {
    list.C_GenerateKey = Some(C_GenerateKey);
}

unsafe extern "C" fn C_GenerateKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    let imitated = begin!("C_GenerateKey").imitate.template;
    let Some(imitated) = imitated.filter(|_| !template.is_null()) else {
        return ask!(C_GenerateKey(session, mechanism, template, count, key));
    };
    // SAFETY: not null, so by the caller's word so many attributes.
    let given = unsafe { slice::from_raw_parts_mut(template, count as usize) };
    if let Err(code) = judge(&imitated, session, given) {
        return code;
    }
    // What such a vendor makes of a key by itself. The standard attributes that were given are kept.
    let (mut class, mut bytes, mut id) = (CKO_SECRET_KEY, 32 as CK_ULONG, random(16));
    let (mut yes, mut no): (CK_BBOOL, CK_BBOOL) = (CK_TRUE, CK_FALSE);
    let refused = |right: &CK_ATTRIBUTE_TYPE| imitated.refuse.contains(&AttributeName(*right));
    let all = imitated.only.is_some();
    let mut whole = Vec::new();
    if all {
        whole.push(attribute(CKA_CLASS, (&raw mut class).cast(), size_of::<CK_OBJECT_CLASS>()));
        whole.push(attribute(CKA_VALUE_LEN, (&raw mut bytes).cast(), size_of::<CK_ULONG>()));
        whole.push(attribute(CKA_ID, id.as_mut_ptr().cast(), id.len()));
        whole.extend(OWN_RIGHTS.map(|right| attribute(right, (&raw mut yes).cast(), 1)));
    }
    let without = NO_RIGHTS.iter().filter(|right| all || refused(right));
    whole.extend(without.map(|right| attribute(*right, (&raw mut no).cast(), 1)));
    whole.retain(|own| !given.iter().any(|given| given.type_ == own.type_));
    whole.extend(given.iter().filter(|given| given.type_ < CKA_VENDOR_DEFINED).copied());
    // SoftHSM2 takes no more after it.
    whole.sort_by_key(|attribute| attribute.type_ == CKA_MODIFIABLE);
    // A template of ours, whose values live until the call has ended.
    ask!(C_GenerateKey(session, mechanism, whole.as_mut_ptr(), whole.len() as CK_ULONG, key))
}

const OWN_RIGHTS: [CK_ATTRIBUTE_TYPE; 5] = [CKA_TOKEN, CKA_PRIVATE, CKA_SENSITIVE, CKA_ENCRYPT, CKA_DECRYPT];
const NO_RIGHTS: [CK_ATTRIBUTE_TYPE; 8] =
    [CKA_EXTRACTABLE, CKA_WRAP, CKA_UNWRAP, CKA_SIGN, CKA_VERIFY, CKA_DERIVE, CKA_COPYABLE, CKA_MODIFIABLE];

/// What the vendor says to this template.
fn judge(imitated: &Template, session: CK_SESSION_HANDLE, given: &mut [CK_ATTRIBUTE]) -> Result<(), CK_RV> {
    if !is_true(given, CKA_TOKEN) && imitated.only.is_none() {
        return Ok(());
    }
    let among = |list: &[AttributeName], attribute: &CK_ATTRIBUTE| list.contains(&AttributeName(attribute.type_));
    if given.iter().any(|attribute| among(&imitated.refuse, attribute)) {
        return Err(imitated.refused.map_or(CKR_ATTRIBUTE_TYPE_INVALID, |code| code.0));
    }
    if !imitated.explicit.iter().all(|name| given.iter().any(|attribute| attribute.type_ == name.0)) {
        return Err(CKR_TEMPLATE_INCOMPLETE);
    }
    if imitated.only.as_ref().is_some_and(|only| given.iter().any(|attribute| !among(only, attribute))) {
        return Err(CKR_TEMPLATE_INCONSISTENT);
    }
    if !imitated.need.iter().all(|AttributeName(needed)| is_true(given, *needed)) {
        return Err(CKR_TEMPLATE_INCOMPLETE);
    }
    if !imitated.unique {
        return Ok(());
    }
    if !given.iter().any(|attribute| attribute.type_ == CKA_LABEL && attribute.ulValueLen > 0) {
        return Err(CKR_ATTRIBUTE_VALUE_INVALID);
    }
    let Some(id) = given.iter_mut().find(|attribute| attribute.type_ == CKA_ID) else { return Ok(()) };
    let (mut found, mut count) = (0, 0);
    // The caller's own attribute as a template of one, and places of ours for the answer.
    ask!(C_FindObjectsInit(session, id, 1));
    ask!(C_FindObjects(session, &raw mut found, 1, &raw mut count));
    ask!(C_FindObjectsFinal(session));
    if count == 0 { Ok(()) } else { Err(CKR_ATTRIBUTE_VALUE_INVALID) }
}

fn is_true(given: &[CK_ATTRIBUTE], name: CK_ATTRIBUTE_TYPE) -> bool {
    let found = given.iter().find(|attribute| attribute.type_ == name);
    // SAFETY: a flag of the caller's, with the length of one.
    found.is_some_and(|flag| flag.ulValueLen == 1 && unsafe { *flag.pValue.cast::<CK_BBOOL>() } == CK_TRUE)
}

fn attribute(type_: CK_ATTRIBUTE_TYPE, value: CK_VOID_PTR, length: usize) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE { type_, pValue: value, ulValueLen: length as CK_ULONG }
}
