//! The beginning of every call: it is counted, and what the control file says against it happens.

use std::env;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;
use std::{process, ptr};

use cryptoki_sys::*;

use crate::control::{self, Action};
use crate::sessions;
use crate::vendor::Imitate;

/// What remains to be changed once the real module has answered.
pub struct Begun {
    pub actions: Vec<Action>,
    pub imitate: Imitate,
}

/// Begins a call of this function. `Err`: the answer, without the real module.
pub fn start(function: &'static str) -> Result<Begun, CK_RV> {
    count(function);
    let loaded = control::current();
    let mut actions = Vec::new();
    for (index, rule) in loaded.control.rules.iter().enumerate() {
        let meant = rule.function == "*" || rule.function == function;
        if !meant || !loaded.fires(index) {
            continue;
        }
        match &rule.action {
            Action::Return(code) => return Err(code.0),
            Action::Crash => crash(),
            Action::Abort => process::abort(),
            Action::Exit(code) => process::exit(*code),
            Action::DelayMs(milliseconds) => sleep(Duration::from_millis(*milliseconds)),
            Action::Hang => {
                while control::current().identity == loaded.identity {
                    sleep(Duration::from_millis(5));
                }
            }
            Action::HangForEver => loop {
                sleep(Duration::from_secs(3600));
            },
            Action::DropSessions => sessions::drop_all(),
            Action::LogOut => sessions::log_out(),
            Action::Noise(text) => {
                let _ = std::io::stdout().write_all(text.as_bytes());
                let _ = std::io::stdout().flush();
            }
            later => actions.push(later.clone()),
        }
    }
    Ok(Begun { actions, imitate: loaded.control.imitate.clone() })
}

/// `begin!("C_Name")` begins the call, or returns its answer.
macro_rules! begin {
    ($name:literal) => {
        match $crate::call::start($name) {
            Ok(begun) => begun,
            Err(code) => return code,
        }
    };
}
pub(crate) use begin;

/// The whole of a call that nothing but [`start`] changes.
pub fn forward(function: &'static str, real: Option<impl FnOnce() -> CK_RV>) -> CK_RV {
    match (start(function), real) {
        (Err(code), _) => code,
        (Ok(_), Some(real)) => real(),
        (Ok(_), None) => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

/// One line per call, `function process thread`, in the file that `HSM_KMS_FAULT_COUNTS` names.
fn count(function: &str) {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = env::var_os("HSM_KMS_FAULT_COUNTS")?;
        let opened = File::options().create(true).append(true).open(&path);
        Some(opened.unwrap_or_else(|error| control::give_up(&format!("{}: {error}", path.display()))))
    });
    if let Some(mut file) = file.as_ref() {
        let thread = std::thread::current().id();
        // One write per line: processes and threads append to the file together.
        let _ = file.write_all(format!("{function} {} {thread:?}\n", process::id()).as_bytes());
    }
}

fn crash() -> ! {
    // SAFETY: not sound, and meant so: page 0 is never mapped, and the volatile read of it is the SIGSEGV that was asked for.
    unsafe { ptr::read_volatile(ptr::without_provenance::<u8>(8)) };
    process::abort()
}
