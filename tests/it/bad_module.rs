//! The module is not the one that the profile is for, or it cannot do what the profile needs. Each is said before any PIN is tried.

use std::fs;

use serde_json::{Value, json};
use tonic::Code;

use crate::fault_module::FaultModule;
use crate::faults::{Down, Served, encrypt, faults, until};
use crate::harness::{CLUSTER, LABEL, Plugin, TestToken, text};
use crate::parts;
use crate::refusal::{Refusal, refusal, serve_refuses};

const NOT_ITS_OWN: &str = "pin-or-config: the PKCS#11 module is not the one the profile is for";
const NO_MECHANISM: &str = "gone: the token lacks the mechanism that the profile seals with";
/// `CKM_AES_GCM`.
const GCM: u64 = 0x1087;
/// `CKM_AES_CBC`.
const CBC: u64 = 0x1082;
/// `CKM_DES3_CBC`, which no seal uses.
const UNUSED: u64 = 0x133;

/// A token that was served, with the fault module in front of it from now on.
async fn served() -> (Served, FaultModule) {
    let mut served = Served::new().await;
    let fault = FaultModule::new(&served.token, "module");
    fault.stand_in_front(&mut served.config.value["token"]);
    (served, fault)
}

fn says(manufacturer: &str) -> Value {
    json!({"module_info": {"manufacturer": manufacturer}})
}

/// A ceremony with this section must refuse; the module was not asked to log in.
fn ceremony_refuses(token: &TestToken, fault: &FaultModule, section: &Value) -> Refusal {
    let logins = fault.calls("C_Login");
    let output = token.directory().join("ceremony");
    fs::create_dir_all(&output).unwrap();
    let plan = json!({
        "version": 1, "kind": "trial", "cluster": CLUSTER, "token": section, "kek": {"label": LABEL}, "output": output,
    });
    let path = token.directory().join("bad-plan.yaml");
    fs::write(&path, plan.to_string()).unwrap();
    let refusal = refusal(&["ceremony", "run", "--plan", &text(&path)], b"");
    assert_eq!(fault.calls("C_Login"), logins, "{}", refusal.text);
    assert!(!output.join("kek-record.json").exists());
    refusal
}

/// Two vendors whose libraries have one name, and an operator who installed the wrong one.
#[tokio::test]
async fn a_module_of_another_manufacturer_is_not_driven_with_this_profile() {
    let (served, fault) = served().await;
    let own = if served.token.profile == "softhsm2" { "SoftHSM" } else { "Kryoptic" };
    fault.always("C_GetInfo", &says("Namesake Inc."));
    let plugin = Plugin::start(&served.config);
    let down = Down {
        healthz: NOT_ITS_OWN,
        why: format!("the module says manufacturer \"Namesake Inc.\", the profile is for {own:?}"),
        hint: "token.profile or token.module",
    };
    served.is_down(&plugin, 1, &down).await;
    assert_eq!(fault.calls("C_Login"), 0);
    let refused = ceremony_refuses(&served.token, &fault, &served.config.value["token"]);
    assert!(refused.why.contains(&down.why), "{}", refused.text);

    fault.clear();
    plugin.hang_up();
    served.heals(&plugin).await;
}

/// p11-kit's proxy shows every token of the machine as its own. With a profile that knows no manufacturer nothing else would
/// tell it from the vendor's module.
#[tokio::test]
async fn p11_kit_is_no_vendors_module() {
    let (mut served, fault) = served().await;
    fault.always("C_GetInfo", &says("PKCS#11 Kit"));
    for (number, profile) in [served.token.profile, "thales-luna/nonfips"].into_iter().enumerate() {
        served.config.value["token"]["profile"] = profile.into();
        served.config.value["token"]["environment"]["ChrystokiConfigurationPath"] = "/none".into();
        let plugin = Plugin::start(&served.config);
        let down = Down {
            healthz: NOT_ITS_OWN,
            why: "the module says manufacturer \"PKCS#11 Kit\"".to_owned(),
            hint: "token.module",
        };
        until("the refusal", async || faults(&plugin).len() > number).await;
        served.is_down(&plugin, number + 1, &down).await;
    }
    assert_eq!(fault.calls("C_Login"), 0);
}

/// The real thing: the library of Debian's package libp11-kit0, which its proxy module is. It keeps a state for each function
/// list that it hands out.
#[tokio::test]
async fn p11_kits_own_library_is_refused() {
    let mut served = Served::new().await;
    let library = parts::installed("/usr/lib/x86_64-linux-gnu/libp11-kit.so.0".into());
    served.config.value["token"]["module"] = text(&library).into();
    let plugin = Plugin::start(&served.config);
    served.is_down(&plugin, 1, &split()).await;
}

/// A loader looks for `C_GetInterface` in the libraries that the module needs, too, and may come back with another library's.
#[tokio::test]
async fn an_interface_of_another_library_is_not_used() {
    let (mut served, fault) = served().await;
    let other = TestToken::kryoptic();
    // A copy is a library of its own to the loader, also where the module under test is Kryoptic.
    let library = other.directory().join("other.so");
    fs::copy(&other.module, &library).unwrap();
    served.config.value["token"]["sandbox"]["write"].as_array_mut().unwrap().push(json!(other.directory()));
    let environment = &mut served.config.value["token"]["environment"];
    environment["HSM_KMS_FAULT_OTHER"] = text(&library).into();
    environment["KRYOPTIC_CONF"] = other.environment["KRYOPTIC_CONF"].clone().into();
    fault.set(&json!({"interface": "other"}));
    let plugin = Plugin::start(&served.config);
    served.is_down(&plugin, 1, &split()).await;
    assert_eq!(fault.calls("C_Login"), 0);
}

