//! Load on one connection: N callers, each with one call in flight.

use std::path::Path;
use std::time::{Duration, Instant};

use hsm_kms::kms::client;
use hsm_kms::kms::proto::key_management_service_client::KeyManagementServiceClient;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, StatusRequest};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::process::Plugin;

/// Which RPC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    Status,
    Encrypt,
    Decrypt,
}

/// What one measurement showed.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Median latency, seconds.
    pub p50: f64,
    /// 99th percentile, seconds.
    pub p99: f64,
    /// Calls per second.
    pub rate: f64,
    /// Processor seconds of the front per call.
    pub front: f64,
    /// Processor seconds of the worker per call.
    pub worker: f64,
}

/// A connection and the runtime that drives it: one thread, so that the plugin keeps the other processor.
pub struct Load {
    runtime: Runtime,
    client: KeyManagementServiceClient<Channel>,
}

impl Load {
    pub fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let client = runtime.block_on(client::connect(socket, Duration::from_secs(5))).expect("connection");
        Self { runtime, client }
    }

    /// Returns when a plugin that is just starting has answered an Encrypt.
    pub fn first_encrypt(socket: &Path) {
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "the plugin made no socket");
            std::thread::sleep(Duration::from_micros(200));
        }
        let load = Self::connect(socket);
        load.runtime.block_on(async {
            while load.client.clone().encrypt(encrypt_request()).await.is_err() {
                assert!(began.elapsed() < Duration::from_secs(10), "the plugin does not serve");
            }
        });
    }

    pub fn run(&self, method: Method, callers: usize, span: Duration, plugin: &Plugin) -> Figures {
        self.runtime.block_on(self.measure(method, callers, span, plugin))
    }

    async fn measure(&self, method: Method, callers: usize, span: Duration, plugin: &Plugin) -> Figures {
        // A blob for each caller: opens of one blob at one time are done once, and would measure nothing.
        let mut blobs = Vec::with_capacity(callers);
        for _ in 0..callers {
            let sealed = self.client.clone().encrypt(encrypt_request()).await.expect("Encrypt").into_inner();
            blobs.push(DecryptRequest {
                ciphertext: sealed.ciphertext,
                uid: UID.to_owned(),
                key_id: sealed.key_id,
                annotations: sealed.annotations,
            });
        }
        let (front, worker) = plugin.processor_seconds();
        let began = Instant::now();
        let callers: Vec<_> = blobs
            .into_iter()
            .map(|decrypt| {
                let mut client = self.client.clone();
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    while began.elapsed() < span {
                        let start = Instant::now();
                        match method {
                            Method::Status => drop(client.status(StatusRequest {}).await.expect("Status")),
                            Method::Encrypt => drop(client.encrypt(encrypt_request()).await.expect("Encrypt")),
                            Method::Decrypt => drop(client.decrypt(decrypt.clone()).await.expect("Decrypt")),
                        }
                        times.push(start.elapsed().as_secs_f64());
                    }
                    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
                    (times, rate)
                })
            })
            .collect();
        let mut times = Vec::new();
        // Each over its own time: on a slow token the callers end far apart.
        let mut rate = 0.0;
        for caller in callers {
            let (own, own_rate) = caller.await.expect("caller");
            times.extend(own);
            rate += own_rate;
        }
        let (front_after, worker_after) = plugin.processor_seconds();
        times.sort_unstable_by(f64::total_cmp);
        let count = times.len() as f64;
        Figures {
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
            rate,
            front: (front_after - front) / count,
            worker: (worker_after - worker) / count,
        }
    }
}

const UID: &str = "11111111-2222-3333-4444-555555555555";

fn encrypt_request() -> EncryptRequest {
    EncryptRequest { plaintext: vec![7; 32].into(), uid: UID.to_owned() }
}
