//! Requests that no API server would send: each is refused with its code, and none harms the plugin.
//!
//! What comes back from etcd is the attacker's. A corrupt blob must not make the HSM look sick: the worker stays the same.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use rustix::process::Pid;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::harness::{Config, Plugin, TestToken, run_ceremony};
use crate::processes::worker;

/// A seed that would be noticed anywhere.
const SEED: &[u8; 32] = b"SEED-THAT-NOBODY-MAY-EVER-SEE-42";

#[tokio::test]
async fn ciphertexts_of_wrong_length_are_refused() {
    let target = Target::new().await;
    for length in [0, 1, 7, 8, 19, 20, 27, 36, 1024, 1025, 4096] {
        let refused = target.refused(target.open(vec![0x5a; length])).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{length} bytes: {refused}");
    }
    for length in 0..target.blob.len() {
        let refused = target.refused(target.open(target.blob.slice(..length))).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "cut to {length} bytes: {refused}");
    }
    let longer = [&target.blob[..], &[0]].concat();
    assert_eq!(target.refused(target.open(longer)).await.code(), Code::InvalidArgument);
    target.is_unharmed().await;
}

#[tokio::test]
async fn random_ciphertexts_are_refused() {
    let target = Target::new().await;
    for length in [1, 8, 27, 37, 68, 500, 1024] {
        for _ in 0..8 {
            let mut random = vec![0; length];
            getrandom::fill(&mut random).unwrap();
            assert_eq!(target.refused(target.open(random.clone())).await.code(), Code::InvalidArgument, "{random:?}");
            // With a header that fits, so that it goes all the way down to the token.
            let header = &target.blob[..8.min(length)];
            random[..header.len()].copy_from_slice(header);
            assert_eq!(target.refused(target.open(random.clone())).await.code(), Code::InvalidArgument, "{random:?}");
        }
    }
    target.is_unharmed().await;
}