fn split() -> Down {
    Down {
        healthz: "pin-or-config: the PKCS#11 module cannot be used: it splits its state",
        why: "second function list".to_owned(),
        hint: "name the vendor's module itself",
    }
}

/// The mechanism and what would fit instead are named, by a start and by a ceremony.
#[tokio::test]
async fn a_missing_mechanism_is_named_with_what_would_fit() {
    let (served, fault) = served().await;
    fault.set(&json!({"imitate": {"hidden": [GCM]}}));
    let plugin = Plugin::start(&served.config);
    let fits = match served.token.profile {
        "softhsm2" => "a profile of your own with seal aes-cbc-hmac",
        _ => "kryoptic/kwp, kryoptic/kwp-wrap",
    };
    let down = Down {
        healthz: NO_MECHANISM,
        why: "token \"kek\" does not have CKM_AES_GCM, which the profile needs".to_owned(),
        hint: fits,
    };
    served.is_down(&plugin, 1, &down).await;
    let refused = ceremony_refuses(&served.token, &fault, &served.config.value["token"]);
    assert!(refused.why.contains(&down.why) && refused.hint.contains(fits), "{}", refused.text);
    assert_eq!(refused.code, 1, "{}", refused.text);

    fault.set(&json!({"imitate": {"hidden": [GCM, CBC, 0x210B_u64]}}));
    let refused = ceremony_refuses(&served.token, &fault, &served.config.value["token"]);
    assert!(refused.hint.contains("no seal of this release fits"), "{}", refused.text);
    assert_eq!(fault.calls("C_Login"), 0, "no PIN was tried on it");
    drop(plugin);
}

/// The list is another at each start. What the profile needs decides, and nothing else.
#[tokio::test]
async fn a_mechanism_list_that_shrinks_and_grows_between_starts() {
    let (served, fault) = served().await;
    let plugin = Plugin::start(&served.config).healthy().await;
    for harmless in [json!({"hidden": [UNUSED]}), json!({"listed": [0x8000_0001_u64, 0x8000_0002_u64]})] {
        fault.set(&json!({"imitate": harmless}));
        let starts = fault.calls("C_Initialize");
        plugin.hang_up();
        until("another start", async || fault.calls("C_Initialize") > starts).await;
        served.heals(&plugin).await;
    }

    fault.set(&json!({"imitate": {"hidden": [GCM]}}));
    plugin.hang_up();
    let down = Down { healthz: NO_MECHANISM, why: "does not have CKM_AES_GCM".to_owned(), hint: "token.profile" };
    served.is_down(&plugin, 1, &down).await;
    // An HSM that is not ready yet may list too little: it is asked again, and served as soon as it has it.
    let logins = fault.calls("C_Login");
    let starts = fault.calls("C_Initialize");
    until("further tries", async || fault.calls("C_Initialize") > starts + 1).await;
    assert_eq!(fault.calls("C_Login"), logins);
    fault.clear();
    served.heals(&plugin).await;
}

/// The list shrinks while the plugin serves: calls fail, and no start is wasted on it. They work again when it is back.
#[tokio::test]
async fn a_mechanism_that_goes_away_under_a_serving_plugin() {
    let (served, fault) = served().await;
    let plugin = Plugin::start(&served.config).healthy().await;
    let mut client = plugin.client().await;
    fault.set(&json!({"imitate": {"hidden": [GCM]}}));
    let refused = encrypt(&mut client).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(served.healthz(&mut client).await.starts_with("pin-or-config: "));
    fault.clear();
    served.heals(&plugin).await;
    assert_eq!(faults(&plugin), [""; 0], "no start has failed");
}

/// The login takes one of the two sessions of the device, so one is left to work with.
#[tokio::test]
async fn a_device_with_two_sessions_serves_with_one() {
    let (mut served, fault) = served().await;
    fault.set(&json!({"imitate": {"sessions": 2}}));
    let plugin = Plugin::start(&served.config);
    let down = Down { healthz: "busy: the HSM is busy", why: "CKR_SESSION_COUNT".to_owned(), hint: "limits.sessions" };
    until("the fault in the log", async || !faults(&plugin).is_empty()).await;
    served.reports_once(&plugin, 1, &down);
    drop(plugin);

    served.config.value["limits"] = json!({"sessions": 1});
    let plugin = Plugin::start(&served.config);
    served.heals(&plugin).await;

    // A profile that knows of the two says so before anything is loaded.
    let mine = served.token.directory().join("two.yaml");
    let own = hsm_kms::profile::Family::text(served.token.profile).unwrap();
    fs::write(&mine, own.replace("version: 1\n", "version: 1\nsessions: { max: 2 }\n")).unwrap();
    served.config.value["token"]["profile"] = text(&mine).into();
    drop(plugin);
    served.config.value["limits"] = json!({"sessions": 2});
    let path = served.config.write().to_path_buf();
    serve_refuses(&path, "limits.sessions");
    served.config.value["limits"] = json!({"sessions": 1});
    served.heals(&Plugin::start(&served.config)).await;
}
