//! What a store holds, counted and opened: from a real etcd, and from its snapshot.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use hsm_kms::etcd::inventory::{Group, Inventory, Source};
use hsm_kms::etcd::snapshot::Digest;
use hsm_kms::etcd::value::Form;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::api_server_stack::plaintext_of;
use crate::emulator::{ApiServer, DekSource, Plugin as Emulated, StoredValue, with_prefix};
use crate::etcd::{Etcd, Version};
use crate::harness::{Config, Plugin, TestToken, run, run_ceremony, text};

const FOLDER: &str = "/registry/secrets/default/";
const PROVIDER: &str = "hsm-kms";

/// An etcd with objects of two API servers, under two KEKs, and of other providers.
struct Store {
    etcd: Etcd,
    plugin: Plugin,
    /// A plugin with the second KEK.
    other: Plugin,
    token: TestToken,
    _second: TestToken,
}

impl Store {
    async fn new(version: Version) -> Self {
        let [(token, plugin), (second, other)] = [serve().await, serve().await];
        let etcd = Etcd::start_version(token.directory(), version);
        for (server, names) in [(&plugin, 0..6), (&plugin, 6..10), (&other, 10..13)] {
            let mut server = ApiServer::start([(PROVIDER, Emulated::real(server.client().await))]).await;
            for name in names {
                let key = format!("{FOLDER}{name}");
                etcd.put(&key, &server.write(&key, &plaintext_of(&name.to_string())).unwrap());
            }
        }
        // Older revisions and deleted keys do not count.
        etcd.put(&format!("{FOLDER}0"), b"k8s\0overwritten");
        let mut server = ApiServer::start([(PROVIDER, Emulated::real(plugin.client().await))]).await;
        let rewritten = server.write(&format!("{FOLDER}0"), &plaintext_of("0")).unwrap();
        etcd.put(&format!("{FOLDER}0"), &rewritten);
        etcd.put(&format!("{FOLDER}gone"), b"k8s\0deleted");
        etcd.delete(&format!("{FOLDER}gone"));
        for (key, value) in [
            ("/registry/configmaps/default/plain", &b"k8s\0plain"[..]),
            ("/registry/secrets/default/plain", b"k8s\0plain"),
            ("/registry/secrets/default/cbc", b"k8s:enc:aescbc:v1:key1:0123456789abcdef0123456789abcdef"),
            ("/registry/secrets/default/box", b"k8s:enc:secretbox:v1:key2:0123456789abcdef"),
            ("/registry/secrets/default/old", b"k8s:enc:kms:v1:old-kms:\0\x04seed0123"),
            ("/registry/example.com/widgets/default/a", b"{\"kind\":\"Widget\"}"),
            ("/elsewhere", b"not below the prefix"),
        ] {
            etcd.put(key, value);
        }
        Self { etcd, plugin, other, token, _second: second }
    }

    fn snapshot(&self) -> PathBuf {
        self.etcd.snapshot(&self.token.directory().join("snapshot.db"))
    }

    fn sources(&self) -> [Vec<String>; 2] {
        let snapshot = text(&self.snapshot());
        [vec!["--endpoint".to_owned(), self.etcd.url().to_owned()], vec!["--snapshot".to_owned(), snapshot]]
    }
}

async fn serve() -> (TestToken, Plugin) {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let plugin = Plugin::start(&config).healthy().await;
    (token, plugin)
}

/// Runs `hsm-kms etcd inventory --json`; returns the exit code, the report and what stood on standard error.
fn inventory(source: &[String], more: &[&str]) -> (i32, Inventory, String) {
    let output = command("inventory", source, &[&["--json"], more].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap(), report, String::from_utf8(output.stderr).unwrap())
}

fn command(name: &str, source: &[String], more: &[&str]) -> Output {
    let arguments: Vec<&str> = ["etcd", name].into_iter().chain(source.iter().map(String::as_str)).collect();
    run(&[arguments, more.to_vec()].concat(), b"")
}

fn snapshot_of(path: &Path) -> Vec<String> {
    vec!["--snapshot".to_owned(), text(path)]
}

/// Objects by resource, form and provider.
fn sums(groups: &[Group]) -> BTreeMap<(String, Form, String), u64> {
    let mut sums = BTreeMap::new();
    for group in groups {
        *sums.entry((group.resource.clone(), group.form, group.provider.clone())).or_default() += group.objects;
    }
    sums
}

