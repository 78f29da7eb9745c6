//! A lost KEK loses no data: the token is destroyed, and every object comes back, from a clone or by a recovery key.

mod demo;
mod guide;
mod refusals;
mod site;
mod sizes;

use std::time::{Duration, Instant};

use self::site::{FOLDER, Key, LostSite, OBJECTS, RestoredSite, report, start};
use crate::api_server_stack::plaintext_of;
use crate::emulator::Fault;
use crate::harness::{TestToken, text};
use crate::parts::record_run;
use crate::recovery_keys::hsm::make_key;

/// What the machine may need of the time of a recovery; the rest is people's.
const LIMIT: Duration = Duration::from_mins(1);

/// The whole way: nothing is left but a backup of etcd, the recovery key and a new HSM.
#[tokio::test]
async fn every_object_comes_back_by_a_recovery_key() {
    let lost = LostSite::new(TestToken::new(), OBJECTS).await;
    let audit = report(&lost.audit(&["--json"]));
    assert_eq!((&audit["objects_covered"], &audit["objects"]), (&OBJECTS.into(), &OBJECTS.into()), "{audit}");
    assert_eq!((&audit["seeds_covered"], &audit["seeds"]), (&8.into(), &8.into()), "{audit}");
    let lost = lost.lose().await;

    let new = TestToken::new();
    let began = Instant::now();
    let mut site = RestoredSite::new(&lost, new).await;
    let made = Instant::now();
    let rewrapped = report(&site.rewrap(&lost, "table.json", &["--json"]));
    for key_id in &lost.key_ids {
        let of_kek = &rewrapped["lost"][key_id];
        assert_eq!((&of_kek["seeds"], &of_kek["seeds_opened"]), (&4.into(), &4.into()), "{rewrapped}");
        assert_eq!(of_kek["objects"], of_kek["objects_opened"], "{rewrapped}");
    }
    let sealed = Instant::now();
    site.serve_with(Some("table.json")).await;
    let log = site.plugin().log();
    for key_id in &lost.key_ids {
        assert!(log.contains(&format!("4 seeds of lost KEK {key_id} are opened through a rewrap table")), "{log}");
    }
    assert_eq!(site.read(OBJECTS).await, OBJECTS, "each is to be written anew");
    assert_eq!(site.metric("hsm_kms_rewrap_table_decrypts_total"), Some("8".to_owned()));
    let read = Instant::now();
    site.migrate(OBJECTS).await;
    assert_eq!(site.needed(), [(site.key_id(), OBJECTS as u64)].into(), "nothing needs a lost KEK");
    let migrated = Instant::now();
    site.serve_with(None).await;
    assert_eq!(site.read(OBJECTS).await, 0);
    assert_eq!(site.metric("hsm_kms_rewrap_table_decrypts_total"), Some("0".to_owned()));
    let audit = site.audit(&["--json"]);
    assert!(audit.status.success(), "{audit:?}");
    let (all, seconds) = (began.elapsed(), |from: Instant, to: Instant| to.duration_since(from).as_secs_f64());
    println!(
        "{OBJECTS} of {OBJECTS} objects came back on {} ({} build): {:.1} s of machine time: etcd restored and KEK made {:.1} s, \
         rewrapped {:.1} s, read {:.1} s, rewritten {:.1} s, read again {:.1} s",
        lost.profile,
        if cfg!(debug_assertions) { "debug" } else { "release" },
        all.as_secs_f64(),
        seconds(began, made),
        seconds(made, sealed),
        seconds(sealed, read),
        seconds(read, migrated),
        migrated.elapsed().as_secs_f64(),
    );
    assert!(all < LIMIT, "{all:?}");
    record_run(lost.profile);
}

/// With a clone of the token nothing else is needed: the same keys have the same `key_id`s.
#[tokio::test]
async fn every_object_comes_back_from_a_clone() {
    let mut lost = LostSite::new(TestToken::new(), OBJECTS).await;
    let clone = lost.clone_token();
    let lost = lost.lose().await;
    let began = Instant::now();
    let mut site = lost.on_clone(&clone).await;
    assert!(site.read(OBJECTS).await > 0, "what the KEK of before sealed is to be written anew");
    site.migrate(OBJECTS).await;
    assert_eq!(site.read(OBJECTS).await, 0);
    println!("{OBJECTS} of {OBJECTS} objects came back from a clone in {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < LIMIT);
}

/// The private half is in an offline HSM, and stays there.
#[tokio::test]
async fn an_rsa_key_in_an_offline_hsm_brings_everything_back() {
    const FEW: usize = 200;
    let hsm = TestToken::kryoptic();
    let (offline, recipient) = make_key(&hsm, "rsa-oaep-3072");
    let key = Key::of_files(offline.clone(), recipient);
    let lost = LostSite::with_key(TestToken::new(), FEW, tempfile::tempdir().unwrap(), key).await.lose().await;
    let mut site = RestoredSite::new(&lost, TestToken::new()).await;
    let offline = text(&offline);
    let wrong = site.rewrap(&lost, "t", &["--token", &offline, "--cluster", "other"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    report(&site.rewrap(&lost, "table.json", &["--token", &offline, "--json"]));
    site.serve_with(Some("table.json")).await;
    assert_eq!(site.read(FEW).await, FEW);
    record_run("kryoptic");
}

/// The first hour without any backup: what an API server holds that was running at the loss.
#[tokio::test]
async fn a_running_api_server_still_opens_what_it_has_opened() {
    const FEW: usize = 80;
    let mut site = LostSite::new(TestToken::new(), FEW).await;
    let (mut warm, mut cold) = (start(site.plugin()).await, start(site.plugin()).await);
    let entries = site.etcd().list(FOLDER);
    for entry in &entries {
        warm.read(&entry.key, &entry.value).await.unwrap();
    }
    site.lose_token().await;
    assert!(warm.write(&entries[0].key, b"k8s\0").is_ok());
    for server in [&mut warm, &mut cold] {
        server.advance(Duration::from_mins(4)).await;
        assert!(matches!(server.write(&entries[0].key, b"k8s\0"), Err(Fault::Expired(_))), "no writes after 3 minutes");
    }
    for (number, entry) in entries.iter().enumerate() {
        let read = warm.read(&entry.key, &entry.value).await.unwrap();
        assert_eq!(read.plaintext, plaintext_of(&number.to_string()));
        let read = cold.read(&entry.key, &entry.value).await;
        assert!(matches!(read, Err(Fault::Decrypt(_))), "a seed that it never opened");
    }
}

/// Yubico's driver on the simulated device: lost, and another one in its place.
#[tokio::test]
async fn a_lost_yubihsm_is_recovered_on_another() {
    const FEW: usize = 200;
    let lost = LostSite::new(TestToken::yubihsm2(), FEW).await.lose().await;
    let mut site = RestoredSite::new(&lost, TestToken::yubihsm2()).await;
    report(&site.rewrap(&lost, "table.json", &["--json"]));
    site.serve_with(Some("table.json")).await;
    assert_eq!(site.read(FEW).await, FEW);
    site.migrate(FEW).await;
    site.serve_with(None).await;
    assert_eq!(site.read(FEW).await, 0);
    assert_eq!(site.needed(), [(site.key_id(), FEW as u64)].into());
    record_run("yubihsm-pkcs11");
}
