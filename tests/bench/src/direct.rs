//! The floor: the two PKCS#11 calls of a seal, and of an open, in a loop in this process.

use std::time::{Duration, Instant};

use hsm_kms::pin::PinSource;
use hsm_kms::pkcs11::Module;
use hsm_kms::record::KekRecord;
use hsm_kms::pkcs11::Sealed;
use hsm_kms::seal::Sealing;

use crate::Args;

/// Median seconds of one seal and one open.
#[derive(Clone, Copy)]
pub struct Direct {
    /// `C_EncryptInit` and `C_Encrypt`, with a random IV.
    pub seal: f64,
    /// `C_DecryptInit` and `C_Decrypt`.
    pub open: f64,
}

/// Measures in this process, alone with the module.
pub fn measure(args: &Args, span: Duration) -> Direct {
    // A module can be initialised once in a process: each round measures in a child of its own.
    if std::env::var_os(CHILD).is_none() {
        let output = std::process::Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .env(CHILD, "1")
            .output()
            .expect("child");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
        return Direct { seal: numbers.next().expect("seal"), open: numbers.next().expect("open") };
    }
    let record = KekRecord::read(&args.record).expect("record");
    let module = Module::load(&args.module, &[], Vec::new()).expect("module");
    let token = module.token(&record.token.label).expect("token");
    let session = token.login(&PinSource::File(args.pin.clone()).read().expect("PIN")).expect("login");
    let key = session.key(&record.kek.label, record.kek.id.as_bytes()).expect("KEK");
    let (sealing, context, seed) = (Sealing::AES_GCM_SENT, [1; 32], [2; 32]);
    let Sealed { iv, ciphertext } = session.seal(key, &sealing, &context, &seed).expect("seal");
    let seal = median(span / 2, || drop(session.seal(key, &sealing, &context, &seed).expect("seal")));
    let open = median(span / 2, || drop(session.open(key, &sealing, sealing.form, &iv, &context, &ciphertext).expect("open")));
    println!("{seal} {open}");
    std::process::exit(0);
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
