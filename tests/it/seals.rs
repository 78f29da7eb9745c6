//! Every seal and IV layout through the whole plugin: ceremony, Encrypt, Decrypt, each bit of the blob changed.
//!
//! Key wrap runs on Kryoptic, and CCM on Yubico's own driver with a simulated device. What no free module does is imitated by the
//! fault module: that proves our side of it, and nothing about the vendor's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hsm_kms::envelope::Blob;
use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use hsm_kms::seal::{IvLayout, Seal, SealForm};
use serde_json::{Value, json};
use tonic::Code;

use crate::fault_module::FaultModule;
use crate::harness::{CLUSTER, Config, Plugin, TestToken, hold_ceremony, run_ceremony_on, wait_for, write_secret};
use crate::parts;
use crate::refusal::refusal;
use crate::yubihsm::device::Device;

const SEED: &[u8; 32] = b"a seed of 32 bytes, as all are..";

/// Makes a KEK on the token of this section, serves it, and tries blobs of several sizes.
async fn seals_and_opens(section: &Value, permit: &[&str], directory: &Path, form: SealForm) {
    let record = run_ceremony_on(section, permit, directory);
    let config = Config::on(section, directory, &record, "plugin");
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    for plaintext in [&[7_u8][..], SEED, &[9; 928]] {
        let sealed = encrypt(&mut client, plaintext).await;
        assert_eq!(Blob::parse(&sealed.ciphertext).unwrap().form(), form);
        assert!(sealed.ciphertext.len() <= plaintext.len() + 96);
        assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), plaintext);
    }
    let sealed = encrypt(&mut client, SEED).await;
    for bit in 0..sealed.ciphertext.len() * 8 {
        let mut changed = sealed.ciphertext.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let changed = EncryptResponse { ciphertext: changed.into(), ..sealed.clone() };
        let refused = decrypt(&mut client, &changed).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "bit {bit}: {refused}");
    }
    let mut annotated = sealed.clone();
    annotated.annotations.insert("added.example.com".to_owned(), vec![1].into());
    assert_eq!(decrypt(&mut client, &annotated).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    drop(client);
    plugin.stop().await;

    let mut plugin = Plugin::start(&config).healthy().await;
    assert_eq!(decrypt(&mut plugin.client().await, &sealed).await.unwrap(), SEED, "after a restart");
    plugin.stop().await;
}

async fn encrypt(client: &mut Client, plaintext: &[u8]) -> EncryptResponse {
    let request = EncryptRequest { plaintext: plaintext.to_vec().into(), uid: "test".to_owned() };
    client.encrypt(request).await.unwrap().into_inner()
}

async fn decrypt(client: &mut Client, sealed: &EncryptResponse) -> Result<Vec<u8>, tonic::Status> {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    let request = DecryptRequest { ciphertext, uid: "test".to_owned(), key_id, annotations };
    Ok(client.decrypt(request).await?.into_inner().plaintext.to_vec())
}

/// A profile like the token's own, with this `seal` section.
fn with_seal(token: &TestToken, seal: &str) -> Value {
    let manufacturer = if token.profile == "softhsm2" { "SoftHSM" } else { "Kryoptic" };
    let path = token.directory().join("profile.yaml");
    let profile = format!(
        "version: 1\nname: imitated\ntitle: Imitated\nmodule:\n  paths: [/none]\n  manufacturers: [{manufacturer}]\n\
         seal:\n{seal}\ncodes:\n  CKR_GENERAL_ERROR@C_Decrypt: data\nevidence:\n  default: unconfirmed\n"
    );
    fs::write(&path, profile).unwrap();
    let mut section = token.section();
    section["profile"] = json!(path);
    section["sandbox"] = json!({"write": [token.directory()]});
    section
}

/// The plugin on a module that imitates a vendor's way with the IV.
async fn imitated(imitate: &str, iv: &str, layout: IvLayout, iv_length: u8) {
    let token = TestToken::new();
    let fault = FaultModule::new(&token, "imitated");
    fault.set(&json!({"imitate": {"iv": imitate}}));
    let mut section = with_seal(&token, &format!("  mechanism: aes-gcm\n  iv: {{ {iv} }}"));
    fault.stand_in_front(&mut section);
    let form = SealForm { seal: Seal::AesGcm, iv_layout: layout, iv_length };
    seals_and_opens(&section, &[], token.directory(), form).await;
    parts::record_run(token.profile);
}

