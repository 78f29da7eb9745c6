//! The functions whose results the control file can change.

use std::ffi::c_void;
use std::slice;

use cryptoki_sys::*;

use crate::call::begin;
use crate::control::{Action, AttributeLie, AttributeName};
use crate::real::ask;
use crate::{imitate, login, sessions};

/// Puts these functions into the list.
pub fn fill(list: &mut CK_FUNCTION_LIST) {
    list.C_Finalize = Some(C_Finalize);
    list.C_GetInfo = Some(C_GetInfo);
    list.C_GetSlotList = Some(C_GetSlotList);
    list.C_GetTokenInfo = Some(C_GetTokenInfo);
    list.C_OpenSession = Some(C_OpenSession);
    list.C_CloseSession = Some(C_CloseSession);
    list.C_CloseAllSessions = Some(C_CloseAllSessions);
    list.C_GetAttributeValue = Some(C_GetAttributeValue);
    list.C_FindObjects = Some(C_FindObjects);
    list.C_EncryptInit = Some(C_EncryptInit);
    list.C_Encrypt = Some(C_Encrypt);
    list.C_DecryptInit = Some(C_DecryptInit);
    list.C_Decrypt = Some(C_Decrypt);
    list.C_WrapKey = Some(C_WrapKey);
}

unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    begin!("C_Finalize");
    let code = ask!(C_Finalize(reserved));
    if code == CKR_OK {
        sessions::closed_all();
    }
    code
}

unsafe extern "C" fn C_GetInfo(info: *mut CK_INFO) -> CK_RV {
    let begun = begin!("C_GetInfo");
    let code = ask!(C_GetInfo(info));
    if code != CKR_OK {
        return code;
    }
    // SAFETY: the real module has just filled what the caller pointed to.
    let info = unsafe { &mut *info };
    for action in &begun.actions {
        if let Action::ModuleInfo(lie) = action {
            put(&mut info.manufacturerID, lie.manufacturer.as_ref());
            put(&mut info.libraryDescription, lie.description.as_ref());
        }
    }
    code
}

unsafe extern "C" fn C_GetSlotList(present: CK_BBOOL, list: *mut CK_SLOT_ID, count: *mut CK_ULONG) -> CK_RV {
    let begun = begin!("C_GetSlotList");
    let code = ask!(C_GetSlotList(present, list, count));
    if code == CKR_OK && begun.actions.iter().any(|action| matches!(action, Action::NoSlots)) {
        // SAFETY: the real module has just written there.
        unsafe { *count = 0 };
    }
    code
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let begun = begin!("C_GetTokenInfo");
    let code = ask!(C_GetTokenInfo(slot, info));
    if code != CKR_OK {
        return code;
    }
    // SAFETY: the real module has just filled what the caller pointed to.
    let info = unsafe { &mut *info };
    for action in &begun.actions {
        if let Action::TokenInfo(lie) = action {
            put(&mut info.label, lie.label.as_ref());
            put(&mut info.manufacturerID, lie.manufacturer.as_ref());
            put(&mut info.model, lie.model.as_ref());
            put(&mut info.serialNumber, lie.serial.as_ref());
            info.flags |= lie.flags.iter().fold(0, |flags, flag| flags | flag.bit());
        }
    }
    code
}

/// A text field, padded with blanks.
fn put(field: &mut [CK_BYTE], text: Option<&String>) {
    if let Some(text) = text {
        field.fill(b' ');
        field.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    }
}

unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    let begun = begin!("C_OpenSession");
    if begun.imitate.sessions.is_some_and(|most| sessions::count() >= most) {
        return CKR_SESSION_COUNT;
    }
    let code = ask!(C_OpenSession(slot, flags, application, notify, session));
    if code == CKR_OK {
        // SAFETY: the real module has just written the handle there.
        let session = unsafe { *session };
        sessions::opened(session, slot);
        login::known_by_the_device(&begun.imitate, session);
    }
    code
}

unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    begin!("C_CloseSession");
    sessions::closed(session);
    ask!(C_CloseSession(session))
}

unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    begin!("C_CloseAllSessions");
    sessions::closed_on(slot);
    ask!(C_CloseAllSessions(slot))
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    let begun = begin!("C_GetAttributeValue");
    let lies: Vec<_> = begun
        .actions
        .iter()
        .filter_map(|action| if let Action::Attributes(lies) = action { Some(lies) } else { None })
        .collect();
    let code = ask!(C_GetAttributeValue(session, object, template, count));
    let per_attribute = [CKR_OK, CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_SENSITIVE, CKR_BUFFER_TOO_SMALL];
    if lies.is_empty() || template.is_null() || !per_attribute.contains(&code) {
        return code;
    }
    // SAFETY: not null, so by the caller's word an array of this length.
    let template = unsafe { slice::from_raw_parts_mut(template, count as usize) };
    let mut lied = None;
    for attribute in &mut *template {
        let name = AttributeName(attribute.type_);
        if let Some(lie) = lies.iter().find_map(|lies| lies.get(&name)) {
            lied = Some(tell(attribute, lie));
        }
    }
    match lied {
        None => code,
        Some(CKR_OK) if template.iter().any(|attribute| attribute.ulValueLen == CK_UNAVAILABLE_INFORMATION) => {
            CKR_ATTRIBUTE_TYPE_INVALID
        }
        Some(code) => code,
    }
}