#[tokio::test]
async fn a_blob_with_any_bit_flipped_is_refused() {
    let target = Target::new().await;
    let mut flips = JoinSet::new();
    for bit in 0..target.blob.len() * 8 {
        let mut flipped = target.blob.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (mut client, request) = (target.client.clone(), target.open(flipped));
        flips.spawn(async move { (bit, client.decrypt(request).await) });
        // As many at once as an API server has callers, within the plugin's queue.
        if flips.len() == 16 {
            check_flip(flips.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(flip) = flips.join_next().await {
        check_flip(flip.unwrap());
    }
    target.is_unharmed().await;
}

fn check_flip((bit, answer): (usize, Result<tonic::Response<DecryptResponse>, Status>)) {
    let refused = checked(answer.unwrap_err());
    assert_eq!(refused.code(), Code::InvalidArgument, "bit {bit}: {refused}");
}

#[tokio::test]
async fn a_key_id_that_is_not_known_is_not_found() {
    let target = Target::new().await;
    let key_id = &target.key_id;
    let upper = key_id.to_uppercase();
    for wrong in [
        "",
        "hsm1-0123456789abcdef0123456789abcdef01234567",
        "hsm2-0123456789abcdef0123456789abcdef01234567",
        "hsm1-",
        "hsm1",
        "\u{0}",
        "ключ",
        upper.as_str(),
        &key_id[..44],
        &format!("{key_id}0"),
        &format!(" {key_id}"),
        &format!("{key_id}\n"),
        &"k".repeat(40_000),
    ] {
        let request = DecryptRequest { key_id: wrong.to_owned(), ..target.open(target.blob.clone()) };
        assert_eq!(target.refused(request).await.code(), Code::NotFound, "{wrong:?}");
    }
    target.is_unharmed().await;
}

#[tokio::test]
async fn annotations_that_were_not_sealed_are_refused() {
    let target = Target::new().await;
    let long = vec![0x61; 32 * 1024];
    let named = |name: &str, value: &[u8]| HashMap::from([(name.to_owned(), Bytes::copy_from_slice(value))]);
    for (annotations, reason) in [
        (named("seed.kms.example.com", b"1"), "does not open"),
        (named("a.b", b""), "does not open"),
        (named("a.b", &long[..long.len() - 3]), "does not open"),
        (named("a.b", &long[..long.len() - 2]), "annotations have 32769 bytes"),
        (named("a.b", &long), "annotations have 32771 bytes"),
        (named("nodots", b"1"), "not a fully qualified domain name"),
        (named("", b"1"), "not a fully qualified domain name"),
        (named("UPPER.example.com", b"1"), "not a fully qualified domain name"),
        (named("under_score.example.com", b"1"), "not a fully qualified domain name"),
        (named("kms.example.com/seed", b"1"), "not a fully qualified domain name"),
        (named("line\nbreak\u{1b}[31m.example.com", b"1"), "not a fully qualified domain name"),
        (named(&format!("{}.b", "a".repeat(300)), b"1"), "not a fully qualified domain name"),
    ] {
        let request = DecryptRequest { annotations, ..target.open(target.blob.clone()) };
        let refused = target.refused(request).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(reason), "{reason}: {refused}");
    }
    target.is_unharmed().await;
}

#[tokio::test]
async fn plaintexts_of_1_to_928_bytes_are_sealed_and_no_others() {
    let mut target = Target::new().await;
    for length in [1, 2, 31, 927, 928] {
        let plaintext = vec![0x77; length];
        let sealed = target.seal(&plaintext).await.unwrap();
        assert!((1..=1024).contains(&sealed.ciphertext.len()), "{length}");
        assert_eq!(target.client.decrypt(target.open(sealed.ciphertext)).await.unwrap().get_ref().plaintext, plaintext);
    }
    for length in [0, 929, 1024, 4096, 60_000] {
        let refused = checked(target.seal(&vec![0x77; length]).await.unwrap_err());
        assert_eq!(refused.code(), Code::InvalidArgument, "{length}: {refused}");
    }
    target.is_unharmed().await;
}

#[tokio::test]
async fn messages_over_64_kib_are_refused_before_they_are_read() {
    let mut target = Target::new().await;
    for length in [64 * 1024, 1 << 20, 8 << 20] {
        let refused = checked(target.seal(&vec![0x77; length]).await.unwrap_err());
        assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{length}: {refused}");
        let refused = target.refused(target.open(vec![0x77; length])).await;
        assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{length}: {refused}");
    }
    target.is_unharmed().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let target = Target::new().await;
    let refused: Result<DecryptResponse, _> =
        call(target.plugin.socket(), "Decrypt", Broken { ciphertext: 7, key_id: 9 }).await;
    let refused = checked(refused.unwrap_err());
    assert!(matches!(refused.code(), Code::Internal | Code::InvalidArgument), "{refused}");
    target.is_unharmed().await;
}

/// A later Kubernetes may send more. proto3 says that a reader skips what it does not know.
#[tokio::test]
async fn unknown_fields_are_ignored() {
    let target = Target::new().await;
    let socket = target.plugin.socket();
    let later = LaterEncryptRequest { plaintext: SEED.to_vec(), flag: 7, text: "later".to_owned(), fixed: 1.5 };
    let sealed: EncryptResponse = call(socket, "Encrypt", later).await.unwrap();
    assert_eq!(sealed.key_id, target.key_id);
    let later = LaterDecryptRequest {
        ciphertext: sealed.ciphertext.to_vec(),
        key_id: sealed.key_id,
        list: vec!["later".to_owned(); 3],
        number: u64::MAX,
    };
    let opened: DecryptResponse = call(socket, "Decrypt", later).await.unwrap();
    assert_eq!(opened.plaintext, SEED[..]);
    target.is_unharmed().await;
}

/// Two clusters that share token and KEK, by a copy of the record with another name, still cannot open each other's blobs.
#[tokio::test]
async fn another_clusters_blob_does_not_open() {
    let target = Target::new().await;
    let mut record: Value = serde_json::from_slice(&fs::read(&target.record).unwrap()).unwrap();
    record["cluster"] = json!("other");
    let path = target.token.directory().join("other-record.json");
    fs::write(&path, format!("{record:#}\n")).unwrap();
    let mut config = Config::new(&target.token, &path, "other");
    config.value["cluster"] = json!("other");
    let other = Plugin::start(&config).healthy().await;
    let mut client = other.client().await;
    let sealed = client.encrypt(EncryptRequest { plaintext: SEED[..].into(), uid: "u".to_owned() }).await.unwrap();
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.into_inner();
    assert_ne!(key_id, target.key_id);

    let own = DecryptRequest { ciphertext, key_id, annotations, ..DecryptRequest::default() };
    assert_eq!(client.decrypt(own.clone()).await.unwrap().get_ref().plaintext, SEED[..]);
    assert_eq!(target.refused(own.clone()).await.code(), Code::NotFound);
    let renamed = DecryptRequest { key_id: target.key_id.clone(), ..own };
    let refused = target.refused(renamed).await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    target.is_unharmed().await;
}

#[tokio::test]
async fn a_uid_cannot_break_or_fill_the_log() {
    // Two bytes a letter from an odd offset on: the cut falls into the middle of one.
    let hostile = format!("x{}\n\r\u{1b}[31m\u{0}2026-01-01T00:00:00Z ERROR forged\n", "é".repeat(20)).repeat(200);
    assert!(hostile.len() > 10 * 1024);
    for format in ["text", "json"] {
        let mut target = Target::with(|config| config["log"] = json!({"format": format, "level": "debug"})).await;
        for uid in [hostile.clone(), format!("x{}", "é".repeat(6000)), "\n".repeat(11_000)] {
            let sealed = EncryptRequest { plaintext: SEED[..].into(), uid: uid.clone() };
            target.client.encrypt(sealed).await.unwrap();
            target.refused(DecryptRequest { uid, ..target.open(vec![1; 68]) }).await;
        }
        target.is_unharmed().await;
        let log = target.plugin.log();
        assert_eq!(log.lines().filter(|line| line.contains("Encrypt") && line.contains("OK")).count(), 4, "{log}");
        assert_eq!(log.lines().filter(|line| line.contains("Decrypt") && line.contains("refused")).count(), 3, "{log}");
        for line in log.lines() {
            assert!(!line.starts_with("2026-01-01") && !line.chars().any(char::is_control), "{line:?}");
            assert!(line.len() < 1024, "a line of {} bytes: {line}", line.len());
            assert!(format != "json" || serde_json::from_str::<Value>(line).is_ok(), "{line}");
        }
    }
}

/// The libraries below see whole messages. docs/configuration.md promises that no level shows a secret.
#[tokio::test]
async fn the_most_talkative_log_shows_no_seed() {
    for format in ["text", "json"] {
        let mut target = Target::with(|config| config["log"] = json!({"format": format, "level": "trace"})).await;
        let sealed = target.seal(SEED).await.unwrap();
        target.client.decrypt(target.open(sealed.ciphertext.clone())).await.unwrap();
        target.is_unharmed().await;
        let log = target.plugin.log().to_lowercase();
        for secret in [&SEED[..8], &SEED[12..20], &sealed.ciphertext[20..28]] {
            let numbers: Vec<_> = secret.iter().map(u8::to_string).collect();
            let forms = [
                String::from_utf8_lossy(secret).to_lowercase(),
                data_encoding::HEXLOWER.encode(secret),
                numbers.join(", "),
                numbers.join(","),
                secret.escape_ascii().to_string().to_lowercase(),
            ];
            for form in forms {
                assert!(!log.contains(&form), "{form} is in the log");
            }
        }
        let foreign: Vec<_> = log.lines().filter(|line| line.contains("frame") || line.contains("hyper")).collect();
        assert!(foreign.is_empty(), "lines of other programs' making: {foreign:#?}");
    }
}

#[tokio::test]
async fn thirty_two_callers_mix_good_and_bad() {
    let target = Target::new().await;
    let mut callers = JoinSet::new();
    for caller in 0..32_u8 {
        let (mut client, key_id, blob) = (target.client.clone(), target.key_id.clone(), target.blob.clone());
        callers.spawn(async move {
            for round in 0..12_u8 {
                let plaintext = Bytes::from([&[caller, round][..], &SEED[..]].concat());
                let request = EncryptRequest { plaintext: plaintext.clone(), uid: format!("{caller}-{round}") };
                let sealed = client.encrypt(request).await.unwrap().into_inner();
                let good = DecryptRequest {
                    ciphertext: sealed.ciphertext,
                    key_id: sealed.key_id,
                    ..DecryptRequest::default()
                };
                let mut flipped = blob.to_vec();
                let place = 8 + usize::from(caller.wrapping_mul(7).wrapping_add(round)) % (flipped.len() - 8);
                flipped[place] ^= 1;
                let bad = DecryptRequest { ciphertext: flipped.into(), key_id: key_id.clone(), ..good.clone() };
                assert_eq!(checked(client.decrypt(bad).await.unwrap_err()).code(), Code::InvalidArgument);
                assert_eq!(client.decrypt(good).await.unwrap().get_ref().plaintext, plaintext);
                let empty = EncryptRequest::default();
                assert_eq!(checked(client.encrypt(empty).await.unwrap_err()).code(), Code::InvalidArgument);
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    target.is_unharmed().await;
}

/// A healthy plugin, and a blob that it sealed.
struct Target {
    plugin: Plugin,
    client: Client,
    worker: Pid,
    /// Seals [`SEED`].
    blob: Bytes,
    key_id: String,
    record: std::path::PathBuf,
    token: TestToken,
}

impl Target {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Value)) -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let mut config = Config::new(&token, &record, "target");
        change(&mut config.value);
        let plugin = Plugin::start(&config).healthy().await;
        let mut client = plugin.client().await;
        let request = EncryptRequest { plaintext: SEED[..].into(), uid: "good".to_owned() };
        let EncryptResponse { ciphertext: blob, key_id, annotations } =
            client.encrypt(request).await.unwrap().into_inner();
        assert!(annotations.is_empty());
        let worker = worker(&plugin).unwrap();
        Self { plugin, client, worker, blob, key_id, record, token }
    }

    fn open(&self, ciphertext: impl Into<Bytes>) -> DecryptRequest {
        DecryptRequest {
            ciphertext: ciphertext.into(),
            uid: "bad".to_owned(),
            key_id: self.key_id.clone(),
            annotations: HashMap::new(),
        }
    }

    async fn refused(&self, request: DecryptRequest) -> Status {
        checked(self.client.clone().decrypt(request).await.unwrap_err())
    }

    async fn seal(&mut self, plaintext: &[u8]) -> Result<EncryptResponse, Status> {
        let request = EncryptRequest { plaintext: Bytes::copy_from_slice(plaintext), uid: "length".to_owned() };
        self.client.encrypt(request).await.map(tonic::Response::into_inner)
    }

    /// The HSM does not look sick, the worker is the same one, the good blob opens, and the log is clean.
    async fn is_unharmed(&self) {
        let mut client = self.client.clone();
        let status = client.status(StatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &self.key_id));
        let opened = client.decrypt(self.open(self.blob.clone())).await.unwrap();
        assert_eq!(opened.get_ref().plaintext, SEED[..]);
        assert_eq!(worker(&self.plugin), Some(self.worker), "the worker was replaced");
        let log = self.plugin.log();
        assert!(!log.contains("panicked") && !log.contains("SEED-THAT"), "{log}");
    }
}

/// What holds for every refusal: a reason in words, which gives nothing away.
fn checked(refused: Status) -> Status {
    let text = format!("{} {}", refused.message(), String::from_utf8_lossy(refused.details()));
    assert!(refused.message().contains(' '), "no reason: {refused:?}");
    assert!(refused.message().len() < 300, "{refused:?}");
    assert!(!text.contains("CKR_") && !text.contains("SEED-THAT") && !text.contains("panicked"), "{refused:?}");
    assert!(!text.chars().any(char::is_control), "{refused:?}");
    refused
}

/// `EncryptRequest` with fields that it does not have today.
#[derive(Clone, PartialEq, prost::Message)]
struct LaterEncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(uint32, tag = "15")]
    flag: u32,
    #[prost(string, tag = "16")]
    text: String,
    #[prost(double, tag = "536870911")]
    fixed: f64,
}

/// `DecryptRequest` with fields that it does not have today.
#[derive(Clone, PartialEq, prost::Message)]
struct LaterDecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(string, repeated, tag = "5")]
    list: Vec<String>,
    #[prost(fixed64, tag = "1000")]
    number: u64,
}

/// `DecryptRequest` with numbers where bytes and texts belong.
#[derive(Clone, PartialEq, prost::Message)]
struct Broken {
    #[prost(uint64, tag = "1")]
    ciphertext: u64,
    #[prost(uint64, tag = "3")]
    key_id: u64,
}

/// Calls a method with any message.
async fn call<M, R>(socket: &Path, method: &str, message: M) -> Result<R, Status>
where
    M: prost::Message + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel(socket).await);
    grpc.ready().await.unwrap();
    let path = format!("/v2.KeyManagementService/{method}").parse().unwrap();
    let answer = grpc.unary(Request::new(message), path, ProstCodec::<M, R>::default()).await;
    answer.map(tonic::Response::into_inner)
}

async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}
