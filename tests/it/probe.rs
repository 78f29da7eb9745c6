//! `hsm-kms hsm probe`: its findings on real modules and on imitated ones, and that it leaves a token as it was.

mod drafts;
mod faults;

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::fault_module::FaultModule;
use crate::harness::{LABEL, TestToken, program, run_ceremony_on, text};
use crate::parts;
use crate::refusal::refusal;
use crate::yubihsm::device::Device;

/// `hsm-kms hsm probe` on the token of this section.
fn command(section: &Value, arguments: &[&str]) -> Command {
    let mut command = program();
    for (name, value) in section["environment"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    command.args(["hsm", "probe", "--module", section["module"].as_str().unwrap()]);
    command.args(["--token", section["label"].as_str().unwrap()]);
    command.args(["--pin-file", section["pin"]["file"].as_str().unwrap()]).args(arguments);
    command
}

fn output(section: &Value, arguments: &[&str]) -> Output {
    command(section, arguments).output().unwrap()
}

/// The report, and the exit code.
fn probe(section: &Value, arguments: &[&str]) -> (Value, i32) {
    let output = output(section, &[arguments, &["--json"]].concat());
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (report, output.status.code().unwrap())
}

/// What `pkcs11-tool` lists, for a user who is logged in.
fn objects(token: &TestToken) -> usize {
    let pin = fs::read_to_string(&token.pin).unwrap();
    let mut tool = Command::new("pkcs11-tool");
    tool.envs(&token.environment).arg("--module").arg(&token.module).args(["--token-label", LABEL]);
    let output = tool.args(["--login", "--pin", &pin, "--list-objects"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.contains(" Object")).count()
}

/// The token of a test, with one KEK on it that must be untouched, behind the fault module.
fn in_front(token: &TestToken) -> (Value, FaultModule) {
    let fault = FaultModule::new(token, "probed");
    let mut section = token.section();
    fault.stand_in_front(&mut section);
    (section, fault)
}

/// The seals that work, by name.
fn working(report: &Value) -> Vec<&str> {
    let seals = report["seals"].as_object().unwrap();
    seals.iter().filter(|(_, seal)| seal["outcome"] == "works").map(|(name, _)| name.as_str()).collect()
}

#[test]
fn softhsm2_is_found_as_it_is() {
    let token = TestToken::softhsm2();
    run_ceremony_on(&token.section(), &[], token.directory());
    let before = objects(&token);
    assert_eq!(before, 1);
    let (report, code) = probe(&token.section(), &[]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(objects(&token), before);
    assert_eq!(report["version"], 1);
    assert_eq!(report["logins"], 1);
    assert_eq!(report["faults"], json!([]));
    assert_eq!((&report["clean_up"]["left"], &report["clean_up"]["objects"]), (&json!(0), &json!([1, 1])));
    assert_eq!(report["module"]["manufacturer"], "SoftHSM");
    assert_eq!(report["sha256"].as_str().unwrap().len(), 64);
    assert!(report["token"]["flags"].as_array().unwrap().contains(&json!("CKF_USER_PIN_INITIALIZED")));
    // cryptoki shows only those that it has a name for, 40 or so.
    assert!(report["mechanisms"]["count"].as_u64().unwrap() > 60);
    assert_eq!(report["mechanisms"]["known"]["CKM_AES_GCM"]["flags"], json!(["encrypt", "decrypt"]));
    assert_eq!(report["mechanisms"]["known"]["CKM_AES_KEY_WRAP_KWP"], Value::Null);
    assert_eq!(report["keys"], json!({"session": "works", "token": "works", "destroy": "works"}));
    assert_eq!(working(&report), ["aes-cbc-hmac", "aes-gcm/random-sent-12", "aes-gcm/random-sent-16"]);
    let seals = &report["seals"];
    assert_eq!(
        seals["aes-gcm/random-sent-12"],
        json!({
            "outcome": "works",
            "changed_bit": "refused: C_Decrypt CKR_GENERAL_ERROR",
            "other_context": "refused: C_Decrypt CKR_GENERAL_ERROR",
            "longest": "works",
        })
    );
    // It keeps the zeros that it was sent: one IV for every seal.
    assert_eq!(seals["aes-gcm/zeros-param-12"]["outcome"], "differs: it wrote no IV of its own");
    assert_eq!(seals["aes-kwp/encrypt"]["outcome"], "refused: C_GetMechanismInfo CKR_MECHANISM_INVALID");
    assert_eq!(seals["aes-kwp/wrap@CKM_AES_KEY_WRAP_PAD"]["outcome"], "differs: 1 byte comes back as 8");
    assert_eq!(report["chosen"], "aes-gcm/random-sent-12");
    let attributes = &report["attributes"];
    assert_eq!(
        attributes["CKA_COPYABLE"],
        json!({
            "value": false, "generate": "works", "reads": false,
            "forbidden": "refused: C_CopyObject CKR_ACTION_PROHIBITED",
        })
    );
    assert_eq!(attributes["CKA_DESTROYABLE"]["forbidden"], "refused: C_DestroyObject CKR_ACTION_PROHIBITED");
    assert_eq!(attributes["CKA_ALLOWED_MECHANISMS"]["reads"], json!(["CKM_AES_GCM"]));
    assert_eq!(attributes["CKA_TRUSTED"]["generate"], "refused: C_GenerateKey CKR_ATTRIBUTE_READ_ONLY");
    assert_eq!(report["defaults"]["CKA_WRAP"], true);
    assert_eq!(report["secrecy"]["wrap-out"], "refused: C_WrapKey CKR_KEY_UNEXTRACTABLE");
    assert_eq!(report["sizes"], json!({"encrypt": {"says": 48, "is": 48}, "decrypt": {"says": 48, "is": 32}}));
    assert_eq!(report["small_buffer"]["lives_on"], true);
    assert_eq!(report["short_ciphertext"], "refused: C_Decrypt CKR_GENERAL_ERROR");
    assert_eq!(report["sessions"], json!({"open": 65, "refused": null}));
    assert_eq!(report["speed"]["token_key"], true);
    assert!(report["speed"]["per_second"]["8"].as_u64().unwrap() > 0);
    assert_eq!(report["kek"]["outcome"], "works");
    assert_eq!(report["kek"]["permit"], json!([]));
    assert_eq!(report["profile"], Value::Null);
}

#[test]
fn kryoptic_is_found_as_it_is() {
    let token = TestToken::kryoptic();
    run_ceremony_on(&token.section(), &[], token.directory());
    let (report, code) = probe(&token.section(), &["--profile", "kryoptic"]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(objects(&token), 1);
    assert_eq!(report["logins"], 1);
    assert_eq!(report["interfaces"], json!(["PKCS 11 3.2", "PKCS 11 3.0", "PKCS 11 2.40"]));
    assert_eq!(
        working(&report),
        [
            "aes-cbc-hmac",
            "aes-gcm/message",
            "aes-gcm/random-sent-12",
            "aes-gcm/random-sent-16",
            "aes-kwp/encrypt",
            "aes-kwp/wrap"
        ]
    );
    assert_eq!(report["small_buffer"]["lives_on"], false);
    assert_eq!(report["defaults"]["CKA_WRAP"], false);
    // So that WRAP_WITH_TRUSTED protects nothing there.
    assert_eq!(report["attributes"]["CKA_TRUSTED"]["generate"], "works");
    assert_eq!((&report["profile"]["name"], &report["profile"]["agrees"]), (&json!("kryoptic/gcm"), &json!(true)));
}

#[test]
fn yubico_s_driver_is_found_as_it_is() {
    let device = Device::new();
    let mut driver = device.log_in();
    driver.does("generate kek 0101");
    driver.end();
    let state = || -> Value {
        serde_json::from_str(&fs::read_to_string(device.directory().join("state.json")).unwrap()).unwrap()
    };
    let before = state()["objects"].clone();
    let (report, code) = probe(&device.section(), &["--profile", "yubihsm2"]);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(state()["objects"], before);
    assert_eq!(report["logins"], 1);
    assert_eq!(report["keys"]["session"], "refused: C_GenerateKey CKR_ATTRIBUTE_VALUE_INVALID");
    assert_eq!(working(&report), ["yubico-ccm"]);
    assert_eq!(report["seals"]["yubico-ccm"]["changed_bit"], "refused: C_Decrypt CKR_DEVICE_ERROR");
    // It could never be destroyed again.
    assert_eq!(report["attributes"]["CKA_DESTROYABLE"]["generate"], "untried: it would stay for ever");
    assert_eq!(report["kek"]["permit"], json!(["CKA_ALLOWED_MECHANISMS", "CKA_KEY_GEN_MECHANISM"]));
    parts::record_run("yubihsm-pkcs11");
}

#[test]
fn the_iv_layouts_of_vendors_are_found() {
    for (imitate, seals) in [
        ("luna-fips", &["aes-gcm/none-suffix-16"][..]),
        ("suffix", &["aes-gcm/none-suffix-12"]),
        ("prefix", &["aes-gcm/none-prefix-12"]),
        ("inside", &["aes-gcm/none-inside-0"]),
        ("param", &["aes-gcm/zeros-param-12", "aes-gcm/zeros-param-16"]),
        ("protectserver", &["aes-gcm/zeros-param-12", "aes-gcm/zeros-param-16"]),
        ("protectserver-old", &["aes-gcm/random-suffix-12"]),
    ] {
        let token = TestToken::softhsm2();
        let (section, fault) = in_front(&token);
        fault.set(&json!({"imitate": {"iv": imitate, "bad_tag": 0x8000_0123_u64}}));
        let (report, code) = probe(&section, &[]);
        assert_eq!(code, 0, "{imitate}: {report:#}");
        let found: Vec<_> = working(&report).into_iter().filter(|name| name.starts_with("aes-gcm")).collect();
        assert_eq!(found, seals, "{imitate}");
        assert_eq!(report["chosen"], seals[0], "{imitate}");
        assert_eq!(report["seals"][seals[0]]["changed_bit"], "refused: C_Decrypt 0x80000123", "{imitate}");
        assert_eq!(fault.calls("C_Login"), 1, "{imitate}");
    }
}

#[test]
fn a_vendor_s_own_number_is_found() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    fault.set(&json!({"imitate": {"iv": "param", "mechanism": 0x8001_E101_u64}}));
    let (report, _) = probe(&section, &[]);
    assert_eq!(report["chosen"], "aes-gcm/zeros-param-12@0x8001e101", "{report:#}");
    assert_eq!(report["mechanisms"]["known"]["CKM_AES_GCM"], Value::Null);
}

#[test]
fn lies_about_sizes_are_told_and_not_believed() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    for (lie, says) in [(-16, 32), (i64::MAX, 9_223_372_036_854_775_855_u64)] {
        fault.always("C_Encrypt", &json!({"size_query": lie}));
        let (report, code) = probe(&section, &[]);
        assert_eq!(code, 0, "{report:#}");
        assert_eq!(report["sizes"]["encrypt"], json!({"says": says, "is": 48}));
    }
}

#[test]
fn a_limit_of_sessions_is_found() {
    let token = TestToken::softhsm2();
    let (section, fault) = in_front(&token);
    fault.set(&json!({"imitate": {"sessions": 3}}));
    let (report, _) = probe(&section, &[]);
    assert_eq!(report["sessions"], json!({"open": 3, "refused": "refused: C_OpenSession CKR_SESSION_COUNT"}));
    let rates = report["speed"]["per_second"].as_object().unwrap();
    assert_eq!(rates.keys().collect::<Vec<_>>(), ["1", "2"], "{report:#}");
    assert_eq!(working(&report).len(), 3, "{report:#}");
}

#[test]
fn without_a_pin_nothing_is_tried() {
    let token = TestToken::new();
    let (section, fault) = in_front(&token);
    let mut command = program();
    for (name, value) in section["environment"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    command.args(["hsm", "probe", "--json", "--token", LABEL, "--module", section["module"].as_str().unwrap()]);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["logins"], &report["seals"]), (Some(0), &json!(0), &json!({})));
    assert!(report["mechanisms"]["count"].as_u64().unwrap() > 0);
    assert_eq!((fault.calls("C_Login"), fault.calls("C_GenerateKey")), (0, 0));
}

#[test]
fn what_is_not_there_is_named() {
    let token = TestToken::softhsm2();
    let (module, pin) = (text(&token.module), text(&token.pin));
    let refuse = |module: &str, label: &str, pin: &str, further: &[&str]| {
        let arguments = ["hsm", "probe", "--module", module, "--token", label, "--pin-file", pin];
        refusal(&[&arguments, further].concat(), b"")
    };
    let missing = refuse("/nonexistent/module.so", LABEL, &pin, &[]);
    assert_eq!(missing.code, 2);
    assert!(missing.why.contains("/nonexistent/module.so"), "{}", missing.text);
    let no_module = refuse("/bin/true", LABEL, &pin, &[]);
    assert_eq!(no_module.code, 2, "{}", no_module.text);
    let pin = refuse(&module, LABEL, "/nonexistent/pin", &[]);
    assert_eq!(pin.code, 2);
    assert!(pin.why.contains("PIN file /nonexistent/pin"), "{}", pin.text);
    let profile = refuse(&module, LABEL, "/nonexistent/pin", &["--profile", "softhsm3"]);
    assert_eq!((profile.code, profile.hint.as_str()), (2, "did you mean `softhsm2`?"));

    let mut section = token.section();
    section["label"] = json!("elsewhere");
    let output = output(&section, &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("no token with label \"elsewhere\"; present: \"kek\""), "{error}");
}

#[test]
fn the_probing_process_is_not_for_hands() {
    let refused = refusal(&["probe-worker"], b"");
    assert_eq!(refused.code, 2);
    assert!(refused.hint.contains("hsm-kms hsm probe"), "{}", refused.text);
}

/// Every line says what the profile says and what the module does.
#[test]
fn a_module_that_differs_from_its_profile_is_told_line_by_line() {
    let token = TestToken::softhsm2();
    let differing = |report: &Value| -> Vec<String> {
        let lines = report["profile"]["lines"].as_array().unwrap();
        let lines = lines.iter().filter(|line| line["agrees"] == false);
        lines.map(|line| line["field"].as_str().unwrap().to_owned()).collect()
    };
    let (report, code) = probe(&token.section(), &["--profile", "softhsm2"]);
    assert_eq!((code, differing(&report)), (0, vec![]), "{report:#}");

    let (report, code) = probe(&token.section(), &["--profile", "thales-luna/fips"]);
    assert_eq!(code, 1);
    let differs = differing(&report);
    assert!(differs.contains(&"seal".to_owned()), "{report:#}");
    let report = String::from_utf8(output(&token.section(), &["--profile", "thales-luna/fips"]).stdout).unwrap();
    assert!(report.contains("The module differs from profile thales-luna/fips."), "{report}");

    let (section, fault) = in_front(&token);
    fault.set(&json!({
        "imitate": {"sessions": 4},
        "rules": [{"function": "C_GetInfo", "action": {"module_info": {"manufacturer": "Somebody"}}}],
    }));
    let profile = fs::read_to_string("hsm-profiles/softhsm2.yaml").unwrap();
    let path = token.directory().join("mine.yaml");
    let codes = "codes:\n  # The answer to a wrong tag: about the blob, not about the token.\n  CKR_GENERAL_ERROR@C_Decrypt: data\n";
    assert!(profile.contains(codes));
    fs::write(&path, profile.replace(codes, "sessions: { max: 16 }\n")).unwrap();
    let (report, code) = probe(&section, &["--profile", &text(&path)]);
    assert_eq!(
        (code, differing(&report)),
        (1, vec!["module.manufacturers".to_owned(), "codes".to_owned(), "sessions.max".to_owned()])
    );
}

#[test]
fn the_report_fits_a_terminal() {
    let token = TestToken::new();
    let text = String::from_utf8(output(&token.section(), &["--profile", token.profile]).stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 80 && !line.contains('\x1b'), "{line}");
    }
    for part in ["Ways of sealing", "aes-gcm/random-sent-12", "COPYABLE=false", "wrap-out", "seals a second"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}
