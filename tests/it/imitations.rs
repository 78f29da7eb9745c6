//! Every profile of a vendor whose module we do not have, on the fault module that plays this vendor: ceremony, Encrypt, Decrypt,
//! a restart. It proves that the plugin keeps to the profile, and that a profile which says otherwise would be refused. Whether
//! the vendor keeps to its documents, only its device can show.
//!
//! A field that the vendor's documents do not settle stays `unconfirmed`, whatever is imitated: our guess proves itself.

mod site;
mod vendors;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use hsm_kms::envelope::Blob;
use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use hsm_kms::profile::{Evidence, Family, Profile, UserKind};
use serde_json::json;
use tonic::Code;

use self::site::Site;
use self::vendors::{USER, VENDORS, Vendor};
use crate::faults::{faults, until};
use crate::harness::{Config, Plugin, run_ceremony_on, write_secret};
use crate::parts;

/// Families whose module the tests have.
const REAL: [&str; 6] = ["softhsm2", "kryoptic", "nss", "opencryptoki-soft", "yubihsm2", "tpm2"];

/// What each Encrypt asks of the module, so that a profile with another value is refused. Not `seal.max_bytes`, which no seed
/// comes near.
const SEAL: [&str; 8] = [
    "seal.mechanism",
    "seal.number",
    "seal.call",
    "seal.params",
    "seal.iv.send",
    "seal.iv.found",
    "seal.iv.bytes",
    "seal.aad",
];

const SEED: &[u8; 32] = b"a seed of 32 bytes, as all are..";

#[test]
fn every_vendor_without_a_free_module_is_imitated() {
    let queue: Mutex<VecDeque<_>> = Mutex::new(VENDORS.iter().collect());
    let failed = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some(vendor) = queue.lock().unwrap().pop_front() else { return };
                    let tried = catch_unwind(AssertUnwindSafe(|| runtime().block_on(vendor.is_served())));
                    if tried.is_err() {
                        failed.lock().unwrap().insert(vendor.profile, "its panic stands above");
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// They wait for processes most of the time.
const SIDE_BY_SIDE: usize = 4;

impl Vendor {
    async fn is_served(&self) {
        let site = Site::new(self);
        site.refuses_other_forms();
        let record = run_ceremony_on(&site.section, self.permit, site.token.directory());
        let config = Config::on(&site.section, site.token.directory(), &record, "plugin");
        let mut plugin = Plugin::start(&config).healthy().await;
        let mut client = plugin.client().await;
        let form = site.profile.usable().unwrap().form;
        // 928 bytes is the longest plaintext that a blob has room for.
        for plaintext in [&[7_u8][..], SEED, &[9; 928]] {
            let sealed = encrypt(&mut client, plaintext).await;
            assert_eq!(Blob::parse(&sealed.ciphertext).unwrap().form(), form, "{}", self.profile);
            assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), plaintext, "{}", self.profile);
        }
        let sealed = encrypt(&mut client, SEED).await;
        for byte in 0..sealed.ciphertext.len() {
            let mut changed = sealed.ciphertext.to_vec();
            changed[byte] ^= 1 << (byte % 8);
            let changed = EncryptResponse { ciphertext: changed.into(), ..sealed.clone() };
            let refused = decrypt(&mut client, &changed).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{}, byte {byte}: {refused}", self.profile);
        }
        for (function, code, class) in self.codes {
            site.reads_a_code(&plugin, function, *code, class).await;
        }
        if site.profile.login.user == UserKind::None {
            assert_eq!(site.fault.calls("C_Login"), 0, "{}", self.profile);
        }
        drop(client);
        plugin.stop().await;
        let mut plugin = Plugin::start(&config).healthy().await;
        assert_eq!(decrypt(&mut plugin.client().await, &sealed).await.unwrap(), SEED, "{}", self.profile);
        plugin.stop().await;
        parts::record_run(site.token.profile);
    }
}

/// A site turns its Luna from one mode to the other: what was sealed before opens, in both directions, under one KEK.
#[tokio::test]
async fn blobs_of_both_modes_of_a_luna_open_in_either() {
    let [fips, nonfips] = ["thales-luna/fips", "thales-luna/nonfips"]
        .map(|name| VENDORS.iter().find(|vendor| vendor.profile == name).unwrap());
    let mut site = Site::new(fips);
    let record = run_ceremony_on(&site.section, &[], site.token.directory());
    let mut sealed: Vec<EncryptResponse> = Vec::new();
    for vendor in [fips, nonfips, fips] {
        site.imitate = (vendor.imitate)(&site.token);
        site.set(&[]);
        site.section["profile"] = json!(vendor.profile);
        let config = Config::on(&site.section, site.token.directory(), &record, "plugin");
        let mut plugin = Plugin::start(&config).healthy().await;
        let mut client = plugin.client().await;
        for before in &sealed {
            assert_eq!(decrypt(&mut client, before).await.unwrap(), SEED, "{}", vendor.profile);
        }
        sealed.push(encrypt(&mut client, SEED).await);
        drop(client);
        plugin.stop().await;
    }
    let forms: BTreeSet<_> =
        sealed.iter().map(|sealed| Blob::parse(&sealed.ciphertext).unwrap().form().iv_layout.code()).collect();
    assert_eq!(forms.len(), 2);
}

