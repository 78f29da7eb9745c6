//! The sessions that this process has open, so that they can be limited, or closed behind the caller's back.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki_sys::{CK_SESSION_HANDLE, CK_SLOT_ID};

use crate::{imitate, real};

static OPEN: Mutex<BTreeMap<CK_SESSION_HANDLE, CK_SLOT_ID>> = Mutex::new(BTreeMap::new());

pub fn count() -> usize {
    open().len()
}

pub fn opened(session: CK_SESSION_HANDLE, slot: CK_SLOT_ID) {
    open().insert(session, slot);
}

pub fn closed(session: CK_SESSION_HANDLE) {
    open().remove(&session);
    imitate::forget(session);
}

pub fn closed_on(slot: CK_SLOT_ID) {
    let gone: Vec<_> = open().iter().filter(|(_, on)| **on == slot).map(|(session, _)| *session).collect();
    gone.into_iter().for_each(closed);
}

pub fn closed_all() {
    let gone: Vec<_> = open().keys().copied().collect();
    gone.into_iter().for_each(closed);
}

/// Closes every session; with the last one ends the login.
pub fn drop_all() {
    let Some(close) = real::list().and_then(|list| list.C_CloseSession) else { return };
    let gone: Vec<_> = open().keys().copied().collect();
    for session in gone {
        // SAFETY: C_CloseSession takes a number, whatever it is.
        unsafe { close(session) };
        closed(session);
    }
}

/// Ends the login of every session.
pub fn log_out() {
    let Some(log_out) = real::list().and_then(|list| list.C_Logout) else { return };
    let sessions: Vec<_> = open().keys().copied().collect();
    for session in sessions {
        // SAFETY: C_Logout takes a number, whatever it is.
        unsafe { log_out(session) };
    }
}

fn open() -> MutexGuard<'static, BTreeMap<CK_SESSION_HANDLE, CK_SLOT_ID>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}