#[tokio::test]
async fn a_live_etcd_and_its_snapshot_agree() {
    for version in [Version::Debian, Version::Newer] {
        let store = Store::new(version).await;
        let [live, snapshot] = store.sources().map(|source| inventory(&source, &[]));
        assert_eq!((live.0, snapshot.0), (0, 0), "{live:?} {snapshot:?}");
        let (live, snapshot) = (live.1, snapshot.1);
        assert!(matches!(&live.source, Source::Etcd { endpoint, .. } if endpoint == store.etcd.url()));
        assert!(matches!(snapshot.source, Source::Snapshot { digest: Digest::Matches, .. }));
        assert_eq!(live.groups, snapshot.groups);
        assert_eq!(
            (live.revision, live.objects, live.bytes, live.complete),
            (snapshot.revision, snapshot.objects, snapshot.bytes, snapshot.complete)
        );

        let of = |resource: &str, form, provider: &str| (resource.to_owned(), form, provider.to_owned());
        let expected = BTreeMap::from([
            (of("configmaps", Form::Identity, ""), 1),
            (of("secrets", Form::Aescbc, "key1"), 1),
            (of("secrets", Form::Identity, ""), 1),
            (of("secrets", Form::KmsV1, "old-kms"), 1),
            (of("secrets", Form::KmsV2, PROVIDER), 13),
            (of("secrets", Form::Secretbox, "key2"), 1),
            (of("widgets.example.com", Form::Identity, ""), 1),
        ]);
        assert_eq!(sums(&live.groups), expected);
        let keks: Vec<_> = live.keks().iter().map(|kek| (kek.objects, kek.seeds)).collect();
        assert_eq!(keks, [(10, 3), (3, 1)]);

        // Slowly, and by text and page.
        let (code, slow, _) = inventory(&store.sources()[0], &["--rate", "40"]);
        assert_eq!((code, slow.groups), (0, live.groups.clone()));
        let page = store.token.directory().join("page.html");
        let output = command("inventory", &store.sources()[0], &["--html", &text(&page)]);
        let table = String::from_utf8(output.stdout).unwrap();
        for group in live.groups.iter().filter_map(|group| group.key_id.as_deref()) {
            assert!(table.contains(group) && fs::read_to_string(&page).unwrap().contains(group));
        }
        assert!(table.contains("warning: 1 of secrets are in plain text"), "{table}");

        // The database of the stopped etcd itself. A running one keeps it.
        let database = store.etcd.database();
        let output = command("inventory", &snapshot_of(&database), &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        store.etcd.stop();
        let (code, stopped, _) = inventory(&snapshot_of(&database), &[]);
        assert_eq!((code, stopped.groups), (0, live.groups));
        assert!(matches!(stopped.source, Source::Snapshot { digest: Digest::Absent, .. }));
    }
}

#[tokio::test]
async fn one_value_is_opened_from_both() {
    let store = Store::new(Version::Debian).await;
    let socket = text(store.plugin.socket());
    for source in store.sources() {
        for name in 0..10 {
            let (key, plaintext) = (format!("{FOLDER}{name}"), plaintext_of(&name.to_string()));
            let raw = command("decrypt", &source, &["--key", &key, "--socket", &socket, "--output", "raw"]);
            assert_eq!((raw.status.code(), &raw.stdout), (Some(0), &plaintext), "{raw:?}");
            let shown = command("decrypt", &source, &["--key", &key, "--socket", &socket]);
            let shown = String::from_utf8(shown.stdout).unwrap();
            let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&plaintext));
            assert!(shown.contains(&digest) && shown.contains("bytes     200\n"), "{shown}");
            assert!(!shown.contains("PLAINTEXT"), "{shown}");
        }
    }
}

