//! What real modules were seen to do, and what it must not do to the plugin.
//!
//! | trap | seen on | tried on |
//! |---|---|---|
//! | 1 a short ciphertext gets an absurd length | opencryptoki 3.23 | the module under test, which would crash |
//! | 2 a size query is wrong | NSS, SoftHSM2 | the fault module, which lies |
//! | 3 a write past the output buffer | opencryptoki 3.23 | the fault module, which does it |
//! | 4 a finalise crashes while calls run | six of seven modules | the fault module, which counts |
//! | 5 a call never returns | YubiHSM, p11-kit | Yubico's driver |
//! | 6 a long label locks the driver for good | YubiHSM | Yubico's driver |
//! | 7 session and token information look well without a device | YubiHSM | Yubico's driver |
//! | 8 return codes do not tell a changed blob from a sick token | SoftHSM2, Kryoptic, YubiHSM | the module under test, Yubico's driver |
//! | 9 handles die with the login | SoftHSM2, opencryptoki | the module under test |
//! | 10 wrong PINs lock a token | Kryoptic, opencryptoki, TPM | the module under test, Kryoptic's counter |
//! | 11 rights are given by default, refusals have any code | SoftHSM2, opencryptoki, NSS | the fault module |
//! | 12 two keys may have one id and label | five of seven modules | the module under test |
//!
//! Traps 10 and 12 are tried by `bad_pin` and `bad_kek`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hsm_kms::envelope::Blob;
use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptResponse, StatusRequest};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use crate::fault_module::FaultModule;
use crate::faults::{encrypt, until};
use crate::harness::{CLUSTER, Config, LABEL, Plugin, TestToken, run, run_ceremony, run_ceremony_on, text};
use crate::processes::{is_alive, signal, worker};
use crate::yubihsm::device::Device;
use crate::{bad_kek, bad_pin, parts};

/// A plugin that serves through the fault module, and what it sealed.
struct Rig {
    plugin: Plugin,
    client: Client,
    fault: FaultModule,
    sealed: EncryptResponse,
    /// Goes last.
    stand: Stand,
}

enum Stand {
    Token(#[expect(dead_code, reason = "its folder goes with it")] TestToken),
    Device(Device),
}

impl Rig {
    /// On the module under test.
    async fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let fault = FaultModule::new(&token, "trap");
        let mut section = token.section();
        fault.stand_in_front(&mut section);
        let config = Config::on(&section, token.directory(), &record, "plugin");
        Self::start(&config, fault, Stand::Token(token)).await
    }

    /// On Yubico's driver, with a simulated device.
    async fn yubihsm() -> Self {
        let device = Device::new();
        let mut section = device.section();
        let record = run_ceremony_on(&section, &YUBIHSM_PERMITS, device.directory());
        let fault = FaultModule::before(&crate::yubihsm::device::module(), device.directory(), "trap");
        fault.stand_in_front(&mut section);
        let config = Config::on(&section, device.directory(), &record, "plugin");
        parts::record_run("yubihsm-pkcs11");
        Self::start(&config, fault, Stand::Device(device)).await
    }

    async fn start(config: &Config, fault: FaultModule, stand: Stand) -> Self {
        let plugin = Plugin::start(config).healthy().await;
        let mut client = plugin.client().await;
        let sealed = encrypt(&mut client).await.unwrap();
        Self { plugin, client, fault, sealed, stand }
    }

    fn device(&mut self) -> &mut Device {
        match &mut self.stand {
            Stand::Device(device) => device,
            Stand::Token(_) => panic!("no device"),
        }
    }

    /// Opens these bytes as a blob of the KEK.
    async fn open(&mut self, blob: &[u8]) -> Result<Vec<u8>, tonic::Status> {
        let EncryptResponse { key_id, annotations, .. } = self.sealed.clone();
        let request = DecryptRequest { ciphertext: blob.to_vec().into(), uid: "trap".to_owned(), key_id, annotations };
        Ok(self.client.decrypt(request).await?.into_inner().plaintext.to_vec())
    }

