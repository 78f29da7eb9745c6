//! What API servers and their users do to the plugins while KEKs change, and what may not happen meanwhile.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::{self, Client};
use hsm_kms::kms::proto::{EncryptResponse, StatusRequest};
use tokio::sync::watch;

use crate::emulator::{ApiServer, Plugin};
use crate::failover::{SEED, decrypt, encrypt};

/// Everything that was stored and sealed, and everything that went wrong.
#[derive(Default)]
pub struct Store {
    /// What is in etcd: path and value.
    objects: Mutex<Vec<(String, Vec<u8>)>>,
    /// Seeds that came of calls beside the API servers.
    seeds: Mutex<Vec<EncryptResponse>>,
    tally: Mutex<Tally>,
}

/// What was done, and what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub reads: usize,
    pub writes: usize,
    pub pairs: usize,
    pub failures: Vec<String>,
    /// When each call began, and how long it took.
    calls: Vec<(Instant, Duration)>,
}

/// The load on one node. It ends when it is stopped, not when it goes.
pub struct Load {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// The slowest that a call may be because of a reload.
const SLOW: Duration = Duration::from_millis(50);

impl Store {
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    fn fail(&self, what: String) {
        self.tally.lock().unwrap().failures.push(what);
    }

    fn timed(&self, began: Instant) {
        let took = began.elapsed();
        self.tally.lock().unwrap().calls.push((began, took));
    }

    fn object(&self, index: usize) -> Option<(String, Vec<u8>)> {
        let objects = self.objects.lock().unwrap();
        objects.get(index % objects.len().max(1)).cloned()
    }
}

impl Tally {
    /// What was done, and how long calls took amid these reloads and between them.
    pub fn figures(&self, reloads: &[(Instant, Instant)]) -> String {
        let is_amid = |(began, took): &(Instant, Duration)| {
            reloads.iter().any(|(from, to)| *began <= *to && *began + *took >= *from)
        };
        let figures = |calls: Vec<&(Instant, Duration)>| {
            let mut times: Vec<Duration> = calls.iter().map(|(_, took)| *took).collect();
            times.sort_unstable();
            let at = |share: usize| {
                times.get(times.len() * share / 1000).or(times.last()).map_or(0.0, |time| time.as_secs_f64() * 1e3)
            };
            let slow = times.iter().filter(|time| **time > SLOW).count();
            format!(
                "{} calls: median {:.1} ms, p99 {:.1} ms, slowest {:.1} ms, {slow} over {} ms",
                times.len(),
                at(500),
                at(990),
                at(1000),
                SLOW.as_millis()
            )
        };
        let (amid, between) = self.calls.iter().partition(|call| is_amid(call));
        format!(
            "{} reloads, {} reads, {} writes, {} pairs of Status and Encrypt, {} failures\n  amid reloads: {}\n  between them: {}",
            reloads.len(),
            self.reads,
            self.writes,
            self.pairs,
            self.failures.len(),
            figures(amid),
            figures(between)
        )
    }
}

impl Load {
    /// An API server on this node, and calls beside it, in a thread of their own: what else the test does must not slow them.
    pub fn start(node: usize, plugin: &crate::harness::Plugin, store: &Arc<Store>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (socket, store) = (plugin.socket().to_owned(), Arc::clone(store));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = || client::connect(&socket, Duration::from_secs(20));
                let server = ApiServer::start([("kms", Plugin::real(client().await.unwrap()))]).await;
                let (first, second) = (client().await.unwrap(), client().await.unwrap());
                tokio::join!(
                    serve(node, server, &store, stopped.clone()),
                    seal_and_open(node, first, &store, stopped.clone()),
                    seal_and_open(node, second, &store, stopped),
                );
            });
        });
        Self { stop, thread }
    }

    /// Ends it after the calls that run.
    pub fn stop(self) {
        self.stop.send_replace(true);
        self.thread.join().unwrap();
    }
}

/// Polls, writes, and reads what any API server wrote.
async fn serve(node: usize, mut server: ApiServer, store: &Store, stopped: watch::Receiver<bool>) {
    let mut count = 0_usize;
    while !*stopped.borrow() {
        // A minute of its clock: it asks for Status, and for a new seed if the key_id is another.
        server.advance(Duration::from_mins(1)).await;
        if let Err(error) = server.readyz().await {
            store.fail(format!("node {node}: {error}"));
        }
        let path = format!("/registry/secrets/node-{node}/{count}");
        match server.write(&path, path.as_bytes()) {
            Ok(value) => store.objects.lock().unwrap().push((path, value)),
            Err(error) => store.fail(format!("node {node}: write {path}: {error}")),
        }
        store.tally.lock().unwrap().writes += 1;
        // The newest, whose seed may be another's, and some older one.
        let newest = store.objects.lock().unwrap().len() - 1;
        for index in [newest, count.wrapping_mul(7919)] {
            let Some((path, value)) = store.object(index) else { continue };
            match server.read(&path, &value).await {
                Ok(read) if read.plaintext == path.as_bytes() => {}
                Ok(_) => store.fail(format!("node {node}: read {path}: another plaintext")),
                Err(error) => store.fail(format!("node {node}: read {path}: {error}")),
            }
            store.tally.lock().unwrap().reads += 1;
        }
        count += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Status and Encrypt, whose `key_id`s must agree; then Decrypt of what any node sealed.
async fn seal_and_open(node: usize, mut client: Client, store: &Store, stopped: watch::Receiver<bool>) {
    let mut count = 0_usize;
    while !*stopped.borrow() {
        let announced = match client.status(StatusRequest {}).await {
            Ok(answer) => answer.into_inner(),
            Err(error) => return store.fail(format!("node {node}: Status: {error}")),
        };
        if announced.healthz != "ok" {
            store.fail(format!("node {node}: Status: {}", announced.healthz));
        }
        // Time for a change in between.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let began = Instant::now();
        match encrypt(&mut client).await {
            Ok(sealed) if sealed.key_id == announced.key_id => {
                store.timed(began);
                store.seeds.lock().unwrap().push(sealed);
            }
            Ok(sealed) => store.fail(format!("node {node}: {} after {}", sealed.key_id, announced.key_id)),
            Err(error) => store.fail(format!("node {node}: Encrypt: {error}")),
        }
        let seeds: Vec<EncryptResponse> = {
            let seeds = store.seeds.lock().unwrap();
            let some = [seeds.len() - 1, count.wrapping_mul(7919) % seeds.len()];
            some.iter().map(|index| seeds[*index].clone()).collect()
        };
        for sealed in seeds {
            let began = Instant::now();
            match decrypt(&mut client, &sealed).await {
                Ok(seed) if seed == SEED => store.timed(began),
                Ok(_) => store.fail(format!("node {node}: another seed")),
                Err(error) => store.fail(format!("node {node}: Decrypt of {}: {error}", sealed.key_id)),
            }
        }
        count += 1;
        store.tally.lock().unwrap().pairs += 1;
    }
}