/// The ceremony is the crypto officer's, the service the crypto user's: a user type of Luna's own.
#[tokio::test]
async fn a_crypto_user_serves_what_the_crypto_officer_made() {
    let mut site = Site::new(VENDORS.iter().find(|vendor| vendor.profile == "thales-luna/fips").unwrap());
    let record = run_ceremony_on(&site.section, &[], site.token.directory());
    let path = site.token.directory().join("crypto-user.yaml");
    let text = Family::text("thales-luna").unwrap();
    fs::write(&path, text.replace("version: 1\n", "version: 1\ndefault_variant: fips\nlogin: { user: crypto-user }\n"))
        .unwrap();
    site.imitate["login"] = json!({"user": 0x8000_0001_u64});
    site.set(&[]);

    let config = Config::on(&site.section, site.token.directory(), &record, "officer");
    let plugin = Plugin::start(&config);
    until("the refusal", async || !faults(&plugin).is_empty()).await;
    assert!(faults(&plugin)[0].contains("CKR_USER_TYPE_INVALID"), "{:?}", faults(&plugin));
    drop(plugin);

    site.section["profile"] = json!(path);
    let config = Config::on(&site.section, site.token.directory(), &record, "limited");
    let mut plugin = Plugin::start(&config).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client, SEED).await;
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    drop(client);
    plugin.stop().await;
}

/// A PIN that lacks the user's name is not tried; one that the vendor refuses, in its own words, is tried once.
#[tokio::test]
async fn a_pin_with_a_users_name_is_never_tried_twice() {
    for (profile, code) in [("aws-cloudhsm", "CKR_PIN_INCORRECT"), ("azure-cloudhsm", "CKR_PIN_EXPIRED")] {
        let site = Site::new(VENDORS.iter().find(|vendor| vendor.profile == profile).unwrap());
        let record = run_ceremony_on(&site.section, &[], site.token.directory());
        let logins = site.fault.calls("C_Login");
        for (number, (pin, reason, tries)) in (1..).zip([
            (fs::read_to_string(&site.token.pin).unwrap(), "a user's name, a colon, a password", 0),
            (format!("{USER}:not the PIN of the token"), code, 1),
        ]) {
            let mut section = site.section.clone();
            let path = site.token.directory().join(format!("pin-{number}"));
            write_secret(&path, &pin);
            section["pin"] = json!({"file": path});
            let config = Config::on(&section, site.token.directory(), &record, &format!("plugin-{number}"));
            let plugin = Plugin::start(&config);
            until("the refusal", async || !faults(&plugin).is_empty()).await;
            let fault = &faults(&plugin)[0];
            assert!(fault.contains(reason) && fault.contains("class=\"pin-or-config\""), "{profile}: {fault}");
            assert_eq!(site.fault.calls("C_Login") - logins, tries, "{profile}: {fault}");
        }
    }
}

#[test]
fn the_table_has_every_usable_profile_whose_module_we_lack() {
    let names = Profile::names().filter(|name| !REAL.contains(name));
    let profiles: Vec<_> = names.flat_map(|name| Family::by_name(name).unwrap().profiles).collect();
    let usable: BTreeSet<_> =
        profiles.iter().filter(|profile| profile.usable().is_ok()).map(Profile::full_name).collect();
    let table: BTreeSet<_> = VENDORS.iter().map(|vendor| vendor.profile.to_owned()).collect();
    assert_eq!(usable, table);
    assert_eq!(table.len(), VENDORS.len());
}

/// `ci-imitated` stands at the fields that the table proves and at no others; `ci` at none.
#[test]
fn profiles_claim_of_their_seals_what_is_imitated_and_no_more() {
    for name in Profile::names().filter(|name| !REAL.contains(name)) {
        for profile in Family::by_name(name).unwrap().profiles {
            let vendor = VENDORS.iter().find(|vendor| vendor.profile == profile.full_name());
            for (field, evidence) in &profile.evidence {
                let name = format!("{} {field}", profile.full_name());
                assert_ne!(*evidence, Evidence::Ci, "{name}");
                let in_seal = SEAL.contains(field);
                let imitated = *evidence == Evidence::CiImitated;
                match vendor {
                    Some(vendor) if in_seal && vendor.guesses(field) => {
                        assert_eq!(*evidence, Evidence::Unconfirmed, "{name}");
                    }
                    Some(_) if in_seal => assert!(imitated, "{name}"),
                    Some(vendor) => assert_eq!(imitated, LOGINS.contains(&(vendor.profile, *field)), "{name}"),
                    None => assert!(!imitated, "{name}"),
                }
            }
        }
    }
}

/// Ways to log in that are imitated, with the other ways refused.
const LOGINS: [(&str, &str); 3] =
    [("aws-cloudhsm", "login.pin"), ("azure-cloudhsm", "login.pin"), ("google-kms", "login.user")];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn encrypt(client: &mut Client, plaintext: &[u8]) -> EncryptResponse {
    try_encrypt(client, plaintext).await.unwrap()
}

async fn try_encrypt(client: &mut Client, plaintext: &[u8]) -> Result<EncryptResponse, tonic::Status> {
    let request = EncryptRequest { plaintext: plaintext.to_vec().into(), uid: "test".to_owned() };
    Ok(client.encrypt(request).await?.into_inner())
}

async fn decrypt(client: &mut Client, sealed: &EncryptResponse) -> Result<Vec<u8>, tonic::Status> {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    let request = DecryptRequest { ciphertext, uid: "test".to_owned(), key_id, annotations };
    Ok(client.decrypt(request).await?.into_inner().plaintext.to_vec())
}
