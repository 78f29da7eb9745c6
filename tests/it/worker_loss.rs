//! What happens to requests, health and resources when a process of the plugin dies or stands still.
//!
//! The times are what docs/design.md promises, with room for a busy machine. Nothing is waited for longer than it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hsm_kms::kms::client::Client;
use hsm_kms::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tonic::{Code, Request, Status};

use crate::harness::{Config, Plugin, TestToken, run_ceremony, wait_for};
use crate::processes::{descriptors_and_threads, is_alive, signal, stop, wait_for_worker_after, worker};

/// `limits.deadline_ms`, by default.
const DEADLINE: Duration = Duration::from_millis(2500);
/// Longest time of a Status, and of a refusal that needs no HSM.
const AT_ONCE: Duration = Duration::from_millis(50);

/// What the tests themselves may add to any time: six of them share two cores.
pub fn room() -> Duration {
    on_this_machine(Duration::from_millis(400))
}

/// The time as it is, on a machine that runs these tests and little else; longer in proportion where more processes than
/// that want each core.
fn on_this_machine(time: Duration) -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    time.mul_f64((load / f64::from(u32::try_from(cores).unwrap()) / 3.0).max(1.0))
}

#[tokio::test]
async fn a_killed_worker_under_load_costs_no_request() {
    let (_token, plugin) = serve(|_| {}).await;
    let mut load = Load::start(&plugin, 32).await;
    let watch = StatusWatch::start(&plugin).await;
    let killed = worker(&plugin).unwrap();
    load.goes_on(100).await;
    let at = signal(killed, Signal::KILL);
    load.goes_on_after(at).await;
    let away = load.longest_gap_since(at);
    assert!(away <= Duration::from_millis(500) + room(), "no answer for {away:?}");
    load.goes_on(100).await;
    load.end().await;
    assert_ne!(worker(&plugin), Some(killed));
    watch.end();
}

#[tokio::test]
async fn a_stopped_worker_is_replaced_and_every_request_is_answered() {
    let (_token, plugin) = serve(|_| {}).await;
    let watch = StatusWatch::start(&plugin).await;
    let stopped = worker(&plugin).unwrap();
    stop(stopped);
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let client = plugin.client().await;
        calls.spawn(async move {
            let began = Instant::now();
            (seal(client).await, began.elapsed())
        });
    }
    while let Some(call) = calls.join_next().await {
        let (answer, took) = call.unwrap();
        assert!(took <= DEADLINE + room(), "answered after {took:?}");
        // Its worker is killed after 1.2 s, and the request repeated on the next one: well within its deadline.
        answer.unwrap();
    }
    assert!(!is_alive(stopped), "the worker that hung is still there");
    assert_ne!(worker(&plugin), Some(stopped));
    seal(plugin.client().await).await.unwrap();
    watch.end();
    assert!(plugin.log().contains("a PKCS#11 call has hung"));
}

#[tokio::test]
async fn a_killed_front_takes_its_worker_along() {
    let (_token, mut plugin) = serve(|_| {}).await;
    let worker = worker(&plugin).unwrap();
    let began = Instant::now();
    plugin.kill();
    wait_for("the worker's end", || (!is_alive(worker)).then_some(()));
    assert!(began.elapsed() < on_this_machine(Duration::from_secs(1)), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stopped_worker_goes_with_its_killed_front() {
    let (_token, mut plugin) = serve(|_| {}).await;
    let worker = worker(&plugin).unwrap();
    stop(worker);
    let began = Instant::now();
    plugin.kill();
    wait_for("the worker's end", || (!is_alive(worker)).then_some(()));
    assert!(began.elapsed() < on_this_machine(Duration::from_secs(1)), "{:?}", began.elapsed());
}

/// SoftHSM2 rewrites its token's file at each login; a worker killed meanwhile would lose the KEK.
#[tokio::test]
async fn a_front_killed_at_any_moment_of_its_start_leaves_the_token_whole() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "start");
    for moment in 0..25 {
        let mut plugin = Plugin::start(&config);
        let worker = wait_for("the worker", || worker(&plugin));
        // Not a wait for something: the moment is what is tried.
        sleep(Duration::from_millis(moment)).await;
        if moment % 2 == 0 {
            plugin.kill();
        } else {
            assert_eq!(plugin.stop().await.code(), Some(0));
        }
        wait_for("the worker's end", || (!is_alive(worker)).then_some(()));
    }
    Plugin::start(&config).healthy().await;
}

