//! The token is not there, not the right one, or not behind the module that the configuration names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::faults::{Down, Served, WRONG_PIN, faults, store, until};
use crate::harness::{Plugin, TestToken, text};

const NO_MODULE: &str = "pin-or-config: the PKCS#11 module cannot be loaded";
const NO_TOKEN: &str = "gone: the token is not there";

#[tokio::test]
async fn a_file_that_is_no_module_is_refused_until_there_is_one() {
    let mut served = Served::new().await;
    let module = served.token.directory().join("module.so");
    served.config.value["token"]["module"] = text(&module).into();
    let plugin = Plugin::start(&served.config);
    let no_module = |why: &str| Down {
        healthz: NO_MODULE,
        why: format!("cannot load the PKCS#11 module {}: {why}", module.display()),
        hint: "token.module",
    };
    served.is_down(&plugin, 1, &no_module(&format!("{}: cannot open shared object file", module.display()))).await;

    fs::write(&module, "Not a library, though long enough to be looked at as one by the loader of this system.\n")
        .unwrap();
    plugin.hang_up();
    served.is_down(&plugin, 2, &no_module(&format!("{}: invalid ELF header", module.display()))).await;

    let libc = "/lib/x86_64-linux-gnu/libc.so.6";
    fs::remove_file(&module).unwrap();
    symlink(libc, &module).unwrap();
    plugin.hang_up();
    served.is_down(&plugin, 3, &no_module(&format!("{libc}: undefined symbol: C_GetFunctionList"))).await;

    fs::remove_file(&module).unwrap();
    symlink(&served.token.module, &module).unwrap();
    plugin.hang_up();
    served.heals(&plugin).await;
}

#[tokio::test]
async fn another_vendors_module_is_refused() {
    let mut served = Served::new().await;
    let (other, why) = match served.token.profile {
        "softhsm2" => ("kryoptic", "the module says manufacturer \"SoftHSM\", the profile is for \"Kryoptic\""),
        _ => ("softhsm2", "the module says manufacturer \"Kryoptic\", the profile is for \"SoftHSM\""),
    };
    served.config.value["token"]["profile"] = other.into();
    served.edit_record(|record| record["profile"] = other.into());
    let plugin = Plugin::start(&served.config);
    let down = Down {
        healthz: "pin-or-config: the PKCS#11 module is not the one the profile is for",
        why: why.to_owned(),
        hint: "token.profile",
    };
    served.is_down(&plugin, 1, &down).await;
    plugin.hang_up();
    served.is_down(&plugin, 2, &down).await;
}

#[tokio::test]
async fn a_token_with_another_label_is_not_there() {
    let mut served = Served::new().await;
    let spy = served.spy();
    served.put_pin(WRONG_PIN);
    served.config.value["token"]["label"] = "nobody".into();
    served.edit_record(|record| record["token"]["label"] = "nobody".into());
    let plugin = Plugin::start(&served.config);
    let down = Down {
        healthz: NO_TOKEN,
        why: "no token with label \"nobody\"; present: \"kek\"".to_owned(),
        hint: "token.label",
    };
    served.is_down(&plugin, 1, &down).await;
    until("further tries", async || spy.starts() > 3).await;
    served.is_down(&plugin, 1, &down).await;
    assert_eq!(spy.wrong_logins(&served.token), 0);
}

#[tokio::test]
async fn a_token_that_appears_later_is_served() {
    let mut served = Served::new().await;
    let spy = served.spy();
    served.put_pin(WRONG_PIN);
    let away = served.token.directory().join("away");
    let store = store(&served.token);
    fs::rename(&store, &away).unwrap();
    let plugin = Plugin::start(&served.config);
    let down =
        Down { healthz: NO_TOKEN, why: "no token with label \"kek\"; present: none".to_owned(), hint: "connection" };
    served.is_down(&plugin, 1, &down).await;
    until("further tries", async || spy.starts() > 3).await;
    served.is_down(&plugin, 1, &down).await;

    served.put_pin(&served.pin);
    fs::rename(&away, &store).unwrap();
    served.heals(&plugin).await;
}

/// The label is not enough, and the record has the serial number.
#[tokio::test]
async fn of_two_tokens_with_the_label_the_one_of_the_record_serves() {
    let served = Served::new().await;
    let other = TestToken::new();
    let remove = add(&served.token, &other);
    let plugin = Plugin::start(&served.config);
    served.heals(&plugin).await;
    assert_eq!(faults(&plugin), [""; 0]);
    remove();
}

#[tokio::test]
async fn a_token_with_another_serial_is_refused_until_the_right_one_is_back() {
    let mut served = Served::new().await;
    let spy = served.spy();
    served.put_pin(WRONG_PIN);
    let other = TestToken::new();
    let (here, there, away) = (store(&served.token), store(&other), served.token.directory().join("away"));
    fs::rename(&here, &away).unwrap();
    fs::rename(&there, &here).unwrap();
    let plugin = Plugin::start(&served.config);
    let record: serde_json::Value = serde_json::from_slice(&fs::read(&served.record).unwrap()).unwrap();
    let down = Down {
        healthz: "pin-or-config: the token is not the one of the record",
        why: format!("the KEK record names {}", record["token"]["serial"]),
        hint: "the record made for this token",
    };
    served.is_down(&plugin, 1, &down).await;
    // The PIN is for the other token: here it would count as a wrong one.
    assert_eq!(spy.wrong_logins(&served.token), 0);

    fs::rename(&here, &there).unwrap();
    fs::rename(&away, &here).unwrap();
    served.put_pin(&served.pin);
    plugin.hang_up();
    served.heals(&plugin).await;
}

/// Puts `other` beside `token`, where the same module finds both. Returns what removes it again.
fn add(token: &TestToken, other: &TestToken) -> Box<dyn FnOnce()> {
    if token.profile == "softhsm2" {
        let second = store(token).with_file_name("second");
        fs::rename(store(other), &second).unwrap();
        return Box::new(move || fs::remove_dir_all(second).unwrap());
    }
    let configuration = PathBuf::from(&token.environment["KRYOPTIC_CONF"]);
    let one = fs::read_to_string(&configuration).unwrap();
    let second = format!("[[slots]]\nslot = 2\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", text(&store(other)));
    fs::write(&configuration, format!("{one}{second}")).unwrap();
    Box::new(move || fs::write(configuration, one).unwrap())
}
