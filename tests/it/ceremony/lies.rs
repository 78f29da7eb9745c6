//! A token that says of its key what is not so: each audited attribute, with another value and missing.

use hsm_kms::attributes::{AttributeName, KeyUse};
use serde_json::{Value, json};

use super::staged::Staged;
use crate::fault_module::FaultModule;

/// Each is found, named, and ends the ceremony without a KEK. With the plan's permission the ceremony goes on where that can be
/// permitted, and the record says so.
#[test]
fn every_lie_about_an_attribute_is_caught_or_a_permitted_deviation() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    staged.rehearse();
    let mut resume: &[&str] = &[];
    let mut caught = Vec::new();
    for name in AttributeName::ALL {
        for value in [another(name), json!("unavailable")] {
            lie(&fault, name, &value);
            let refusal = staged.refuses(&staged.answers(), resume, &format!("is not what a KEK needs: {name} is "));
            assert_eq!(refusal.code, 1, "{name} {value}: {}", refusal.text);
            assert!(refusal.hint.contains("was destroyed"), "{}", refusal.text);
            staged.has_no_key();
            resume = &["--resume"];
            caught.push((name, value));
        }
    }
    assert_eq!(caught.len(), 2 * 20);
    fault.clear();
    staged.hold(&staged.answers(), resume);
    staged.has_the_key_of_its_record();
    assert_eq!(staged.record()["deviations"], json!([]));
}

#[test]
fn a_deviation_that_the_plan_permits_stands_in_the_record() {
    let negotiable = |name: &AttributeName| name.is_negotiable(KeyUse::Encrypt);
    let names: Vec<_> = AttributeName::ALL.into_iter().filter(negotiable).collect();
    assert_eq!(names.len(), 15);
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    staged.plan["kek"]["permit"] = json!(names);
    staged.rehearse();
    let lies: serde_json::Map<_, _> = names.iter().map(|name| (name.name().to_owned(), json!("unavailable"))).collect();
    fault.always("C_GetAttributeValue", &json!({"attributes": lies}));
    staged.hold(&staged.answers(), &[]);
    let deviations = staged.record()["deviations"].clone();
    let deviations: Vec<_> = deviations.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(deviations.len(), names.len(), "{deviations:?}");
    for name in names {
        assert!(deviations.iter().any(|text| text.starts_with(&format!("{name} is unavailable"))), "{deviations:?}");
    }
    fault.clear();
    staged.has_the_key_of_its_record();
}

/// A length that is said, and is another, is no deviation to permit.
#[test]
fn a_short_key_cannot_be_permitted() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    staged.plan["kek"]["permit"] = json!(["CKA_VALUE_LEN"]);
    lie(&fault, AttributeName::ValueLen, &json!(16));
    staged.refuses(&staged.answers(), &[], "is not what a KEK needs: CKA_VALUE_LEN is ");
    staged.has_no_key();
}

/// What a token does to a key is tried, whatever it says of it.
#[test]
fn a_token_that_does_what_it_must_refuse_is_found() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    staged.rehearse();
    let mut resume: &[&str] = &[];
    // What it says that it did, and has not done, it cannot undo either: the copy is not there.
    let did = json!({"return": 0});
    for (function, action, why) in [
        ("C_SetAttributeValue", &did, "the token did what it must refuse: set CKA_EXTRACTABLE true"),
        ("C_CopyObject", &did, "(copy with CKA_EXTRACTABLE true), cannot be destroyed"),
        ("C_WrapKey", &did, "the token did what it must refuse: wrap it under another key"),
        ("C_Decrypt", &json!({"flip_bit": 3}), "the KEK failed its proof: it opened its own seal to something else"),
        ("C_Encrypt", &json!({"flip_bit": 3}), "C_Decrypt returned"),
    ] {
        fault.always(function, action);
        staged.refuses(&staged.answers(), resume, why);
        fault.clear();
        staged.has_no_key();
        resume = &["--resume"];
    }
}

/// A token that will not have an attribute is asked without it, and judged by what it made.
#[test]
fn a_template_that_is_refused_is_a_stop() {
    let mut staged = Staged::new();
    let fault = staged.behind_fault_module();
    staged.rehearse();
    fault.set(&json!({"imitate": {"template": {"refuse": ["CKA_WRAP"]}}}));
    let refusal = staged.refuses(&staged.answers(), &[], "C_GenerateKey returned CKR_ATTRIBUTE_TYPE_INVALID");
    assert_eq!(refusal.code, 1, "{}", refusal.text);
    assert!(refusal.hint.contains("key.omit"), "{}", refusal.text);
    staged.has_no_key();
    fault.clear();
    staged.hold(&staged.answers(), &["--resume"]);
    staged.has_the_key_of_its_record();
}

fn lie(fault: &FaultModule, name: AttributeName, value: &Value) {
    fault.always("C_GetAttributeValue", &json!({"attributes": {name.name(): value}}));
}

/// A value that a KEK's attribute does not have.
fn another(name: AttributeName) -> Value {
    match name {
        AttributeName::KeyType => json!(0x15),
        AttributeName::ValueLen => json!(16),
        AttributeName::KeyGenMechanism => json!(0x1082),
        AttributeName::AllowedMechanisms => json!([0x1082, 0x1087]),
        AttributeName::Extractable
        | AttributeName::Wrap
        | AttributeName::Unwrap
        | AttributeName::Sign
        | AttributeName::Verify
        | AttributeName::Derive
        | AttributeName::Copyable
        | AttributeName::Modifiable => json!(true),
        _ => json!(false),
    }
}