    async fn opens(&mut self) -> bool {
        let blob = self.sealed.ciphertext.clone();
        self.open(&blob).await.is_ok()
    }

    /// Whether a worker crashed or gave up.
    fn worker_died(&self) -> bool {
        let log = self.plugin.log();
        log.contains("the worker process ended") || log.contains("gave up a session")
    }

    async fn healthz(&mut self) -> String {
        self.client.status(StatusRequest {}).await.unwrap().into_inner().healthz
    }
}

const YUBIHSM_PERMITS: [&str; 2] = ["CKA_KEY_GEN_MECHANISM", "CKA_ALLOWED_MECHANISMS"];

#[tokio::test]
async fn trap_01_a_short_ciphertext_never_reaches_the_module() {
    let mut rig = Rig::new().await;
    // A shorter one that still is a whole blob: the form, the IV, and too little behind it.
    let blob = rig.sealed.ciphertext.clone();
    let overhead = blob.len() - Blob::parse(&blob).unwrap().ciphertext().len();
    rig.fault.set(&json!({"rules": [
        {"function": "C_DecryptInit", "action": "abort"}, {"function": "C_Decrypt", "action": "abort"},
    ]}));
    let calls = rig.fault.calls("C_DecryptInit");
    // A tag alone has 16 bytes, and a seed at least one.
    for length in 0..17 {
        let refused = rig.open(&blob[..overhead + length]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{length} bytes: {refused}");
    }
    assert_eq!(rig.fault.calls("C_DecryptInit"), calls);
    rig.fault.clear();
    assert!(rig.opens().await);
}

#[tokio::test]
async fn trap_02_a_size_query_is_never_trusted() {
    let mut rig = Rig::new().await;
    for lie in [-16, -1, 1, i64::MAX] {
        rig.fault.set(&json!({"rules": [
            {"function": "C_Encrypt", "action": {"size_query": lie}},
            {"function": "C_Decrypt", "action": {"size_query": lie}},
        ]}));
        let count =
            |rig: &Rig| ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"].map(|name| rig.fault.calls(name));
        let before = count(&rig);
        encrypt(&mut rig.client).await.unwrap();
        assert!(rig.opens().await);
        // Nobody asked: two calls each.
        assert_eq!(count(&rig), before.map(|calls| calls + 1), "{lie}");
    }
}

#[tokio::test]
async fn trap_03_a_write_past_the_buffer_hits_slack() {
    let mut rig = Rig::new().await;
    // opencryptoki wrote up to a block too much; there is room for four.
    for past in [1, 14, 16, 64] {
        rig.fault.set(&json!({"rules": [
            {"function": "C_Encrypt", "action": {"overrun": past}}, {"function": "C_Decrypt", "action": {"overrun": past}},
        ]}));
        for _ in 0..20 {
            let sealed = encrypt(&mut rig.client).await.unwrap();
            assert!(rig.open(&sealed.ciphertext).await.is_ok() && rig.opens().await);
        }
    }
    assert!(!rig.worker_died(), "{}", rig.plugin.log());
}

#[tokio::test]
async fn trap_04_a_module_is_never_finalised() {
    let mut rig = Rig::new().await;
    // Under load: an operator's new try, a worker that is killed, a fault that replaces it, and the end.
    let mut busy = rig.client.clone();
    let load = tokio::spawn(async move {
        loop {
            let _ = encrypt(&mut busy).await;
        }
    });
    for round in 0..3 {
        let starts = rig.fault.calls("C_Initialize");
        match round {
            0 => rig.plugin.hang_up(),
            1 => drop(signal(worker(&rig.plugin).unwrap(), Signal::KILL)),
            _ => rig.fault.always("C_Encrypt", &json!({"return": "CKR_DEVICE_REMOVED"})),
        }
        until("a new worker", async || rig.fault.calls("C_Initialize") > starts).await;
        rig.fault.clear();
        until("it serves", async || rig.opens().await).await;
    }
    load.abort();
    assert!(rig.plugin.stop().await.success());
    assert_eq!(rig.fault.calls("C_Finalize"), 0);
}

#[tokio::test]
async fn trap_05_a_call_that_never_returns_costs_the_worker_and_nothing_else() {
    let mut rig = Rig::yubihsm().await;
    let before = worker(&rig.plugin).unwrap();
    rig.device().set_faults(&json!({"silent": true}));
    let asked = Instant::now();
    let blob = rig.sealed.ciphertext.clone();
    let refused = rig.open(&blob).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{refused}");
    // To the tenth of a second it is measured elsewhere: here the machine may be busy.
    assert!(asked.elapsed() < Duration::from_secs(10), "the device is silent for ever");
    rig.healthz().await;
    until("the hung process to go", async || !is_alive(before)).await;
    assert_eq!(rig.fault.calls("C_Finalize"), 0, "the hung call would have hung it, too");
    rig.device().set_faults(&json!({}));
    until("it serves", async || rig.opens().await).await;
}

#[tokio::test]
async fn trap_06_a_long_label_never_reaches_the_driver() {
    let device = Device::new();
    let longest = "k".repeat(40);
    for label in ["k".repeat(41), "k".repeat(300)] {
        let (code, text) = ceremony(&device.section(), device.directory(), &label, &YUBIHSM_PERMITS);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("`kek.label`: expected at most"), "{text}");
    }
    let (code, text) = ceremony(&device.section(), device.directory(), &longest, &YUBIHSM_PERMITS);
    assert_eq!(code, Some(0), "{text}");
    let record = device.directory().join("kek-record.json");
    let config = Config::on(&device.section(), device.directory(), &record, "plugin");
    let plugin = Plugin::start(&config).healthy().await;
    encrypt(&mut plugin.client().await).await.unwrap();
}