fn tell(attribute: &mut CK_ATTRIBUTE, lie: &AttributeLie) -> CK_RV {
    let bytes = match lie {
        AttributeLie::Unavailable(_) => {
            attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
            return CKR_ATTRIBUTE_TYPE_INVALID;
        }
        AttributeLie::Flag(flag) => vec![CK_BYTE::from(*flag)],
        AttributeLie::Number(number) => number.to_ne_bytes().to_vec(),
        AttributeLie::List(list) => list.iter().flat_map(|number| number.to_ne_bytes()).collect(),
    };
    // What the real module left there is the room, or the length that it filled, or "no such attribute".
    attribute.ulValueLen = bytes.len() as CK_ULONG;
    if !attribute.pValue.is_null() {
        // SAFETY: the caller has asked for the length first, and was told this one: cryptoki, pkcs11-tool and our own callers
        // do. The value then has room for it.
        unsafe { attribute.pValue.cast::<CK_BYTE>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
    CKR_OK
}

unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    let begun = begin!("C_FindObjects");
    let code = ask!(C_FindObjects(session, objects, most, count));
    if code == CKR_OK && begun.actions.iter().any(|action| matches!(action, Action::FindNothing)) {
        // SAFETY: the real module has just written there.
        unsafe { *count = 0 };
    }
    code
}

unsafe extern "C" fn C_EncryptInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    let begun = begin!("C_EncryptInit");
    // SAFETY: the caller's own pointers.
    unsafe { imitate::encrypt_init(&begun.imitate, session, mechanism, key) }
}

unsafe extern "C" fn C_Encrypt(
    session: CK_SESSION_HANDLE,
    input: *mut CK_BYTE,
    input_length: CK_ULONG,
    output: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let begun = begin!("C_Encrypt");
    // SAFETY: the caller's own pointers.
    let code = unsafe { imitate::encrypt(&begun.imitate, session, input, input_length, output, length) };
    // SAFETY: the output of the call that has just ended.
    unsafe { change_output(&begun.actions, code, output, length) };
    code
}

unsafe extern "C" fn C_DecryptInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    let begun = begin!("C_DecryptInit");
    // SAFETY: the caller's own pointers.
    unsafe { imitate::decrypt_init(&begun.imitate, session, mechanism, key) }
}

unsafe extern "C" fn C_Decrypt(
    session: CK_SESSION_HANDLE,
    input: *mut CK_BYTE,
    input_length: CK_ULONG,
    output: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let begun = begin!("C_Decrypt");
    // SAFETY: the caller's own pointers.
    let code = unsafe { imitate::decrypt(&begun.imitate, session, input, input_length, output, length) };
    // SAFETY: the output of the call that has just ended.
    unsafe { change_output(&begun.actions, code, output, length) };
    code
}

unsafe extern "C" fn C_WrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    wrapping: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    output: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let begun = begin!("C_WrapKey");
    let code = ask!(C_WrapKey(session, mechanism, wrapping, key, output, length));
    // SAFETY: the output of the call that has just ended.
    unsafe { change_output(&begun.actions, code, output, length) };
    code
}

/// # Safety
/// `code`, `output` and `length` are those of a call that has ended; with CKR_OK, `length` bytes of `output` were written,
/// unless `output` is null.
unsafe fn change_output(actions: &[Action], code: CK_RV, output: *mut CK_BYTE, length: *mut CK_ULONG) {
    if code != CKR_OK || length.is_null() {
        return;
    }
    for action in actions {
        // SAFETY: not null, and written by the call.
        let length = unsafe { &mut *length };
        if output.is_null() {
            if let Action::SizeQuery(more) = action {
                *length = length.wrapping_add_signed(*more);
            }
            continue;
        }
        // SAFETY: by the caller's word. Before any `Length`, which is why that one only changes the number.
        let bytes = || unsafe { slice::from_raw_parts_mut(output, *length as usize) };
        match action {
            Action::FlipBit(bit) if *length > 0 => {
                let bytes = bytes();
                let bit = (*bit % (bytes.len() as u64 * 8)) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Action::Truncate(count) => {
                let kept = length.saturating_sub(*count);
                bytes()[kept as usize..].fill(0);
                *length = kept;
            }
            // SAFETY: not sound, and meant so: what lies behind the output is the caller's, if it left room there.
            Action::Overrun(count) => unsafe {
                output.add(*length as usize).write_bytes(0xA5, *count);
            },
            Action::Length(more) => {
                *length = length.wrapping_add_signed(*more);
                return;
            }
            _ => {}
        }
    }
}
