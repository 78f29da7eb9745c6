//! What stays in memory: every readable page of front and worker is searched for seeds and PIN after the last reply.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use rustix::process::Pid;
use tokio::task::JoinSet;

use crate::harness::{Config, Plugin, TestToken, copy_program, run_ceremony};
use crate::processes::worker;

/// Decrypts before the search.
const SEEDS: usize = 10_000;

/// Callers at one time, on one connection.
const CALLERS: usize = 8;

/// After the last reply, everything must have been wiped by then.
const LIMIT: Duration = Duration::from_secs(1);

/// Lengths of the canaries in bytes. A DEK seed of Kubernetes has 32.
const LENGTHS: [usize; 5] = [32, 32, 33, 64, 256];

#[tokio::test]
async fn no_seed_stays_in_memory_after_decrypts_softhsm2() {
    no_seed_stays_in_memory(&TestToken::softhsm2()).await;
}

#[tokio::test]
async fn no_seed_stays_in_memory_after_decrypts_kryoptic() {
    no_seed_stays_in_memory(&TestToken::kryoptic()).await;
}

async fn no_seed_stays_in_memory(token: &TestToken) {
    let record = run_ceremony(token, token.directory());
    let mut config = Config::new(token, &record, "memory");
    config.value["log"] = serde_json::json!({"level": "trace"});
    let audit = token.directory().join("audit.log");
    config.value["audit"] = serde_json::json!({"to": audit});
    let plugin = Plugin::start(&config).healthy().await;
    let seeds: Vec<Vec<u8>> = (0..SEEDS).map(|index| random(LENGTHS[index % LENGTHS.len()])).collect();
    let sealed = seal_all(&plugin, &seeds).await;

    // Stays open: what a connection holds counts, too.
    let client = plugin.client().await;
    let work: Vec<_> = seeds.iter().cloned().zip(sealed).collect();
    let mut callers = JoinSet::new();
    for work in work.chunks(SEEDS / CALLERS).map(<[_]>::to_vec) {
        let mut client = client.clone();
        callers.spawn(async move {
            for (seed, EncryptResponse { ciphertext, key_id, annotations }) in work {
                let request = DecryptRequest { ciphertext, key_id, annotations, uid: "memory".to_owned() };
                let opened = client.decrypt(request).await.unwrap().into_inner();
                assert_eq!(opened.plaintext, seed);
            }
        });
    }
    callers.join_all().await;
    let last_reply = Instant::now();

    let canaries = Canaries::new(&seeds);
    let front = plugin.pid();
    let worker = worker(&plugin).unwrap();
    loop {
        let found = [front, worker].map(|process| canaries.search(process));
        let waited = last_reply.elapsed();
        if found == [0, 0] {
            break;
        }
        assert!(waited <= LIMIT, "copies of seeds in front and worker after {waited:?}: {found:?}");
    }
    assert_eq!(canaries.count(fs::read(plugin.log_path()).unwrap().as_slice()), 0, "in the log");
    assert_eq!(canaries.count(&fs::read(&audit).unwrap()), 0, "in the audit log");
    drop(client);
}

#[tokio::test]
async fn the_pin_is_nowhere_after_the_login_softhsm2() {
    the_pin_is_nowhere_after_the_login(&TestToken::softhsm2()).await;
}

#[tokio::test]
async fn the_pin_is_nowhere_after_the_login_kryoptic() {
    the_pin_is_nowhere_after_the_login(&TestToken::kryoptic()).await;
}

async fn the_pin_is_nowhere_after_the_login(token: &TestToken) {
    let record = run_ceremony(token, token.directory());
    let mut config = Config::new(token, &record, "pin");
    config.value["log"] = serde_json::json!({"level": "trace"});
    let plugin = Plugin::start(&config).healthy().await;
    let worker = worker(&plugin).unwrap();
    let pin = Canaries::new(&[fs::read(&token.pin).unwrap()]);
    assert_eq!(pin.search(plugin.pid()), 0, "in the front");
    // Neither of these modules keeps it after the login, nor do we.
    assert_eq!(pin.search(worker), 0, "in the worker");
    for process in [plugin.pid(), worker] {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{}/{file}", process.as_raw_nonzero())).unwrap();
            assert!(!bytes.is_empty());
            assert_eq!(pin.count(&bytes), 0, "in {file}");
        }
    }
    assert_eq!(pin.count(&fs::read(plugin.log_path()).unwrap()), 0, "in the log");
}