#[tokio::test]
async fn sigterm_lets_calls_finish() {
    let (_token, mut plugin) = serve(|_| {}).await;
    let stopped = worker(&plugin).unwrap();
    stop(stopped);
    let calls: Vec<_> = start_calls(&plugin, 8).await;
    // On their way when Status, sent after them on the same thread, is answered.
    plugin.client().await.status(StatusRequest {}).await.unwrap();
    let began = Instant::now();
    // They end when the worker that hangs is replaced, after more than a second.
    let status = plugin.stop().await;
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed() < on_this_machine(Duration::from_secs(3)), "{:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_millis(500), "it did not wait: {:?}", began.elapsed());
    assert!(!plugin.socket().exists());
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let [front, worker] = [plugin.pid(), stopped].map(is_alive);
    assert!(!front && !worker);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_sigterm() {
    let (_token, mut plugin) = serve(|_| {}).await;
    // An API server's, one that answers nothing since its process stands still, and one that never spoke.
    let mut used = plugin.client().await;
    used.status(StatusRequest {}).await.unwrap();
    let standing = standing_client(&plugin);
    let silent = std::os::unix::net::UnixStream::connect(plugin.socket()).unwrap();
    let worker = worker(&plugin).unwrap();
    let began = Instant::now();
    assert_eq!(plugin.stop().await.code(), Some(0));
    assert!(began.elapsed() < on_this_machine(Duration::from_secs(1)), "{:?}", began.elapsed());
    assert!(!plugin.socket().exists());
    wait_for("the worker's end", || (!is_alive(worker)).then_some(()));
    standing.0.shutdown_background();
    drop(silent);
    assert!(!plugin.log().contains("were still"), "{}", plugin.log());
}

/// A client that has finished a call and then never reads again: its runtime is not run any more.
fn standing_client(plugin: &Plugin) -> (tokio::runtime::Runtime, Client) {
    let socket = plugin.socket().to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let mut client = hsm_kms::kms::client::connect(&socket, Duration::from_secs(5)).await.unwrap();
            client.status(StatusRequest {}).await.unwrap();
            client
        });
        (runtime, client)
    })
    .join()
    .unwrap()
}

#[tokio::test]
async fn fifty_worker_kills_leave_nothing_behind() {
    let (_token, plugin) = serve(|_| {}).await;
    let mut client = plugin.client().await;
    let watch = StatusWatch::start(&plugin).await;
    let first = worker(&plugin).unwrap();
    let mut before = None;
    let mut killed = Vec::new();
    for round in 0..50 {
        let worker = worker(&plugin).unwrap();
        killed.push(worker);
        signal(worker, Signal::KILL);
        wait_for_worker_after(&plugin, worker);
        // Waits until the next worker serves.
        wait_until_sealed(&mut client).await;
        if round == 4 {
            before = Some((descriptors_and_threads(plugin.pid()), sockets_of(plugin.pid())));
        }
    }
    killed.push(first);
    let after = (descriptors_and_threads(plugin.pid()), sockets_of(plugin.pid()));
    assert_eq!(after, before.unwrap());
    assert!(killed.into_iter().all(|worker| !is_alive(worker)));
    watch.end();
}

#[tokio::test]
async fn the_callers_deadline_is_honoured() {
    let (_token, plugin) = serve(|_| {}).await;
    let (sealed, mut client) = sealed(&plugin).await;
    stop(worker(&plugin).unwrap());
    let mut request = Request::new(sealed);
    request.set_timeout(Duration::from_millis(100));
    let began = Instant::now();
    let refused = client.decrypt(request).await.unwrap_err();
    assert!(began.elapsed() <= Duration::from_millis(100) + room(), "{:?}", began.elapsed());
    assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled), "{refused}");
    // The plugin gave it up too, by its own clock or the caller's word, and says when.
    let line = wait_for("the line in the log", || {
        plugin.log().lines().find(|line| line.contains("method=\"Decrypt\"")).map(str::to_owned)
    });
    assert!(line.contains("DeadlineExceeded") || line.contains("the caller gave up"), "{line}");
    let micros = line.split("micros=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(Duration::from_micros(micros) <= Duration::from_millis(100) + room(), "{line}");
}

#[tokio::test]
async fn more_callers_than_the_queue_holds_are_refused_at_once() {
    let (_token, plugin) = serve(|config| config["limits"] = json!({"queue": 4})).await;
    let watch = StatusWatch::start(&plugin).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(plugin.client().await);
    }
    stop(worker(&plugin).unwrap());
    let mut calls = JoinSet::new();
    for client in clients {
        calls.spawn(async move {
            let began = Instant::now();
            (seal(client).await, began.elapsed())
        });
    }
    let (mut waited, mut refused) = (0, 0);
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            (Ok(_), _) => waited += 1,
            (Err(status), took) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                assert!(took <= on_this_machine(AT_ONCE) + room(), "refused after {took:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((waited, refused), (4, 16));
    watch.end();
}

