use std::sync::MutexGuard;

use data_encoding::HEXLOWER;
use hsm_kms::etcd::proto::EncryptedDekSourceType::{AesGcmKey, HkdfSha256XnonceAesGcmSeed};
use prost::Message;
use prost::bytes::Bytes;
use tonic::Code;

use super::*;
use crate::harness::{Config, TestToken, run_ceremony};

const PATH: &str = "/registry/secrets/default/demo";
const OTHER: &str = "/registry/secrets/default/other";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn server(fake: &std::sync::Arc<std::sync::Mutex<Fake>>) -> ApiServer {
    ApiServer::start([("demo", Plugin::fake(fake))]).await
}

fn lock(fake: &std::sync::Arc<std::sync::Mutex<Fake>>) -> MutexGuard<'_, Fake> {
    fake.lock().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// A value that the apiserver's own tests record (`aes_test.go`, extended nonce).
#[test]
fn the_upstream_vector_opens() {
    let seed = hex("5d40323a820ff95561675e3b95e81867c5fdd561d35a88a2d08b08aa9d4fcf5c");
    let data = hex(concat!(
        "2442759e33945fbad709db577a0f037fd8a709fc76979b8942209debcecb9d57efe3d6ff6a1ef6ee9a5003b9833b3043",
        "cec1e47b35175b151107a8d2416b0e296bbf66b5d102fcefdf9a78f293d271"
    ));
    let source = DekSource::opened(HkdfSha256XnonceAesGcmSeed, &seed).unwrap();
    assert_eq!(source.open("bamboo", &data).unwrap(), b"pandas are the best");
    assert!(source.open("bamboos", &data).is_none());
}

/// A whole value made by a second implementation.
#[test]
fn the_whole_value_vector_is_made_and_parsed() {
    let seed: Vec<u8> = (0..32).collect();
    let info: [u8; 32] = std::array::from_fn(|position| 0x40 + u8::try_from(position).unwrap());
    let nonce: [u8; 12] = std::array::from_fn(|position| 0xa0 + u8::try_from(position).unwrap());
    assert_eq!(
        HEXLOWER.encode(&value::expand(&seed, &info)),
        "bbbb40f2c542c2c58846dc609224829eae0a8b9a5d31f500caff2964dc6bf9de"
    );
    let source = DekSource::opened(HkdfSha256XnonceAesGcmSeed, &seed).unwrap();
    let object = StoredValue {
        encrypted_data: source.seal_with(PATH, b"k8s\0hello", &info, nonce).into(),
        key_id: "key-1".to_owned(),
        encrypted_dek_source: Bytes::from("WRAPPED-SEED"),
        annotations: [("v.example.com".to_owned(), Bytes::from("1"))].into(),
        encrypted_dek_source_type: HkdfSha256XnonceAesGcmSeed.into(),
    };
    let stored = hex(concat!(
        "6b38733a656e633a6b6d733a76323a64656d6f3a0a45404142434445464748494a4b4c4d4e4f50515253545556575859",
        "5a5b5c5d5e5fa0a1a2a3a4a5a6a7a8a9aaab8f8bcad46146435c16debe53efca60f95ca98c93a0724ad7f612056b6579",
        "2d311a0c575241505045442d5345454422120a0d762e6578616d706c652e636f6d1201312801"
    ));
    assert_eq!(HEXLOWER.encode(&with_prefix("demo", &object)), HEXLOWER.encode(&stored));

    let parsed = StoredValue::decode(value::strip_prefix("demo", &stored).unwrap()).unwrap();
    assert_eq!(parsed, object);
    assert_eq!(source.open(PATH, &parsed.encrypted_data).unwrap(), b"k8s\0hello");
    assert!(source.open(OTHER, &parsed.encrypted_data).is_none());
    assert!(value::strip_prefix("dem", &stored).is_none() && value::strip_prefix("demo2", &stored).is_none());
}