#[tokio::test]
async fn each_failure_says_what_it_is() {
    let store = Store::new(Version::Debian).await;
    let put = |name: &str, value: &[u8]| store.etcd.put(&format!("{FOLDER}{name}"), value);
    let stored = store.etcd.list(FOLDER).into_iter().find(|entry| entry.key.ends_with("/5")).unwrap().value;
    put("moved", &stored);
    let mut changed = stored.clone();
    *changed.last_mut().unwrap() ^= 1;
    put("changed", &changed);
    put("cut", &stored[..stored.len() / 2]);
    let mut forged = StoredValue { encrypted_dek_source: vec![7; 80].into(), ..decode(&stored) };
    put("forged", &with_prefix(PROVIDER, &forged));
    forged = decode(&stored);
    forged.key_id = "hsm1-00000000000000000000000000000000000000ff".to_owned();
    put("unknown", &with_prefix(PROVIDER, &forged));
    // As an API server behind another prefix would have written it.
    let mut server = ApiServer::start([(PROVIDER, Emulated::real(store.plugin.client().await))]).await;
    put("prefixed", &server.write("/kubernetes.io/secrets/default/prefixed", b"x").unwrap());

    let socket = text(store.plugin.socket());
    let cases = [
        ("5", 0, ""),
        ("absent", 1, "the store has no such key"),
        ("plain", 1, "it is stored in plain text"),
        ("cbc", 1, "it is stored by another provider: aescbc \"key1\""),
        ("old", 1, "it is stored by another provider: kms v1 \"old-kms\""),
        ("cut", 1, "is damaged: it is no EncryptedObject message"),
        ("11", 1, "it was sealed by another KEK or for another cluster: it needs hsm1-"),
        ("unknown", 1, "it needs hsm1-00000000000000000000000000000000000000ff; this plugin announces hsm1-"),
        ("forged", 1, "and refuses: InvalidArgument"),
        ("moved", 1, "its seed opened, but its data was changed, or it was written under another key"),
        ("prefixed", 1, "the prefix is wrong: the API server wrote it as /kubernetes.io/secrets/default/prefixed"),
    ];
    for source in store.sources() {
        for (name, code, why) in cases {
            let key = format!("{FOLDER}{name}");
            let output = command("decrypt", &source, &["--key", &key, "--socket", &socket, "--output", "raw"]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{name}: {error}");
            assert!(error.contains(why), "{name}: {error}");
            assert_eq!(output.stdout.is_empty(), code != 0, "{name}");
        }
    }
    // The plugin with that KEK opens it; one that is not there does not.
    let decrypt = |socket: &str| {
        let key = format!("{FOLDER}11");
        command("decrypt", &store.sources()[0], &["--key", &key, "--socket", socket]).status.code()
    };
    assert_eq!(decrypt(&text(store.other.socket())), Some(0));
    assert_eq!(decrypt(&text(&store.token.directory().join("nobody"))), Some(3));
    // No seed and no value was logged.
    assert!(!store.plugin.log().contains("PLAINTEXT"));
}

fn decode(stored: &[u8]) -> StoredValue {
    use prost::Message;

    let prefix = format!("k8s:enc:kms:v2:{PROVIDER}:");
    StoredValue::decode(stored.strip_prefix(prefix.as_bytes()).unwrap()).unwrap()
}

/// Objects of Kubernetes 1.28: the DEK source is a key. No emulated API server writes them, so this does.
#[tokio::test]
async fn the_old_form_opens_too() {
    use hsm_kms::etcd::proto::EncryptedDekSourceType::AesGcmKey;

    let (token, plugin) = serve().await;
    let etcd = Etcd::start(token.directory());
    let key = "/registry/secrets/default/old";
    let source = DekSource::opened(AesGcmKey, &[7; 32]).unwrap();
    let sealed = run(&["call", "encrypt", "--socket", &text(plugin.socket())], source.secret());
    let sealed: serde_json::Value = serde_json::from_slice(&sealed.stdout).unwrap();
    let object = StoredValue {
        encrypted_data: source.seal(key, b"k8s\0old").into(),
        key_id: sealed["key_id"].as_str().unwrap().to_owned(),
        encrypted_dek_source: data_encoding::BASE64
            .decode(sealed["ciphertext"].as_str().unwrap().as_bytes())
            .unwrap()
            .into(),
        encrypted_dek_source_type: AesGcmKey.into(),
        ..StoredValue::default()
    };
    assert_eq!(sealed["annotations"], json!({}));
    etcd.put(key, &with_prefix(PROVIDER, &object));
    let source = ["--endpoint".to_owned(), etcd.url().to_owned()];
    let opened = command("decrypt", &source, &["--key", key, "--socket", &text(plugin.socket()), "--output", "raw"]);
    assert_eq!((opened.status.code(), &opened.stdout[..]), (Some(0), &b"k8s\0old"[..]), "{opened:?}");
}

#[test]
fn an_empty_store_is_no_failure() {
    for version in [Version::Debian, Version::Newer] {
        let directory = tempfile::tempdir().unwrap();
        let etcd = Etcd::start_version(directory.path(), version);
        let snapshot = etcd.snapshot(&directory.path().join("snapshot.db"));
        let live = ["--endpoint".to_owned(), etcd.url().to_owned()];
        for source in [&live[..], &snapshot_of(&snapshot)] {
            let (code, report, _) = inventory(source, &[]);
            assert_eq!((code, report.objects, report.revision, report.complete), (0, 0, 1, true));
        }
    }
}

/// A compacted and defragmented store has fewer revisions and other pages, and the same objects.
#[test]
fn compaction_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(directory.path());
    for round in 0..5 {
        for number in 0..40 {
            etcd.put(&format!("{FOLDER}{number}"), format!("k8s\0{round}").repeat(200).as_bytes());
        }
        etcd.delete(&format!("{FOLDER}{round}"));
    }
    etcd.compact();
    for state in ["compacted", "defragmented"] {
        let snapshot = etcd.snapshot(&directory.path().join(state));
        let (code, report, _) = inventory(&snapshot_of(&snapshot), &[]);
        let (_, live, _) = inventory(&["--endpoint".to_owned(), etcd.url().to_owned()], &[]);
        assert_eq!((code, &report.groups), (0, &live.groups));
        assert_eq!(report.objects, 39);
        etcd.defragment();
    }
}