async fn serve(change: impl FnOnce(&mut Value)) -> (TestToken, Plugin) {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let mut config = Config::new(&token, &record, "loss");
    change(&mut config.value);
    let plugin = Plugin::start(&config).healthy().await;
    (token, plugin)
}

async fn seal(mut client: Client) -> Result<EncryptResponse, Status> {
    let request = EncryptRequest { plaintext: vec![7; 32].into(), uid: "loss".to_owned() };
    client.encrypt(request).await.map(tonic::Response::into_inner)
}

async fn sealed(plugin: &Plugin) -> (DecryptRequest, Client) {
    let client = plugin.client().await;
    let EncryptResponse { ciphertext, key_id, annotations } = seal(client.clone()).await.unwrap();
    (DecryptRequest { ciphertext, uid: "loss".to_owned(), key_id, annotations }, client)
}

async fn wait_until_sealed(client: &mut Client) {
    let began = Instant::now();
    while let Err(status) = seal(client.clone()).await {
        assert!(began.elapsed() < Duration::from_secs(20), "{status}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn start_calls(plugin: &Plugin, count: usize) -> Vec<JoinHandle<Result<EncryptResponse, Status>>> {
    let mut calls = Vec::new();
    for _ in 0..count {
        calls.push(tokio::spawn(seal(plugin.client().await)));
    }
    tokio::task::yield_now().await;
    calls
}

fn sockets_of(process: Pid) -> usize {
    let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
    let links = std::fs::read_dir(folder).unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// Callers that seal and open all the time. The first failure ends the test.
struct Load {
    callers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    /// When each request was answered.
    answers: Arc<std::sync::Mutex<Vec<Instant>>>,
}

impl Load {
    async fn start(plugin: &Plugin, callers: usize) -> Self {
        let (request, _) = sealed(plugin).await;
        let mut load =
            Self { callers: JoinSet::new(), stop: Arc::default(), done: Arc::default(), answers: Arc::default() };
        for _ in 0..callers {
            let mut client = plugin.client().await;
            let (request, stop) = (request.clone(), Arc::clone(&load.stop));
            let (done, answers) = (Arc::clone(&load.done), Arc::clone(&load.answers));
            load.callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    seal(client.clone()).await.unwrap();
                    assert_eq!(client.decrypt(request.clone()).await.unwrap().get_ref().plaintext, vec![7; 32]);
                    done.fetch_add(1, Ordering::Relaxed);
                    answers.lock().unwrap().push(Instant::now());
                }
            });
        }
        load
    }

    /// Waits for so many more rounds.
    async fn goes_on(&mut self, rounds: usize) {
        let target = self.done.load(Ordering::Relaxed) + rounds;
        let began = Instant::now();
        while self.done.load(Ordering::Relaxed) < target {
            self.check();
            assert!(began.elapsed() < Duration::from_secs(20), "the load stands still");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until each caller has surely begun a request after `at` and had its answer.
    async fn goes_on_after(&mut self, at: Instant) {
        let began = Instant::now();
        while at.elapsed() < Duration::from_millis(100) {
            sleep(Duration::from_millis(2)).await;
        }
        self.goes_on(self.callers.len() * 4).await;
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    fn longest_gap_since(&self, at: Instant) -> Duration {
        let answers = self.answers.lock().unwrap();
        let after: Vec<_> = answers.iter().filter(|answer| **answer >= at).collect();
        after.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap()
    }

    fn check(&mut self) {
        if let Some(ended) = self.callers.try_join_next() {
            ended.unwrap();
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
    }
}

/// Asks for the Status all the time, on a thread of its own: each answer must come at once.
struct StatusWatch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl StatusWatch {
    async fn start(plugin: &Plugin) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, stopped) = (plugin.socket().to_owned(), Arc::clone(&stop));
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = hsm_kms::kms::client::connect(&socket, Duration::from_secs(5)).await.unwrap();
                client.status(StatusRequest {}).await.unwrap();
                ready.send(()).unwrap();
                let mut times = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = client.status(StatusRequest {}).await.unwrap().into_inner();
                    times.push(began.elapsed());
                    assert!(answer.key_id.starts_with("hsm1-"));
                    sleep(Duration::from_millis(5)).await;
                }
                times
            })
        });
        is_ready.await.unwrap();
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().unwrap();
        times.sort_unstable();
        assert!(times.len() > 3, "only {} answers", times.len());
        // Two cores carry the tests, their callers and the plugins: they may hold up some answers, but not many, nor for long.
        let (usual, all) = (times[times.len() / 2], times[times.len() - 1]);
        assert!(
            usual <= on_this_machine(AT_ONCE) && all <= on_this_machine(AT_ONCE) + room(),
            "{usual:?}, {all:?} of {} answers",
            times.len()
        );
    }
}
