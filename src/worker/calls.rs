//! PKCS#11 calls as they travel to the front: by number, and named there. A worker holds the vendor's code, so what it sends is
//! looked up: no call makes a name of its own.

use crate::pkcs11::{TimedCall, take_calls};
use crate::profile::code_name;
use crate::wire::link;

/// The functions that serve RPCs and log in. A number is a place in this list.
const FUNCTIONS: [&str; 15] = [
    "C_Decrypt",
    "C_DecryptInit",
    "C_DecryptMessage",
    "C_Encrypt",
    "C_EncryptInit",
    "C_EncryptMessage",
    "C_Login",
    "C_MessageDecryptFinal",
    "C_MessageDecryptInit",
    "C_MessageEncryptFinal",
    "C_MessageEncryptInit",
    "C_Sign",
    "C_SignInit",
    "C_UnwrapKey",
    "C_WrapKey",
];

/// The calls of this thread since the last reply.
pub(super) fn calls() -> Vec<link::Call> {
    take_calls().iter().filter_map(call).collect()
}

fn call(call: &TimedCall) -> Option<link::Call> {
    let function = (0..).zip(FUNCTIONS).find(|(_, name)| *name == call.function)?.0;
    let nanoseconds = u64::try_from(call.duration.as_nanos()).unwrap_or(u64::MAX);
    Some(link::Call { function, code: call.code, nanoseconds })
}

/// Names of function and return code. What has none is `other`, a vendor's own code `vendor`.
pub fn call_names(call: &link::Call) -> (&'static str, &'static str) {
    let function = usize::try_from(call.function).ok().and_then(|number| FUNCTIONS.get(number));
    let code = match call.code {
        cryptoki_sys::CKR_OK => "CKR_OK",
        code if code >= cryptoki_sys::CKR_VENDOR_DEFINED => "vendor",
        code => code_name(code).unwrap_or("other"),
    };
    (function.unwrap_or(&"other"), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_worker_sends_has_one_of_few_names() {
        let names = |function, code| call_names(&link::Call { function, code, nanoseconds: 0 });
        assert_eq!(names(3, 0), ("C_Encrypt", "CKR_OK"));
        assert_eq!(names(6, 0xa0), ("C_Login", "CKR_PIN_INCORRECT"));
        assert_eq!(names(u32::MAX, u64::MAX), ("other", "vendor"));
        assert_eq!(names(15, 0x7fff_fff0), ("other", "other"));
        let all: std::collections::BTreeSet<_> = (0..0x400).map(|code| names(0, code).1).collect();
        assert!(all.len() < 120, "{}", all.len());
        assert!(all.iter().all(|name| *name == "other" || name.starts_with("CKR_")));
    }
}
