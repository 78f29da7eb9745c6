//! The floor: the PKCS#11 calls of a seal, and of an open, in a loop in this process.

use std::time::{Duration, Instant};

use hsm_kms::pin::PinSource;
use hsm_kms::pkcs11::{KekKeys, Module, Sealed};
use hsm_kms::record::KekRecord;

use crate::site::Site;

/// Median seconds of one seal and one open.
#[derive(Clone, Copy)]
pub struct Direct {
    /// For AES-GCM `C_EncryptInit` and `C_Encrypt`, with a random IV.
    pub seal: f64,
    /// For AES-GCM `C_DecryptInit` and `C_Decrypt`.
    pub open: f64,
}

/// Whether this process is the child of [`measure`].
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Measures in a child, alone with the module: it can be initialised once in a process, and wants an environment of its own.
pub fn measure(site: &Site) -> Direct {
    let output = std::process::Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .envs(site.environment())
        .env(CHILD, "1")
        .output()
        .expect("child");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    Direct { seal: numbers.next().expect("seal"), open: numbers.next().expect("open") }
}

/// What the child does.
pub fn measure_here(site: &Site, span: Duration) {
    let record = KekRecord::read(&site.record()).expect("record");
    let profile = site.profile();
    // A profile that refuses is measured all the same: nothing is kept there.
    let sealing = profile.seal.expect("seal").sealing;
    let module = Module::load(site.module(), site.reserved(), &[], Vec::new()).expect("module");
    let token = module.token(&record.token.label).expect("token");
    let pin = PinSource::File(site.pin().to_owned()).read(profile.login.pin).expect("PIN");
    let session = token.login(profile.login.user, Some(&pin)).expect("login");
    let find = |key: &hsm_kms::record::TokenKey| session.key(&key.label, key.id.as_bytes()).expect("key");
    let keys = KekKeys { key: find(&record.kek), mac: record.mac_key.as_ref().map(find) };
    let (context, seed) = ([1; 32], [2; 32]);
    let Sealed { iv, ciphertext } = session.seal(keys, &sealing, &context, &seed).expect("seal");
    let seal = median(span / 2, || drop(session.seal(keys, &sealing, &context, &seed).expect("seal")));
    let open = || drop(session.open(keys, &sealing, sealing.form, &iv, &context, &ciphertext).expect("open"));
    println!("{seal} {}", median(span / 2, open));
}

const CHILD: &str = "HSM_KMS_BENCH_DIRECT";

fn median(span: Duration, mut work: impl FnMut()) -> f64 {
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < span {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
