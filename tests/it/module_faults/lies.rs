//! A module that answers `CKR_OK` and is wrong: attributes, token information, outputs.

use hsm_kms::attributes::AttributeName;
use serde_json::{Value, json};

use super::{Case, PLAINTEXT, Rig, case, decrypt};

pub fn cases() -> impl Iterator<Item = Case> {
    outputs().into_iter().chain(token_information()).chain(attributes())
}

/// Each audited attribute, once with another value and once missing: the key is refused at start.
fn attributes() -> impl Iterator<Item = Case> {
    let lie = move |name: AttributeName, value: Value| {
        case(format!("{name} {value}"), async move |rig| {
            let lie = json!({"attributes": {name.name(): value}});
            let outcome = rig.stops_at_start("C_GetAttributeValue", &lie).await;
            assert!(
                rig.plugin.log().contains(&format!("is not what its record says: {name} is")),
                "no reason in the log"
            );
            outcome
        })
    };
    let wrong = AttributeName::ALL.into_iter().map(move |name| {
        let value = match name {
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
        };
        lie(name, value)
    });
    let missing = AttributeName::ALL.into_iter().map(move |name| lie(name, json!("unavailable")));
    wrong.chain(missing)
}

fn token_information() -> Vec<Case> {
    let pin_flag = |flag: &'static str| {
        case(format!("token flag {flag}"), async move |rig| {
            let logins = rig.fault.calls("C_Login");
            let outcome = rig.stops_at_start("C_GetTokenInfo", &json!({"token_info": {"flags": [flag]}})).await;
            // The one of the operator's word, when the flag was gone.
            assert_eq!(rig.fault.calls("C_Login") - logins, 1, "a PIN was tried on a token that warns");
            outcome
        })
    };
    vec![
        case("another serial number", async |rig| {
            rig.stops_at_start("C_GetTokenInfo", &json!({"token_info": {"serial": "0"}})).await
        }),
        case("another label", async |rig| {
            rig.survives_at_start("C_GetTokenInfo", &json!({"token_info": {"label": "other"}})).await
        }),
        case("another library manufacturer", async |rig| {
            rig.stops_at_start("C_GetInfo", &json!({"module_info": {"manufacturer": "other"}})).await
        }),
        case("another token manufacturer and model", async |rig| {
            let lie = json!({"token_info": {"manufacturer": "other", "model": "other"}});
            rig.survives_at_start("C_GetTokenInfo", &lie).await
        }),
        pin_flag("CKF_USER_PIN_FINAL_TRY"),
        pin_flag("CKF_USER_PIN_LOCKED"),
        case("token flag CKF_USER_PIN_COUNT_LOW", async |rig| {
            let lie = json!({"token_info": {"flags": ["CKF_USER_PIN_COUNT_LOW"]}});
            rig.survives_at_start("C_GetTokenInfo", &lie).await
        }),
    ]
}

fn outputs() -> Vec<Case> {
    let mut cases = Vec::new();
    for function in ["C_Encrypt", "C_Decrypt"] {
        for action in [
            json!({"truncate": 1}),
            json!({"truncate": 16}),
            json!({"truncate": 10_000}),
            json!({"length": 1}),
            json!({"length": -1}),
            json!({"length": 1_000_000_000}),
            json!({"length": i64::MIN}),
        ] {
            cases.push(case(format!("{function} {action}"), async move |rig| {
                let outcome = rig.survives(function, &action).await;
                assert!(!outcome.contains(&format!("{} Ok", &function[2..])), "{outcome}");
                outcome
            }));
        }
        for action in [json!({"size_query": -16}), json!({"size_query": i64::MAX})] {
            cases.push(case(format!("{function} {action}"), async move |rig| {
                rig.fault.always(function, &action);
                let observed = rig.traffic().await;
                assert!(observed.all_served(), "{observed}");
                observed.to_string()
            }));
        }
    }
    cases.push(case("C_Decrypt {\"flip_bit\":3} at start", async |rig| {
        // Not even its own seal opens to what it was: no sign of another key, but of a token that is sick.
        rig.survives_at_start("C_Decrypt", &json!({"flip_bit": 3})).await
    }));
    cases.push(case("C_Encrypt {\"flip_bit\":100} (cannot be seen)", altered_ciphertext));
    cases.push(case("C_Decrypt {\"flip_bit\":3} (cannot be seen)", altered_plaintext));
    cases
}

/// A module that says `CKR_OK` for a ciphertext it altered: no check of the plugin sees it, and the blob does not open later.
async fn altered_ciphertext(rig: &mut Rig) -> String {
    rig.fault.always("C_Encrypt", &json!({"flip_bit": 100}));
    let observed = rig.traffic().await;
    rig.fault.clear();
    rig.heals().await;
    let mut lost = 0;
    for (_, sealed) in std::mem::take(&mut rig.sealed) {
        lost += usize::from(rig.client.decrypt(decrypt(sealed)).await.is_err());
    }
    format!("{observed}; {lost} blobs do not open")
}

/// A module that alters a plaintext after it has checked the tag: while serving no check of the plugin sees it.
async fn altered_plaintext(rig: &mut Rig) -> String {
    rig.fault.always("C_Decrypt", &json!({"flip_bit": 3}));
    let answer = rig.client.decrypt(decrypt(rig.before.clone())).await;
    rig.fault.clear();
    rig.heals().await;
    match answer {
        Ok(answer) if answer.get_ref().plaintext == PLAINTEXT => "the right plaintext".to_owned(),
        Ok(_) => "a wrong plaintext".to_owned(),
        Err(status) => format!("{:?}", status.code()),
    }
}
