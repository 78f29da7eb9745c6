//! The KEK is not on the token, is there twice, is another key, or is weaker than a KEK may be.

use std::fs;

use serde_json::Value;

use crate::another_program::{destroy_kek, make_like_kek, replace_kek};
use crate::faults::{Down, Served, back_up, encrypt, until};
use crate::harness::Plugin;

const ABSENT: &str = "gone: the KEK is not on the token";
const FOREIGN: &str = "pin-or-config: the key on the token is not the KEK of the record";
const TWICE: &str = "pin-or-config: the KEK is on the token more than once";
const WEAK: &str = "pin-or-config: the KEK's attributes are not those of the record";

#[tokio::test]
async fn an_absent_kek_is_waited_for() {
    let mut served = Served::new().await;
    let spy = served.spy();
    let restore = back_up(&served.token);
    destroy_kek(&served.token, &served.record);
    let plugin = Plugin::start(&served.config);
    served.is_down(&plugin, 1, &absent(&served)).await;
    until("further tries", async || spy.starts() > 3).await;
    served.is_down(&plugin, 1, &absent(&served)).await;

    restore();
    served.heals(&plugin).await;
}

#[tokio::test]
async fn a_kek_that_is_destroyed_under_a_serving_plugin_is_missed_at_once() {
    let served = Served::new().await;
    let plugin = Plugin::start(&served.config).healthy().await;
    let mut client = plugin.client().await;
    assert!(encrypt(&mut client).await.is_ok());
    destroy_kek(&served.token, &served.record);
    let refused = encrypt(&mut client).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    served.is_down(&plugin, 1, &absent(&served)).await;
}

/// The twelfth of `traps`.
pub async fn two_keys_that_could_be_the_kek_are_refused() {
    let served = Served::new().await;
    make_like_kek(&served.token, &served.record, &[]);
    let plugin = Plugin::start(&served.config);
    let why = format!("2 keys {}", name(&served));
    served.is_down(&plugin, 1, &Down { healthz: TWICE, why, hint: "before anything is deleted" }).await;
}

#[tokio::test]
async fn another_key_with_the_keks_name_is_refused() {
    let served = Served::new().await;
    let restore = back_up(&served.token);
    replace_kek(&served.token, &served.record, &[]);
    let plugin = Plugin::start(&served.config);
    served.is_down(&plugin, 1, &foreign()).await;

    restore();
    plugin.hang_up();
    served.heals(&plugin).await;
}

#[tokio::test]
async fn another_key_under_a_serving_plugin_seals_nothing_after_a_new_try() {
    let served = Served::new().await;
    let plugin = Plugin::start(&served.config).healthy().await;
    replace_kek(&served.token, &served.record, &[]);
    plugin.hang_up();
    served.is_down(&plugin, 1, &foreign()).await;
}

#[tokio::test]
async fn a_key_that_is_weaker_than_its_record_is_refused() {
    let served = Served::new().await;
    let plugin = Plugin::start(&served.config).healthy().await;
    let weaker = [("CKA_MODIFIABLE", true), ("CKA_WRAP", true), ("CKA_EXTRACTABLE", true), ("CKA_SENSITIVE", false)];
    for (times, (name, value)) in (1..).zip(weaker) {
        replace_kek(&served.token, &served.record, &[(name, value)]);
        plugin.hang_up();
        served.is_down(&plugin, times, &weak(&format!("{name} is {value}, expected {}", !value))).await;
    }
}

/// Attributes of a key as the edited record has them. The first is how the key is made, the others follow from it.
type Excuse = &'static [(&'static str, bool)];

/// Whoever edits the record can make it fit a weak key. A key that can leave its token is refused all the same, and every other
/// one does not open the proof blob.
#[tokio::test]
async fn a_record_that_excuses_a_weak_key_does_not_help_it() {
    let mut served = Served::new().await;
    let excuses: [(Excuse, Option<&str>); 5] = [
        (
            &[("CKA_EXTRACTABLE", true), ("CKA_NEVER_EXTRACTABLE", false)],
            Some("CKA_EXTRACTABLE is true, expected false"),
        ),
        (&[("CKA_SENSITIVE", false), ("CKA_ALWAYS_SENSITIVE", false)], Some("CKA_SENSITIVE is false, expected true")),
        (&[("CKA_ENCRYPT", false)], Some("CKA_ENCRYPT is false, expected true")),
        (&[("CKA_MODIFIABLE", true)], None),
        (&[("CKA_WRAP", true)], None),
    ];
    for (times, (excuse, why)) in (1..).zip(excuses) {
        replace_kek(&served.token, &served.record, &excuse[..1]);
        served.edit_record(|record| {
            for (name, value) in excuse {
                record["kek"]["attributes"][name] = (*value).into();
            }
        });
        let mut plugin = Plugin::start(&served.config);
        // Nothing else deviates: the record fits the key.
        let down = why.map_or_else(foreign, |why| weak(&format!("{why} class=")));
        served.is_down(&plugin, times, &down).await;
        plugin.stop().await;
    }
}

fn absent(served: &Served) -> Down {
    Down { healthz: ABSENT, why: format!("no key {}", name(served)), hint: "may not be on this token" }
}

fn foreign() -> Down {
    let why =
        "the key \"kek\" does not open the proof blob of its record: it is another key, or the record was changed"
            .to_owned();
    Down { healthz: FOREIGN, why, hint: "label and id were reused" }
}

fn weak(deviation: &str) -> Down {
    let why = format!("the key \"kek\" is not what its record says: {deviation}");
    Down { healthz: WEAK, why, hint: "do not use this key" }
}

/// How the KEK is called in the log.
fn name(served: &Served) -> String {
    let record: Value = serde_json::from_slice(&fs::read(&served.record).unwrap()).unwrap();
    format!("with label {} and CKA_ID {} on the token", record["kek"]["label"], record["kek"]["id"].as_str().unwrap())
}
