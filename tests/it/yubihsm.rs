//! Yubico's own PKCS#11 driver on a simulated YubiHSM 2: the one vendor's driver that tests can have.
//!
//! What the driver does is real; what the device answers is the simulator's. It says nothing about a device's speed.

mod device;

use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;

use self::device::{Device, Driver, LOGIN};

/// 32 bytes, as a seed has.
const PLAINTEXT: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A driver that has made a key and selected it.
fn with_key(device: &Device) -> Driver {
    let mut driver = device.log_in();
    driver.does("generate kek 0101");
    driver
}

#[test]
fn the_driver_names_itself() {
    let info = Device::new().load_driver().does("info");
    assert_eq!(info["manufacturer"], "Yubico (www.yubico.com)");
    assert_eq!(info["description"], "YubiHSM PKCS#11 Library");
    let slot = &info["slots"][0];
    assert_eq!((&slot["label"], &slot["model"]), (&json!("YubiHSM"), &json!("YubiHSM")), "{info}");
    assert_eq!(slot["ccm_wrap"], json!({"encrypt": true, "decrypt": true, "key_size": [128, 256]}));
}

#[test]
fn a_wrap_key_seals_and_opens() {
    let device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);
    assert_eq!(sealed.len(), PLAINTEXT.len() + 2 * (1 + 13 + 16));
    assert_ne!(driver.seal(PLAINTEXT), sealed, "the device makes a nonce each time");
    assert_eq!(driver.open(&sealed), PLAINTEXT);
    for length in [1, 2019] {
        let plaintext = "5a".repeat(length);
        let sealed = driver.seal(&plaintext);
        assert_eq!(driver.open(&sealed), plaintext);
    }
    assert_eq!(driver.refuses(&format!("seal {}", "5a".repeat(4096))), "ArgumentsBad from Encrypt");
    driver.record();
}

/// The code for a changed ciphertext is one for a broken device: it must not be taken for one.
#[test]
fn a_changed_ciphertext_is_refused_as_a_device_error() {
    let device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);
    for place in (0..sealed.len()).step_by(2) {
        let byte = u8::from_str_radix(&sealed[place..place + 2], 16).unwrap() ^ 1;
        let changed = format!("{}{byte:02x}{}", &sealed[..place], &sealed[place + 2..]);
        assert_eq!(driver.refuses(&format!("open {changed}")), "DeviceError from Decrypt", "byte {}", place / 2);
    }
    assert_eq!(driver.refuses(&format!("open {}", &sealed[..16])), "EncryptedDataInvalid from Decrypt");
    assert_eq!(driver.open(&sealed), PLAINTEXT);

    driver.does("generate other 0102");
    assert_eq!(driver.refuses(&format!("open {sealed}")), "DeviceError from Decrypt");
}

#[test]
fn the_other_mechanisms_work() {
    let others = Device::new().log_in().does("others");
    for check in ["random", "cbc", "mac", "wrong_mac"] {
        assert_eq!(others[check], true, "{others}");
    }
}

#[test]
fn two_keys_cannot_have_one_id() {
    let device = Device::new();
    let mut driver = with_key(&device);
    assert_eq!(driver.refuses("generate kek 0101"), "AttributeValueInvalid from GenerateKey");
    driver.does("find kek");
    driver.does("destroy");
    assert_eq!(driver.does("find kek")["found"], 0);
    driver.does("generate kek 0101");
}

#[test]
fn a_wrong_pin_is_told_from_a_wrong_key_number() {
    let device = Device::new();
    let mut driver = device.load_driver();
    // More often than the device has sessions: an attempt that failed must not cost one.
    for _ in 0..20 {
        assert_eq!(driver.refuses("login 0001passwords"), "PinIncorrect from Login");
    }
    assert_eq!(driver.refuses("login 0002password"), "ObjectHandleInvalid from Login");
    assert_eq!(driver.refuses("login wordpassword"), "PinIncorrect from Login", "no number in front");
    assert_eq!(driver.refuses("login 0001short"), "ArgumentsBad from Login", "a password has 8 characters");
    driver.does(LOGIN);
}

#[test]
fn keys_outlive_a_restart_of_the_device() {
    let mut device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);

    device.kill();
    assert_eq!(driver.refuses(&format!("open {sealed}")), "DeviceRemoved from Decrypt");
    device.start();
    assert_eq!(driver.open(&sealed), PLAINTEXT, "the driver makes a session by itself");

    driver.does("reload");
    driver.does(LOGIN);
    assert_eq!(driver.does("find kek")["found"], 1);
    assert_eq!(driver.open(&sealed), PLAINTEXT);
}

#[test]
fn a_driver_that_starts_before_the_device_must_start_again() {
    let mut device = Device::new();
    device.kill();
    let mut driver = device.load_driver();
    assert_eq!(driver.refuses(LOGIN), "no slot has a token");
    device.start();
    assert_eq!(driver.refuses(LOGIN), "no slot has a token", "it looks only when it starts");
    assert_eq!(driver.does("reload")["slots"], 1);
    driver.does(LOGIN);
}

#[test]
fn a_lost_session_is_made_again() {
    let device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);
    for number in 1..4 {
        device.set_faults(&json!({"drop_sessions": number}));
        assert_eq!(driver.open(&sealed), PLAINTEXT);
    }
}

