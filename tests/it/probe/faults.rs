//! A module that crashes, hangs, keeps keys or refuses the PIN, and a probe that is killed.

use std::process::Stdio;

use rustix::process::Pid;
use serde_json::{Value, json};

use super::{command, in_front, objects, output, probe};
use crate::harness::{TestToken, wait_for, write_secret};
use crate::processes::{child_of, is_alive};

/// A crash costs the step in which it happens, and one more login with the PIN that the token has taken.
#[test]
fn a_crash_and_a_hang_are_findings() {
    for (action, outcome) in [
        (json!("crash"), "crashed: signal 11"),
        (json!("hang_for_ever"), "hung: no answer in 8 s"),
        (json!({"exit": 3}), "crashed: exit code 3"),
    ] {
        let token = TestToken::softhsm2();
        let (section, fault) = in_front(&token);
        // The third encryption: within the first seal, after it was tried with one byte.
        fault.set(&json!({"rules": [{"function": "C_Encrypt", "after": 2, "times": 1, "action": action}]}));
        let (report, code) = probe(&section, &["--step-limit", "8"]);
        assert_eq!(code, 1, "{report:#}");
        assert_eq!(report["faults"], json!([{"step": "seal aes-gcm/random-sent-12", "outcome": outcome}]));
        assert_eq!(report["seals"]["aes-gcm/random-sent-12"], json!({"outcome": outcome}));
        assert_eq!(report["chosen"], "aes-gcm/random-sent-16", "{report:#}");
        assert_eq!(report["kek"]["outcome"], "works", "{report:#}");
        assert_eq!((&report["logins"], fault.calls("C_Login")), (&json!(2), 2));
        assert_eq!(report["clean_up"]["left"], 0);
        assert_eq!(objects(&token), 0);
    }
}

/// The step was trying a key on the token when the process died: the next one finds it by its label.
#[test]
fn a_key_of_a_step_that_crashed_is_destroyed() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    // The second copy is that of a key on the token; the first was a session key.
    fault.set(&json!({"rules": [{"function": "C_CopyObject", "after": 1, "times": 1, "action": "crash"}]}));
    let (report, code) = probe(&section, &[]);
    assert_eq!((code, &report["attributes"]), (1, &json!("crashed: signal 11")), "{report:#}");
    assert_eq!(report["clean_up"]["left"], 0);
    assert_eq!(objects(&token), 0);
}

#[test]
fn keys_that_cannot_be_destroyed_are_named() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    fault.always("C_DestroyObject", &json!({"return": "CKR_FUNCTION_FAILED"}));
    let (report, code) = probe(&section, &[]);
    assert_eq!(code, 1);
    let left = report["clean_up"]["left"].as_u64().unwrap();
    assert!(left > 0 && report["keys"]["destroy"].as_str().unwrap().starts_with("differs: "), "{report:#}");
    let label = report["clean_up"]["label"].as_str().unwrap();
    let output = output(&section, &[]);
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("KEYS MAY BE LEFT on the token; ours have the label hsm-kms-probe-"), "{report}");
    assert!(label.starts_with("hsm-kms-probe-"));
}

#[test]
fn a_module_that_crashes_at_the_login_is_not_asked_again() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    fault.always("C_Login", &json!("crash"));
    let output = output(&section, &["--json"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), fault.calls("C_Login")), (Some(3), 1), "{error}");
    assert!(error.contains("the login: crashed: signal 11") && output.stdout.is_empty(), "{error}");
}

/// The PIN was good, and is refused after a crash: somebody changed it. That is the end of it.
#[test]
fn a_pin_that_is_refused_after_a_crash_ends_the_probe() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    fault.set(&json!({"rules": [
        {"function": "C_Encrypt", "times": 1, "action": "crash"},
        {"function": "C_Login", "after": 1, "action": {"return": "CKR_PIN_INCORRECT"}},
    ]}));
    let (report, code) = probe(&section, &[]);
    assert_eq!((code, fault.calls("C_Login")), (1, 2), "{report:#}");
    let why = report["seals"]["aes-cbc-hmac"]["outcome"].as_str().unwrap();
    assert!(why.starts_with("untried: no new start: C_Login returned CKR_PIN_INCORRECT"), "{why}");
    assert_eq!(report["clean_up"]["left"], Value::Null);
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let token = TestToken::new();
    let (mut section, fault) = in_front(&token);
    let wrong = token.directory().join("wrong");
    write_secret(&wrong, "wrong-pin-1");
    section["pin"]["file"] = json!(wrong);
    let output = output(&section, &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), fault.calls("C_Login")), (Some(1), 1), "{error}");
    assert!(error.contains("why: C_Login returned CKR_PIN_INCORRECT") && !error.contains("wrong-pin-1"), "{error}");
}

#[test]
fn a_pin_on_its_last_try_is_not_tried() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    for flag in ["CKF_USER_PIN_FINAL_TRY", "CKF_USER_PIN_LOCKED"] {
        fault.always("C_GetTokenInfo", &json!({"token_info": {"flags": [flag]}}));
        let output = output(&section, &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), fault.calls("C_Login")), (Some(1), 0), "{error}");
        assert!(error.contains(flag) && error.contains("no PIN was tried"), "{error}");
    }
}

/// Ctrl-C, a kill, a closed terminal: the process that probes finishes its step, destroys its keys and ends.
#[test]
fn a_probe_that_is_killed_leaves_nothing() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    // The second copy is that of a key on the token; the first was a session key.
    fault.set(&json!({"rules": [{"function": "C_CopyObject", "after": 1, "action": "hang"}]}));
    let mut probe = command(&section, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the copy", || (fault.calls("C_CopyObject") == 2).then_some(()));
    assert_eq!(objects(&token), 1);
    let worker = child_of(Pid::from_child(&probe)).unwrap();
    probe.kill().unwrap();
    probe.wait().unwrap();
    fault.clear();
    // Nobody looks before it is gone: SoftHSM2 gives a key that is destroyed back to a process that reads it at that moment.
    wait_for("the end of the process that made it", || (!is_alive(worker)).then_some(()));
    assert_eq!(objects(&token), 0);
}

/// What needs no login is asked before it: a crash there costs none.
#[test]
fn a_crash_before_the_login_costs_no_login() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    fault.once("C_GetMechanismList", &json!("crash"));
    let (report, code) = probe(&section, &[]);
    assert_eq!((code, &report["mechanisms"]), (1, &json!("crashed: signal 11")), "{report:#}");
    assert_eq!((&report["logins"], fault.calls("C_Login")), (&json!(1), 1));
    assert_eq!(report["kek"]["outcome"], "works", "{report:#}");
}
