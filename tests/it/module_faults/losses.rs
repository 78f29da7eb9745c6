//! Calls that never return or end the process, and sessions, logins and tokens that go away.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Case, case, millis};

const SERVING: [&str; 4] = ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"];
const STARTING: [&str; 8] = [
    "C_Initialize",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_OpenSession",
    "C_Login",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
];

pub fn cases() -> impl Iterator<Item = Case> {
    losses().into_iter().chain(hung_and_ended_calls()).chain(single_faults())
}

fn hung_and_ended_calls() -> Vec<Case> {
    let actions = [json!("hang"), json!("crash"), json!("abort"), json!({"exit": 0})];
    let serving = pairs(&SERVING, &actions, |function, action| {
        case(format!("{function} {action}"), async move |rig| rig.survives(function, &action).await)
    });
    let starting = pairs(&STARTING, &actions, |function, action| {
        case(format!("{function} {action} at start"), async move |rig| rig.survives_at_start(function, &action).await)
    });
    serving.into_iter().chain(starting).collect()
}

/// One fault, and then none: the plugin's second try covers it, and no caller notices.
fn single_faults() -> Vec<Case> {
    let actions = [
        json!({"return": "CKR_GENERAL_ERROR"}),
        json!({"return": "CKR_DEVICE_REMOVED"}),
        json!({"return": "CKR_SESSION_HANDLE_INVALID"}),
        json!({"return": "CKR_USER_NOT_LOGGED_IN"}),
        json!("drop_sessions"),
        json!("log_out"),
        json!("crash"),
        json!("hang"),
    ];
    pairs(&SERVING, &actions, |function, action| {
        case(format!("{function} {action} once"), async move |rig| {
            rig.fault.once(function, &action);
            let observed = rig.traffic().await;
            // A profile may read this code as a wrong tag. Then the blob is blamed, and the one call is lost.
            let blamed = function == "C_Decrypt"
                && action == json!({"return": "CKR_GENERAL_ERROR"})
                && observed.lost() == ["1 Decrypt InvalidArgument"];
            // A hang is noticed after 1.2 s: on a busy machine the new worker may come after the caller's deadline.
            let late = action == json!("hang") && observed.slowest >= Duration::from_millis(2400);
            assert!(observed.all_served() || blamed || late, "{observed}");
            observed.to_string()
        })
    })
}

fn losses() -> Vec<Case> {
    let always = [json!("drop_sessions"), json!("log_out")];
    let serving = pairs(&SERVING, &always, |function, action| {
        case(format!("{function} {action}"), async move |rig| rig.survives(function, &action).await)
    });
    let others = [
        case("no object is found at start", async |rig| {
            rig.survives_at_start("C_FindObjects", &json!("find_nothing")).await
        }),
        case("no slot at start", async |rig| rig.survives_at_start("C_GetSlotList", &json!("no_slots")).await),
        case("every call says the device is gone", async |rig| {
            rig.survives("*", &json!({"return": "CKR_DEVICE_REMOVED"})).await
        }),
        case("every call hangs", async |rig| rig.survives("*", &json!("hang")).await),
        case("a login that never returns", async |rig| {
            rig.fault.once("C_Login", &json!("hang_for_ever"));
            rig.hang_up();
            let observed = rig.traffic().await;
            format!("{observed}; healed in {} by itself", millis(rig.heals().await))
        }),
        case("text on standard output", async |rig| {
            rig.fault.always("*", &json!({"noise": "vendor library v1.2\n"}));
            rig.hang_up();
            rig.heals().await;
            let observed = rig.traffic().await;
            assert!(observed.all_served(), "{observed}");
            observed.to_string()
        }),
        case("100 ms more for each call", async |rig| {
            rig.fault.set(&json!({"rules": [
                {"function": "C_Encrypt", "action": {"delay_ms": 100}},
                {"function": "C_Decrypt", "action": {"delay_ms": 100}},
            ]}));
            let observed = rig.traffic().await;
            assert!(observed.all_served(), "{observed}");
            observed.to_string()
        }),
        case("a device with two sessions, three wanted", async |rig| {
            rig.fault.set(&json!({"imitate": {"sessions": 2}}));
            let calls = rig.fault.calls("C_OpenSession");
            rig.hang_up();
            rig.called("C_OpenSession", calls).await;
            let observed = rig.traffic().await;
            rig.fault.clear();
            format!("{observed}; healed in {}", millis(rig.heals().await))
        }),
    ];
    others.into_iter().chain(serving).collect()
}

fn pairs(functions: &[&'static str], actions: &[Value], case: impl Fn(&'static str, Value) -> Case) -> Vec<Case> {
    let pairs = functions.iter().flat_map(|function| actions.iter().map(|action| (*function, action.clone())));
    pairs.map(|(function, action)| case(function, action)).collect()
}