#[test]
fn the_key_form_of_older_releases_round_trips() {
    let source = DekSource::opened(AesGcmKey, &[7; 32]).unwrap();
    let data = source.seal(PATH, b"hello");
    assert_eq!(data.len(), 12 + 5 + 16);
    assert_eq!(source.open(PATH, &data).unwrap(), b"hello");
    for length in [0, 16, 31, 33] {
        assert!(DekSource::opened(AesGcmKey, &vec![7; length]).is_none());
    }
    assert!(DekSource::opened(HkdfSha256XnonceAesGcmSeed, &[7; 31]).is_none());
}

#[test]
fn annotation_names_are_domain_names() {
    let long = format!("{}.a", "a".repeat(63));
    let longer = format!("{}.a", "a".repeat(64));
    let longest = format!("{}.a", vec!["a".repeat(62); 4].join("."));
    for name in ["a.b", "a.b.", "1.2", "local-kek.kms.kubernetes.io", &long, &longest] {
        assert!(rules::is_domain_name(name), "{name}");
    }
    let too_long = format!("{longest}aa");
    for name in [
        "", ".", "a", "a.", "a..b", ".a.b", "a.b..", "A.b", "a_a.b", "a.b/c", "*.a.b", "a@b.c", "-a.b", "a-.b", "a.b ",
        "é.b", &longer, &too_long,
    ] {
        assert!(!rules::is_domain_name(name), "{name}");
    }
}

#[tokio::test]
async fn a_plugin_that_starts_30_s_late_is_primed() {
    let fake = Fake::new("key-1");
    lock(&fake).down = Some(Code::DeadlineExceeded);
    let mut server = server(&fake).await;
    server.advance(seconds(29)).await;
    assert_eq!(server.calls(0), Calls { status: 3, encrypt: 0, decrypt: 0 });
    assert!(matches!(server.write(PATH, b"x"), Err(Fault::NeverPrimed(_))));
    assert!(matches!(server.readyz().await, Err(Fault::Unhealthy(_))));

    lock(&fake).down = None;
    // readyz made a verdict at 29 s, which holds for 3 s: the retry at 30 s meets it, the next at 40 s does not.
    server.advance(seconds(1)).await;
    assert!(matches!(server.readyz().await, Err(Fault::Unhealthy(_))));
    assert_eq!(server.calls(0).status, 4);
    server.advance(seconds(10)).await;
    server.readyz().await.unwrap();
    assert_eq!(server.calls(0), Calls { status: 5, encrypt: 1, decrypt: 0 });
    let stored = server.write(PATH, b"x").unwrap();
    assert_eq!(server.read(PATH, &stored).await.unwrap().plaintext, b"x");
    assert_eq!(server.calls(0).decrypt, 0);
}

#[tokio::test]
async fn an_hour_costs_one_encrypt() {
    let fake = Fake::new("key-1");
    let mut quiet = server(&fake).await;
    quiet.advance(seconds(3600)).await;
    assert_eq!(quiet.calls(0), Calls { status: 61, encrypt: 1, decrypt: 0 });
    quiet.write(PATH, b"x").unwrap();

    // A kubelet's readiness probe every 10 s makes it one Status in 20 s.
    let mut probed = server(&fake).await;
    for _ in 0..360 {
        probed.advance(seconds(10)).await;
        probed.readyz().await.unwrap();
    }
    assert_eq!(probed.calls(0), Calls { status: 181, encrypt: 1, decrypt: 0 });
}