#[tokio::test]
async fn pages_are_locked_where_the_limit_allows() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let plugin = Plugin::start(&Config::new(&token, &record, "locked")).healthy().await;
    // This test runs as root, whom no limit stops.
    for process in [plugin.pid(), worker(&plugin).unwrap()] {
        let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        assert_ne!(locked.trim(), "0 kB");
    }
}

#[tokio::test]
async fn there_is_no_core_dump_and_no_look_from_outside() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "closed");
    let plugin = Plugin::start_by(&config, as_nobody(&token, &config)).healthy().await;
    for process in [plugin.pid(), worker(&plugin).unwrap()] {
        let folder = format!("/proc/{}", process.as_raw_nonzero());
        let limits = fs::read_to_string(format!("{folder}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"], "{limits}");
        let effective = fs::metadata(&folder).unwrap().uid();
        // The kernel gives these files of a process that must not be dumped to root (proc(5)): its own user cannot open them.
        assert_eq!((effective, fs::metadata(format!("{folder}/mem")).unwrap().uid()), (NOBODY, 0));
    }
}

const NOBODY: u32 = 65534;

/// The program, as a user without rights, to whom all that belongs to the token is given.
fn as_nobody(token: &TestToken, config: &Config) -> Command {
    config.write();
    let program = token.directory().join("hsm-kms");
    copy_program(&program);
    give(token.directory());
    let user = NOBODY.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(program);
    command
}

fn give(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    for entry in fs::read_dir(path).into_iter().flatten() {
        give(&entry.unwrap().path());
    }
}

/// Seals on a connection that is then closed.
async fn seal_all(plugin: &Plugin, seeds: &[Vec<u8>]) -> Vec<EncryptResponse> {
    let mut client = plugin.client().await;
    let mut sealed = Vec::new();
    for seed in seeds {
        let request = EncryptRequest { plaintext: seed.clone().into(), uid: "memory".to_owned() };
        sealed.push(client.encrypt(request).await.unwrap().into_inner());
    }
    sealed
}

/// Secrets to search for: the first and the last 16 bytes of each, so that a part of one is found, too.
struct Canaries {
    parts: Vec<[u8; PART]>,
    /// By the first three bytes of a part, whether there is one.
    beginnings: Vec<bool>,
}

const PART: usize = 16;

impl Canaries {
    fn new(secrets: &[impl AsRef<[u8]>]) -> Self {
        let mut parts: Vec<[u8; PART]> = secrets
            .iter()
            .flat_map(|secret| [*secret.as_ref().first_chunk().unwrap(), *secret.as_ref().last_chunk().unwrap()])
            .collect();
        parts.sort_unstable();
        parts.dedup();
        let mut beginnings = vec![false; 1 << 24];
        for part in &parts {
            beginnings[beginning(part)] = true;
        }
        Self { parts, beginnings }
    }

    /// How often any part of a secret stands in the memory of this process that it can read itself.
    fn search(&self, process: Pid) -> usize {
        let process = process.as_raw_nonzero();
        let memory = File::open(format!("/proc/{process}/mem")).unwrap();
        let mut found = 0;
        for line in fs::read_to_string(format!("/proc/{process}/maps")).unwrap().lines() {
            let mut words = line.split_whitespace();
            let (range, access) = (words.next().unwrap(), words.next().unwrap());
            let name = words.nth(3).unwrap_or("anonymous");
            if !access.starts_with('r') || name.starts_with("[v") {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
            // A mapping that went away meanwhile, or a page behind the end of its file.
            if memory.read_exact_at(&mut bytes, from).is_err() {
                continue;
            }
            let count = self.count(&bytes);
            if count > 0 {
                eprintln!("process {process}: {count} in {line}");
            }
            found += count;
        }
        found
    }

    fn count(&self, bytes: &[u8]) -> usize {
        let at = |window: &[u8]| {
            self.beginnings[beginning(window)] && self.parts.binary_search(window.try_into().unwrap()).is_ok()
        };
        bytes.windows(PART).filter(|window| at(window)).count()
    }
}

fn beginning(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