#[test]
fn a_damaged_snapshot_says_what_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(directory.path());
    etcd.fill(FOLDER, 2_000, |number| format!("k8s\0{number}").repeat(20).into_bytes());
    let snapshot = etcd.snapshot(&directory.path().join("snapshot.db"));
    let sound = fs::read(&snapshot).unwrap();
    let whole = inventory(&snapshot_of(&snapshot), &[]).1;
    assert_eq!((whole.objects, whole.complete), (2_000, true));
    let path = directory.path().join("damaged.db");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let (code, report, error) = inventory(&snapshot_of(&path), &[]);
        assert_eq!((code, report.complete), (1, false));
        assert!(error.contains("not all of the store could be read"), "{error}");
        report
    };

    // One bit in a value: only the digest can tell.
    let mut flipped = sound.clone();
    let value = sound.windows(8).position(|window| window == b"k8s\x001234").unwrap();
    flipped[value + 9] ^= 1;
    let report = read(&flipped);
    assert_eq!((report.objects, report.faults.len()), (2_000, 1));
    assert!(report.faults[0].contains("its SHA-256 differs"), "{:?}", report.faults);

    // A page: what lay in it is named by its revisions, and the rest is counted.
    let mut holed = sound.clone();
    let page = value / 4096 * 4096;
    holed[page..page + 4096].fill(0);
    let report = read(&holed);
    assert!((1_000..2_000).contains(&report.objects), "{}", report.objects);
    assert!(report.faults.iter().any(|fault| fault.contains("what was written at revisions")), "{:?}", report.faults);

    // The end: some pages are not there.
    let report = read(&sound[..sound.len() / 2 / 4096 * 4096]);
    assert!(report.objects < 2_000 && report.faults[0].contains("the file is cut off"), "{:?}", report.faults);

    // Not a database at all.
    fs::write(&path, &sound[8192..]).unwrap();
    let output = command("inventory", &snapshot_of(&path), &[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");

    // A key that may lie in the hole is not said to be absent.
    fs::write(&path, &holed).unwrap();
    let arguments = ["--key", &format!("{FOLDER}nothing"), "--socket", "/nonexistent"];
    let output = command("decrypt", &snapshot_of(&path), &arguments);
    assert!(String::from_utf8_lossy(&output.stderr).contains("it may lie in what is not readable"), "{output:?}");
}

#[test]
fn a_hundred_thousand_objects_are_counted() {
    const COUNT: usize = 100_000;
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(directory.path());
    etcd.fill("/registry/pods/default/", COUNT, |number| format!("k8s\0{number}").repeat(8).into_bytes());
    let snapshot = etcd.snapshot(&directory.path().join("snapshot.db"));
    let live = inventory(&["--endpoint".to_owned(), etcd.url().to_owned()], &[]).1;
    let snapshot = inventory(&snapshot_of(&snapshot), &[]).1;
    assert_eq!((live.objects, &live.groups), (COUNT as u64, &snapshot.groups));
}

#[test]
fn an_etcd_with_tls_wants_our_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start_tls(directory.path());
    etcd.put(&format!("{FOLDER}a"), b"k8s\0");
    let file = |name: &str| text(&directory.path().join(name));
    let source = ["--endpoint".to_owned(), etcd.url().to_owned()];
    let [authority, other, certificate, key] = ["ca.crt", "other.crt", "client.crt", "client.key"].map(file);
    let (code, report, error) = inventory(&source, &["--cacert", &authority, "--cert", &certificate, "--key", &key]);
    assert_eq!((code, report.objects), (0, 1), "{error}");
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--cacert", &authority], 3, "most etcds take only clients with a certificate"),
        (&["--cacert", &other, "--cert", &certificate, "--cert-key", &key], 3, "UnknownIssuer"),
        (&[], 2, "https needs the authority of etcd's certificate"),
        (&["--cacert", "/nonexistent"], 2, "No such file or directory"),
        (&["--cacert", &authority, "--cert", &certificate], 2, "--cert-key"),
        (&["--cacert", &key, "--cert", &certificate, "--cert-key", &key], 3, ""),
    ];
    for (arguments, code, why) in cases {
        let output = command("inventory", &source, arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
    let plain = ["--endpoint".to_owned(), etcd.url().replace("https", "http")];
    assert_eq!(command("inventory", &plain, &[]).status.code(), Some(3));
    let certificates = command("inventory", &plain, &["--cacert", &authority]);
    assert_eq!(certificates.status.code(), Some(2), "{certificates:?}");
}

#[test]
fn wrong_usage_is_refused() {
    let cases: [&[&str]; 9] = [
        &["etcd", "inventory"],
        &["etcd", "inventory", "--snapshot", "a", "--endpoint", "http://127.0.0.1:1"],
        &["etcd", "inventory", "--snapshot", "a", "--rate", "5"],
        &["etcd", "inventory", "--snapshot", "/nonexistent"],
        &["etcd", "inventory", "--endpoint", "127.0.0.1:2379"],
        &["etcd", "inventory", "--endpoint", "http://127.0.0.1:1", "--rate", "0"],
        &["etcd", "decrypt", "--snapshot", "a", "--key", "/registry/a"],
        &["etcd", "rewrite-plan"],
        &["etcd", "rewrite-plan", "--kubernetes", "1.26"],
    ];
    for arguments in cases {
        let output = run(arguments, b"");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}: {output:?}");
    }
    assert_eq!(run(&["etcd", "inventory", "--endpoint", "http://127.0.0.1:1"], b"").status.code(), Some(3));
    assert_eq!(run(&["etcd", "rewrite-plan", "--kubernetes", "1.34"], b"").status.code(), Some(0));
}