#[tokio::test]
async fn a_new_key_id_costs_one_encrypt_and_old_objects_stay_readable() {
    let fake = Fake::new("key-1");
    let mut server = server(&fake).await;
    let old = server.write(PATH, b"old").unwrap();
    lock(&fake).status.key_id = "key-2".to_owned();
    server.advance(seconds(59)).await;
    assert_eq!(server.key_id(0), Some("key-1"));
    server.advance(seconds(1)).await;
    assert_eq!(server.key_id(0), Some("key-2"));
    server.advance(seconds(3600)).await;
    assert_eq!(server.calls(0).encrypt, 2);

    let read = server.read(PATH, &old).await.unwrap();
    assert_eq!((&read.plaintext[..], read.stale), (&b"old"[..], true));
    let new = server.write(PATH, &read.plaintext).unwrap();
    assert!(!server.read(PATH, &new).await.unwrap().stale);
    assert_eq!(server.calls(0).decrypt, 0);

    // A new process knows neither seed: one Decrypt each, then none.
    let mut restarted = ApiServer::start([("demo", Plugin::fake(&fake))]).await;
    for _ in 0..3 {
        assert_eq!(restarted.read(PATH, &old).await.unwrap().plaintext, b"old");
        assert!(!restarted.read(PATH, &new).await.unwrap().stale);
    }
    assert_eq!(restarted.calls(0), Calls { status: 1, encrypt: 1, decrypt: 2 });
}

#[tokio::test]
async fn an_outage_by_error_stops_writes_after_three_minutes() {
    let fake = Fake::new("key-1");
    let mut server = server(&fake).await;
    let stored = server.write(PATH, b"x").unwrap();
    server.advance(seconds(60)).await;
    lock(&fake).down = Some(Code::Unavailable);
    server.advance(seconds(180)).await;
    server.write(PATH, b"x").unwrap();
    server.advance(seconds(1)).await;
    assert!(matches!(server.write(PATH, b"x"), Err(Fault::Expired(_))));
    assert!(matches!(server.readyz().await, Err(Fault::Unhealthy(_))));
    server.read(PATH, &stored).await.unwrap();
    server.advance(seconds(3600)).await;

    lock(&fake).down = None;
    server.advance(seconds(10)).await;
    server.readyz().await.unwrap();
    server.write(PATH, b"x").unwrap();
    assert_eq!(server.calls(0).encrypt, 1);
}

#[tokio::test]
async fn an_outage_by_healthz_lets_writes_go_on() {
    let fake = Fake::new("key-1");
    let mut server = server(&fake).await;
    lock(&fake).status.healthz = "the HSM is away".to_owned();
    for _ in 0..60 {
        server.advance(seconds(60)).await;
        server.write(PATH, b"x").unwrap();
        assert!(matches!(server.readyz().await, Err(Fault::Unhealthy(_))));
    }
    lock(&fake).status.healthz = "ok".to_owned();
    server.advance(seconds(10)).await;
    server.readyz().await.unwrap();
    assert_eq!(server.calls(0).encrypt, 1);
}

#[tokio::test]
async fn an_entry_that_was_never_primed_cannot_read() {
    let fake = Fake::new("key-1");
    let stored = server(&fake).await.write(PATH, b"x").unwrap();
    // Decrypt would work, but Encrypt does not: its answer breaks a rule.
    lock(&fake).ciphertext = Some(Bytes::new());
    let mut restarted = server(&fake).await;
    assert!(matches!(restarted.read(PATH, &stored).await, Err(Fault::NeverPrimed(_))));
    assert_eq!(restarted.calls(0).decrypt, 0);

    lock(&fake).ciphertext = None;
    restarted.advance(seconds(10)).await;
    assert_eq!(restarted.read(PATH, &stored).await.unwrap().plaintext, b"x");
}