#[test]
fn the_device_has_sixteen_sessions() {
    let device = Device::new();
    let mut drivers: Vec<Driver> = (0..16).map(|_| device.log_in()).collect();
    let mut late = device.load_driver();
    assert_eq!(late.refuses(LOGIN), "SessionCount from Login");
    drivers.pop().unwrap().end();
    late.does(LOGIN);
    // Sessions of PKCS#11 are the driver's own: they cost none of the device's.
    assert_eq!(late.does("sessions 100")["open"], 101);

    device.set_faults(&json!({"sessions_full": true}));
    drivers.pop().unwrap().end();
    assert_eq!(device.load_driver().refuses(LOGIN), "SessionCount from Login");
}

#[test]
fn a_slow_device_does_one_command_at_a_time() {
    let device = Device::new();
    let mut drivers = [with_key(&device), device.log_in()];
    drivers[1].does("find kek");
    device.set_faults(&json!({"delay_ms": 100}));
    let seal = format!("seal {PLAINTEXT}");
    for driver in &mut drivers {
        driver.begin(&seal);
    }
    let mut took = drivers.each_mut().map(|driver| {
        let outcome = driver.outcome();
        assert_eq!(outcome["ok"], true, "{outcome}");
        outcome["ms"].as_u64().unwrap()
    });
    took.sort_unstable();
    assert!(took[0] >= 100 && took[1] >= 150, "{took:?}");
}

#[test]
fn a_silent_device_blocks_the_driver() {
    let device = Device::new();
    let mut driver = with_key(&device);
    device.set_faults(&json!({"silent": true}));
    driver.begin(&format!("seal {PLAINTEXT}"));
    // No condition to wait for: that it does not answer is the point.
    let silence = Duration::from_millis(300);
    thread::sleep(silence);
    device.set_faults(&json!({}));
    let outcome = driver.outcome();
    assert!(outcome["ok"] == true && outcome["ms"].as_u64().unwrap() >= 200, "{outcome}");
}

#[test]
fn a_connector_that_refuses_is_a_removed_device() {
    let device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);
    device.set_faults(&json!({"refuse": true}));
    assert_eq!(driver.refuses(&format!("open {sealed}")), "DeviceRemoved from Decrypt");
    // The driver's own answers stay good: they prove nothing about the device.
    driver.does("sessions 1");
    device.set_faults(&json!({}));
    assert_eq!(driver.open(&sealed), PLAINTEXT);
}

/// This code means a bad ciphertext on other modules. Here, with [`a_changed_ciphertext_is_refused_as_a_device_error`], it is the other way round.
#[test]
fn a_spoilt_answer_is_called_invalid_data() {
    let device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);
    device.set_faults(&json!({"wrong_mac": true}));
    assert_eq!(driver.refuses(&format!("open {sealed}")), "EncryptedDataInvalid from Decrypt");
    device.set_faults(&json!({}));
    assert_eq!(driver.open(&sealed), PLAINTEXT);
}

#[test]
fn an_error_can_be_put_on_one_command() {
    const UNWRAP_DATA: u8 = 0x69;
    let device = Device::new();
    let mut driver = with_key(&device);
    let sealed = driver.seal(PLAINTEXT);
    let open = format!("open {sealed}");
    for (code, name) in
        [(0x02, "DeviceError"), (0x09, "FunctionRejected"), (0x0a, "DeviceMemory"), (0x0b, "ObjectHandleInvalid")]
    {
        device.set_faults(&json!({"device_error": {"command": UNWRAP_DATA, "code": code, "nth": 2}}));
        assert_eq!(driver.open(&sealed), PLAINTEXT);
        assert_eq!(driver.refuses(&open), format!("{name} from Decrypt"));
        assert_eq!(driver.open(&sealed), PLAINTEXT);
    }
}

/// Yubico's driver returns from a too long label without its lock: nothing but the end of the process helps.
#[test]
fn a_long_label_or_id_locks_the_driver_for_good() {
    let (label, id) = ("x".repeat(257), "ab".repeat(257));
    for too_long in [format!("generate {label} 0101"), format!("generate kek {id}")] {
        let device = Device::new();
        let mut driver = device.log_in();
        assert_eq!(driver.refuses(&too_long), "AttributeValueInvalid from GenerateKey");
        driver.begin("sessions 1");
        assert!(driver.is_silent_for(Duration::from_millis(500)), "the driver is better than it was");
        with_key(&device).seal(PLAINTEXT);
    }
}

#[test]
fn the_setup_script_finds_the_device() {
    let mut device = Device::new();
    let config = device.directory().join("made/y.conf");
    let run = |connector: &str| {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/yubihsm-setup"));
        script.env("LD_LIBRARY_PATH", device::libraries()).args(["--connector", connector]);
        script.arg("--config").arg(&config).arg("--module").arg(device::module());
        let output = script.output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), stdout + &stderr)
    };
    let connector = device.connector();
    let (code, text) = run(&connector);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Yubico (www.yubico.com)") && text.contains("YUBIHSM_PKCS11_CONF="), "{text}");

    let (code, text) = run("http://127.0.0.1:1");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("says something else"), "{text}");
    assert_eq!(run("ftp://127.0.0.1").0, Some(2));

    device.kill();
    let (code, text) = run(&connector);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the driver sees no device"), "{text}");
}