/// Every command of docs/inventory.md, on a real etcd with TLS, its snapshot and a plugin; only the paths are others.
#[tokio::test]
async fn the_documents_commands_run() {
    let (token, plugin) = serve().await;
    let directory = token.directory();
    let etcd = Etcd::start_tls(directory);
    let mut server = ApiServer::start([(PROVIDER, Emulated::real(plugin.client().await))]).await;
    let key = "/registry/secrets/default/db-password";
    etcd.put(key, &server.write(key, b"k8s\0password").unwrap());
    let file = |name: &str| text(&directory.join(name));
    let substitutes = [
        ("https://127.0.0.1:2379", etcd.url().to_owned()),
        ("/etc/kubernetes/pki/etcd/ca.crt", file("ca.crt")),
        ("/etc/kubernetes/pki/etcd/server.", file("client.")),
        ("/run/hsm-kms/hsm@kms.sock", text(plugin.socket())),
        ("/var/backups/etcd.db", text(&etcd.snapshot(&directory.join("backup.db")))),
        ("hsm-kms etcd", format!("{} etcd", env!("CARGO_BIN_EXE_hsm-kms"))),
    ];
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/inventory.md")).unwrap();
    let blocks: Vec<_> = document.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 6);
    for block in blocks {
        let script = substitutes.iter().fold(block.to_owned(), |text, (from, to)| text.replace(from, to));
        let output =
            std::process::Command::new("bash").args(["-euc", &script]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }
    assert_eq!(fs::read(directory.join("db-password.pb")).unwrap(), b"k8s\0password");
    assert!(fs::read_to_string(directory.join("inventory.html")).unwrap().contains(PROVIDER));
    let report: Inventory = serde_json::from_slice(&fs::read(directory.join("inventory.json")).unwrap()).unwrap();
    assert_eq!(report.objects, 1);
}

/// What a shell makes of the plan: it must parse.
#[test]
fn a_plan_is_a_shell_script() {
    for version in ["1.28", "1.30", "1.35", "1.37"] {
        let resources = ["--resource", "secrets", "--resource", "widgets.example.com"];
        let plan = run(&[&["etcd", "rewrite-plan", "--kubernetes", version][..], &resources].concat(), b"");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plan.sh");
        fs::write(&file, &plan.stdout).unwrap();
        let shell = std::process::Command::new("bash").arg("-n").arg(&file).output().unwrap();
        assert!(shell.status.success() && shell.stderr.is_empty(), "{shell:?}");
    }
}