#[tokio::test]
async fn a_changed_version_is_unhealthy() {
    let fake = Fake::new("key-1");
    let mut server = server(&fake).await;
    lock(&fake).status.version = "v2beta1".to_owned();
    server.advance(seconds(60)).await;
    let Err(Fault::Unhealthy(reasons)) = server.readyz().await else { panic!("healthy") };
    assert_eq!(reasons, [r#"version changed from "v2" to "v2beta1""#]);
    lock(&fake).status.version = "v2".to_owned();
    server.advance(seconds(10)).await;
    server.readyz().await.unwrap();

    lock(&fake).status.version = "v1".to_owned();
    let mut fresh = ApiServer::start([("demo", Plugin::fake(&fake))]).await;
    let Err(Fault::Unhealthy(reasons)) = fresh.readyz().await else { panic!("healthy") };
    assert_eq!(reasons, [r#"version is "v1""#]);
}

#[tokio::test]
async fn what_breaks_a_rule_makes_no_seed() {
    type Change = fn(&mut Fake);
    let refused: [(&str, Change); 8] = [
        ("key_id has 0 bytes", |fake| fake.status.key_id = String::new()),
        ("key_id has 1025 bytes", |fake| fake.status.key_id = "k".repeat(1025)),
        ("Encrypt's key_id is not Status's", |fake| fake.encrypt_key_id = Some("key-2".to_owned())),
        ("key_id has 0 bytes", |fake| fake.encrypt_key_id = Some(String::new())),
        ("ciphertext has 0 bytes", |fake| fake.ciphertext = Some(Bytes::new())),
        ("ciphertext has 1025 bytes", |fake| fake.ciphertext = Some(vec![0; 1025].into())),
        (r#"annotation "kek" is not a fully qualified domain name"#, |fake| {
            fake.annotations = [("kek".to_owned(), Bytes::new())].into();
        }),
        ("the annotations have 32769 bytes", |fake| {
            fake.annotations = [("a.b".to_owned(), vec![0; 32766].into())].into();
        }),
    ];
    for (reason, change) in refused {
        let fake = Fake::new("key-1");
        change(&mut lock(&fake));
        let mut server = server(&fake).await;
        let Err(Fault::Unhealthy(reasons)) = server.readyz().await else { panic!("{reason}: healthy") };
        assert_eq!(reasons, [reason]);
        assert!(matches!(server.write(PATH, b"x"), Err(Fault::NeverPrimed(_))));
    }
    let accepted: [Change; 3] = [
        |fake| fake.status.key_id = "k".repeat(1024),
        |fake| fake.ciphertext = Some(vec![0; 1024].into()),
        |fake| fake.annotations = [("a.b".to_owned(), vec![0; 32765].into())].into(),
    ];
    for change in accepted {
        let fake = Fake::new("key-1");
        change(&mut lock(&fake));
        server(&fake).await.readyz().await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_rotation_leaves_the_old_seed_to_its_expiry() {
    let fake = Fake::new("key-1");
    let mut server = server(&fake).await;
    lock(&fake).status.key_id = "key-2".to_owned();
    lock(&fake).encrypt_key_id = Some("key-1".to_owned());
    server.advance(seconds(180)).await;
    assert_eq!(server.key_id(0), Some("key-1"));
    server.write(PATH, b"x").unwrap();
    server.advance(seconds(1)).await;
    assert!(matches!(server.write(PATH, b"x"), Err(Fault::Expired(_))));
    lock(&fake).encrypt_key_id = None;
    server.advance(seconds(10)).await;
    assert_eq!(server.key_id(0), Some("key-2"));
    server.write(PATH, b"x").unwrap();
}

#[tokio::test]
async fn a_cached_seed_lives_until_a_write_after_its_day() {
    let fake = Fake::new("key-1");
    let old = server(&fake).await.write(PATH, b"x").unwrap();
    let mut server = server(&fake).await;
    server.read(PATH, &old).await.unwrap();
    server.advance(seconds(24 * 3600 + 1)).await;
    server.read(PATH, &old).await.unwrap();
    assert_eq!(server.calls(0).decrypt, 1);
    server.write(OTHER, b"y").unwrap();
    server.read(PATH, &old).await.unwrap();
    assert_eq!(server.calls(0).decrypt, 2);
}

#[tokio::test]
async fn the_first_entry_writes_and_all_read() {
    let (first, second) = (Fake::new("key-1"), Fake::new("key-9"));
    let old = ApiServer::start([("second", Plugin::fake(&second))]).await.write(PATH, b"x").unwrap();
    let mut server = ApiServer::start([("first", Plugin::fake(&first)), ("second", Plugin::fake(&second))]).await;
    let read = server.read(PATH, &old).await.unwrap();
    assert!(read.stale);
    let new = server.write(PATH, &read.plaintext).unwrap();
    assert!(new.starts_with(b"k8s:enc:kms:v2:first:"));
    assert!(!server.read(PATH, &new).await.unwrap().stale);
    assert!(matches!(server.read(PATH, b"k8s:enc:kms:v2:third:x").await, Err(Fault::NoProvider)));

    // One failing entry fails readiness, and is checked though the other is well.
    lock(&second).down = Some(Code::Unavailable);
    server.advance(seconds(60)).await;
    assert!(matches!(server.readyz().await, Err(Fault::Unhealthy(reasons)) if reasons.len() == 1));
}

#[tokio::test]
async fn stored_values_that_were_changed_do_not_open() {
    let fake = Fake::new("key-1");
    let mut server = server(&fake).await;
    let stored = server.write(PATH, b"secret").unwrap();
    assert!(matches!(server.read(OTHER, &stored).await, Err(Fault::Authentication)));
    let prefix = b"k8s:enc:kms:v2:demo:".len();
    let object = StoredValue::decode(&stored[prefix..]).unwrap();
    let store = |change: fn(&mut StoredValue)| {
        let mut object = object.clone();
        change(&mut object);
        with_prefix("demo", &object)
    };
    for changed in [
        store(|object| object.encrypted_dek_source = Bytes::from("forged")),
        store(|object| object.key_id = "key-2".to_owned()),
    ] {
        assert!(
            matches!(server.read(PATH, &changed).await, Err(Fault::Decrypt(status)) if status.code() == Code::InvalidArgument)
        );
    }
    for changed in [
        store(|object| object.encrypted_dek_source = Bytes::new()),
        store(|object| object.key_id = String::new()),
        store(|object| object.encrypted_dek_source_type = 2),
        store(|object| object.annotations = [("KEK".to_owned(), Bytes::new())].into()),
        stored[..stored.len() - 1].to_vec(),
    ] {
        assert!(matches!(server.read(PATH, &changed).await, Err(Fault::Invalid(_))));
    }
    for length in 0..object.encrypted_data.len() {
        let mut object = object.clone();
        object.encrypted_data.truncate(length);
        let changed = with_prefix("demo", &object);
        assert!(matches!(server.read(PATH, &changed).await, Err(Fault::Authentication)), "{length}");
    }
}

#[tokio::test]
async fn the_plugin_satisfies_the_api_server() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut plugin = crate::harness::Plugin::start(&config).healthy().await;
    let mut first = ApiServer::start([("hsm", Plugin::real(plugin.client().await))]).await;
    first.readyz().await.unwrap();
    let stored = first.write(PATH, b"secret").unwrap();
    first.advance(seconds(3600)).await;
    assert_eq!(first.calls(0), Calls { status: 61, encrypt: 1, decrypt: 0 });

    // Another process has another seed under the same key_id: nothing is stale, one Decrypt is needed.
    let mut second = ApiServer::start([("hsm", Plugin::real(plugin.client().await))]).await;
    let read = second.read(PATH, &stored).await.unwrap();
    assert_eq!((&read.plaintext[..], read.stale), (&b"secret"[..], false));
    assert_eq!(second.calls(0), Calls { status: 1, encrypt: 1, decrypt: 1 });
    assert_eq!(first.key_id(0), second.key_id(0));

    // Both outlive the plugin, and meet its successor with the seeds that they have.
    plugin.kill();
    first.advance(seconds(600)).await;
    assert!(matches!(first.write(PATH, b"x"), Err(Fault::Expired(_))));
    let _plugin = crate::harness::Plugin::start(&config).healthy().await;
    first.advance(seconds(10)).await;
    first.write(PATH, b"x").unwrap();
    assert_eq!(first.calls(0).encrypt, 1);
    assert_eq!(first.read(PATH, &stored).await.unwrap().plaintext, b"secret");
}