#[tokio::test]
async fn an_iv_of_16_bytes_behind_the_tag_as_luna_in_fips_mode() {
    imitated("luna-fips", "send: none, found: suffix, bytes: 16", IvLayout::Suffix, 16).await;
}

#[tokio::test]
async fn an_iv_of_12_bytes_behind_the_tag() {
    imitated("suffix", "send: none, found: suffix, bytes: 12", IvLayout::Suffix, 12).await;
}

#[tokio::test]
async fn an_iv_in_front_of_the_ciphertext() {
    imitated("prefix", "send: none, found: prefix, bytes: 12", IvLayout::Prefix, 12).await;
}

#[tokio::test]
async fn an_iv_written_back_into_the_parameter_as_cloudhsm_and_google() {
    imitated("param", "send: zeros, found: param, bytes: 12", IvLayout::Param, 12).await;
}

#[tokio::test]
async fn an_iv_written_back_at_the_start_as_protectserver() {
    imitated("protectserver", "send: zeros, found: param, bytes: 12", IvLayout::Param, 12).await;
}

#[tokio::test]
async fn an_iv_behind_the_tag_beside_one_that_is_sent_as_old_protectserver() {
    imitated("protectserver-old", "send: random, found: suffix, bytes: 12", IvLayout::Suffix, 12).await;
}

/// The module takes its own output back whole: the blob has no IV of its own.
#[tokio::test]
async fn an_iv_that_stays_in_the_ciphertext() {
    imitated("inside", "send: none, found: inside", IvLayout::Inside, 0).await;
}

#[tokio::test]
async fn an_iv_of_16_bytes_that_is_sent() {
    let token = TestToken::new();
    let section = with_seal(&token, "  mechanism: aes-gcm\n  iv: { send: random, found: sent, bytes: 16 }");
    let form = SealForm { seal: Seal::AesGcm, iv_layout: IvLayout::Sent, iv_length: 16 };
    seals_and_opens(&section, &[], token.directory(), form).await;
}

/// A module in another mode than its profile: the ceremony refuses, and leaves nothing behind.
#[test]
fn a_module_that_does_not_seal_as_its_profile_says_gets_no_kek() {
    for (imitate, iv) in [
        ("luna-fips", "send: random, found: sent, bytes: 12"),
        ("param", "send: random, found: sent, bytes: 12"),
        ("suffix", "send: none, found: prefix, bytes: 12"),
        ("prefix", "send: none, found: suffix, bytes: 16"),
    ] {
        let token = TestToken::new();
        let fault = FaultModule::new(&token, "imitated");
        fault.set(&json!({"imitate": {"iv": imitate}}));
        let mut section = with_seal(&token, &format!("  mechanism: aes-gcm\n  iv: {{ {iv} }}"));
        fault.stand_in_front(&mut section);
        let refused = std::panic::catch_unwind(|| run_ceremony_on(&section, &[], token.directory()));
        assert!(refused.is_err(), "{imitate} with {iv}");
        assert!(!token.directory().join("kek-record.json").exists());
        assert_eq!(fault.calls("C_GenerateKey") - 1, fault.calls("C_DestroyObject") - 1, "the KEK is gone");
    }
}

/// AES key wrap with padding by `C_Encrypt`, on the module that has it.
#[tokio::test]
async fn key_wrap_on_kryoptic() {
    let token = TestToken::kryoptic();
    let mut section = token.section();
    section["profile"] = json!("kryoptic/kwp");
    let form = SealForm { seal: Seal::AesKwp, iv_layout: IvLayout::Inside, iv_length: 0 };
    seals_and_opens(&section, &[], token.directory(), form).await;
}

/// The same by `C_WrapKey` and `C_UnwrapKey`. The blobs are of one form, so that a site may change its mind.
#[tokio::test]
async fn key_wrap_by_wrapping_keys_on_kryoptic() {
    let token = TestToken::kryoptic();
    let mut section = token.section();
    section["profile"] = json!("kryoptic/kwp-wrap");
    let form = SealForm { seal: Seal::AesKwp, iv_layout: IvLayout::Inside, iv_length: 0 };
    seals_and_opens(&section, &[], token.directory(), form).await;
}

/// SoftHSM2 has a key wrap that gives its padding back. Seeds of 32 bytes would not show it.
#[test]
fn a_key_wrap_that_gives_its_padding_back_gets_no_kek() {
    let token = TestToken::softhsm2();
    let seal = "  mechanism: aes-kwp\n  number: CKM_AES_KEY_WRAP_PAD\n  call: wrap";
    let output = hold_ceremony(&with_seal(&token, seal), &[], token.directory());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("it opened its own seal to something else"), "{errors}");
    assert!(errors.contains("the token is as it was"), "{errors}");
}