#[tokio::test]
async fn trap_07_only_the_kek_itself_proves_that_the_token_is_there() {
    let mut rig = Rig::yubihsm().await;
    rig.device().kill();
    // Nobody asks anything but Status. The driver would still say that session and token are well.
    let opens = rig.fault.calls("C_Decrypt");
    until("Status to notice", async || rig.healthz().await != "ok").await;
    assert!(rig.fault.calls("C_Decrypt") > opens, "by trying the KEK");
    rig.device().start();
    until("Status to notice", async || rig.healthz().await == "ok").await;
    assert!(rig.opens().await);
}

#[tokio::test]
async fn trap_08_a_changed_blob_is_told_from_a_sick_token_by_the_kek_not_by_the_code() {
    for mut rig in [Rig::new().await, Rig::yubihsm().await] {
        for byte in (0..rig.sealed.ciphertext.len()).rev().take(30) {
            let mut changed = rig.sealed.ciphertext.to_vec();
            changed[byte] ^= 0x20;
            let refused = rig.open(&changed).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "byte {byte}: {refused}");
            assert_eq!(rig.healthz().await, "ok");
        }
        assert!(!rig.worker_died(), "garbage from a client costs no start: {}", rig.plugin.log());

        // A blob of another form can make a module refuse the mechanism's parameter: no reason to stop.
        let mut changed = rig.sealed.ciphertext.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        rig.fault.once("C_DecryptInit", &json!({"return": "CKR_MECHANISM_PARAM_INVALID"}));
        let refused = rig.open(&changed).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(rig.opens().await);

        // The codes of a changed blob, and this time nothing opens: the blob is not to blame.
        for code in ["CKR_GENERAL_ERROR", "CKR_DEVICE_ERROR", "CKR_ENCRYPTED_DATA_INVALID"] {
            rig.fault.always("C_Decrypt", &json!({"return": code}));
            let blob = rig.sealed.ciphertext.clone();
            let refused = rig.open(&blob).await.unwrap_err();
            assert_ne!(refused.code(), Code::InvalidArgument, "{code}: {refused}");
            rig.fault.clear();
            // By itself: a key that does not open what it seals itself is no other key.
            until("it serves", async || rig.opens().await).await;
        }
    }
}

#[tokio::test]
async fn trap_09_handles_die_with_the_login() {
    let mut rig = Rig::new().await;
    for lost in ["log_out", "drop_sessions"] {
        for function in ["C_EncryptInit", "C_DecryptInit"] {
            let [finds, logins] = ["C_FindObjects", "C_Login"].map(|name| rig.fault.calls(name));
            rig.fault.once(function, &json!(lost));
            encrypt(&mut rig.client).await.unwrap();
            assert!(rig.opens().await, "{function} {lost}");
            assert!(rig.fault.calls("C_Login") > logins, "{function} {lost}");
            assert!(rig.fault.calls("C_FindObjects") > finds, "{function} {lost}: the key was found again");
        }
    }
}

#[tokio::test]
async fn trap_10_a_wrong_pin_is_tried_once_for_each_word_of_the_operator() {
    bad_pin::a_wrong_pin_is_tried_once_at_the_start_and_once_per_hangup().await;
}

#[test]
fn trap_11_every_right_is_refused_by_name_and_read_back() {
    const RIGHTS: [&str; 8] = [
        "CKA_WRAP",
        "CKA_UNWRAP",
        "CKA_SIGN",
        "CKA_VERIFY",
        "CKA_DERIVE",
        "CKA_EXTRACTABLE",
        "CKA_SENSITIVE",
        "CKA_PRIVATE",
    ];
    let token = TestToken::new();
    let fault = FaultModule::new(&token, "trap");
    let mut section = token.section();
    fault.stand_in_front(&mut section);
    // NSS refuses what it does not know with this code, and it tells nothing.
    for code in ["CKR_GENERAL_ERROR", "CKR_ATTRIBUTE_TYPE_INVALID", "CKR_TEMPLATE_INCONSISTENT"] {
        let refused =
            json!({"explicit": RIGHTS, "refuse": ["CKA_COPYABLE", "CKA_ALLOWED_MECHANISMS"], "refused": code});
        fault.set(&json!({"imitate": {"template": refused}}));
        // The key was made without them, and what it then was decides.
        let (exit, text) = ceremony(&section, token.directory(), LABEL, &[]);
        assert_ne!(exit, Some(0), "{code}: {text}");
        assert!(text.contains("CKA_ALLOWED_MECHANISMS is"), "{code}: {text}");
        assert!(text.contains("the token is as it was"), "{code}: {text}");
    }
    let (exit, text) = ceremony(&section, token.directory(), LABEL, &["CKA_ALLOWED_MECHANISMS"]);
    assert_eq!(exit, Some(0), "{text}");
    let record: Value = serde_json::from_slice(&fs::read(token.directory().join("kek-record.json")).unwrap()).unwrap();
    for right in ["CKA_WRAP", "CKA_UNWRAP", "CKA_SIGN", "CKA_VERIFY", "CKA_DERIVE", "CKA_EXTRACTABLE"] {
        assert_eq!(record["kek"]["attributes"][right], json!(false), "{right}: {record:#}");
    }
}

#[tokio::test]
async fn trap_12_two_keys_with_one_id_and_label_are_refused() {
    bad_kek::two_keys_that_could_be_the_kek_are_refused().await;
}

/// Exit code and standard error of a ceremony.
fn ceremony(section: &Value, directory: &Path, label: &str, permit: &[&str]) -> (Option<i32>, String) {
    let plan = json!({
        "version": 1, "kind": "trial", "cluster": CLUSTER, "token": section, "output": directory,
        "kek": {"label": label, "permit": permit},
    });
    let path = directory.join("trap.yaml");
    fs::write(&path, plan.to_string()).unwrap();
    let output = run(&["ceremony", "run", "--plan", &text(&path)], b"");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