/// PKCS#11 3.0 message encryption: the module makes the IV.
#[tokio::test]
async fn message_encryption_on_kryoptic() {
    let token = TestToken::kryoptic();
    let mut section = token.section();
    section["profile"] = json!("kryoptic/gcm-message");
    let form = SealForm { seal: Seal::AesGcm, iv_layout: IvLayout::Param, iv_length: 12 };
    seals_and_opens(&section, &[], token.directory(), form).await;
}

/// A 2.40 module has no message functions, and the profile says that it has: named before any login.
#[test]
fn message_encryption_is_refused_where_the_mechanism_s_flags_do_not_say_so() {
    let token = TestToken::softhsm2();
    let mut section = with_seal(&token, "  mechanism: aes-gcm\n  call: message\n  iv: { send: zeros, found: param }");
    // A PIN that would be refused: it is not tried.
    section["pin"] = json!({"file": token.directory().join("wrong-pin")});
    write_secret(&token.directory().join("wrong-pin"), "wrong");
    let plan = json!({
        "version": 1, "kind": "trial", "cluster": CLUSTER, "token": section, "kek": {"label": "kek"},
        "output": token.directory(),
    });
    let path = token.directory().join("plan.yaml");
    fs::write(&path, plan.to_string()).unwrap();
    let refusal = refusal(&["ceremony", "run", "--plan", path.to_str().unwrap()], b"");
    assert!(refusal.why.contains("does not have CKM_AES_GCM, which the profile needs"), "{}", refusal.text);
    assert!(refusal.hint.contains("what this token can do: softhsm2"), "{}", refusal.text);
}

/// CBC with a MAC by a second key: on any module that has both mechanisms.
#[tokio::test]
async fn cbc_with_a_mac() {
    let token = TestToken::new();
    let section = with_seal(&token, "  mechanism: aes-cbc-hmac");
    let form = SealForm { seal: Seal::AesCbcHmac, iv_layout: IvLayout::Sent, iv_length: 16 };
    seals_and_opens(&section, &[], token.directory(), form).await;
    let record = fs::read_to_string(token.directory().join("kek-record.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["mac_key"]["label"], json!(format!("{}-mac", record["kek"]["label"].as_str().unwrap())));
    for (key, right, other) in [("kek", "CKA_ENCRYPT", "CKA_SIGN"), ("mac_key", "CKA_SIGN", "CKA_ENCRYPT")] {
        let attributes = &record[key]["attributes"];
        assert_eq!((&attributes[right], &attributes[other]), (&json!(true), &json!(false)), "{key}");
    }
    assert_ne!(record["kek"]["id"], record["mac_key"]["id"]);
    parts::record_run(token.profile);
}

const YUBIHSM_PERMITS: [&str; 2] = ["CKA_KEY_GEN_MECHANISM", "CKA_ALLOWED_MECHANISMS"];
const YUBIHSM_FORM: SealForm = SealForm { seal: Seal::YubicoCcm, iv_layout: IvLayout::Inside, iv_length: 0 };

/// The whole way with the one vendor's driver that tests can have. The device is simulated.
#[tokio::test]
async fn ccm_on_the_driver_of_yubico() {
    let device = Device::new();
    seals_and_opens(&device.section(), &YUBIHSM_PERMITS, device.directory(), YUBIHSM_FORM).await;
}

/// The device's connector goes and comes back: the plugin says so, and serves again without a restart.
#[tokio::test]
async fn a_yubihsm_that_went_away_comes_back() {
    let mut device = Device::new();
    let record = run_ceremony_on(&device.section(), &YUBIHSM_PERMITS, device.directory());
    let config = Config::on(&device.section(), device.directory(), &record, "plugin");
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client, SEED).await;
    device.kill();
    let refused = decrypt(&mut client, &sealed).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{refused}");
    device.start();
    let mut opened = None;
    for _ in 0..100 {
        opened = decrypt(&mut client, &sealed).await.ok();
        if opened.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(opened.as_deref(), Some(&SEED[..]), "{}", plugin.log());
    drop(client);
    plugin.stop().await;
    wait_for("the socket to go", || (!plugin.socket().exists()).then_some(()));
}
