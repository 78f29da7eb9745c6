//! The demo, and the API server in it, which is this binary once more.

use std::env;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use hsm_kms::kms::client;
use serde_json::Value;

use crate::emulator::{ApiServer, Plugin as Emulated};

/// "SOCKET URL read", "SOCKET URL rewrite" or "SOCKET URL write FROM COUNT".
const VARIABLE: &str = "HSM_KMS_DEMO";
const FOLDER: &str = "/registry/secrets/default/";
const LIMIT: Duration = Duration::from_mins(3);

/// In the demo it does the API server's work; in a run of the tests it shows the demo.
#[tokio::test]
async fn the_demo_shows_every_secret_back() {
    if let Ok(work) = env::var(VARIABLE) {
        return play(&work.split(' ').collect::<Vec<_>>()).await;
    }
    let began = Instant::now();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo-lost-kek");
    let arguments = ["--bin", env!("CARGO_BIN_EXE_hsm-kms"), "--api-server"];
    let shown = Command::new(demo).args(arguments).arg(env::current_exe().unwrap()).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{text}{}", String::from_utf8_lossy(&shown.stderr));
    assert!(text.contains("40 of 40 secrets came back."), "{text}");
    assert!(text.contains("secret-39: the password of 39"), "{text}");
    println!("the demo took {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < LIMIT);
}

/// An API server that starts, does this, and ends.
async fn play(work: &[&str]) {
    let client = client::connect(work[0].as_ref(), Duration::from_secs(10)).await.unwrap();
    let mut server = ApiServer::start([("kms", Emulated::real(client))]).await;
    let url = work[1];
    if work[2] == "write" {
        let [from, count] = [work[3], work[4]].map(|number| number.parse::<usize>().unwrap());
        for number in from..from + count {
            let key = format!("{FOLDER}secret-{number:02}");
            put(url, &key, &server.write(&key, format!("the password of {number:02}").as_bytes()).unwrap());
        }
        println!("demo: wrote {count} secrets");
        return;
    }
    let mut count = 0;
    for (key, value) in list(url) {
        let read = server.read(&key, &value).await.unwrap();
        if work[2] == "rewrite" {
            put(url, &key, &server.write(&key, &read.plaintext).unwrap());
        } else {
            println!("demo: {}: {}", &key[FOLDER.len()..], String::from_utf8(read.plaintext).unwrap());
        }
        count += 1;
    }
    if work[2] == "rewrite" {
        println!("demo: rewrote {count} secrets");
    }
}

fn put(url: &str, key: &str, value: &[u8]) {
    use std::io::Write;
    let mut put = Command::new("etcdctl");
    put.env("ETCDCTL_API", "3").args(["--endpoints", url, "put", key]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut put = put.spawn().unwrap();
    put.stdin.take().unwrap().write_all(value).unwrap();
    assert!(put.wait().unwrap().success());
}

fn list(url: &str) -> Vec<(String, Vec<u8>)> {
    let mut get = Command::new("etcdctl");
    get.env("ETCDCTL_API", "3").args(["--endpoints", url, "get", "--prefix", FOLDER, "--write-out", "json"]);
    let answer: Value = serde_json::from_slice(&get.output().unwrap().stdout).unwrap();
    let bytes = |text: &Value| BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap();
    let entry = |entry: &Value| (String::from_utf8(bytes(&entry["key"])).unwrap(), bytes(&entry["value"]));
    answer["kvs"].as_array().unwrap().iter().map(entry).collect()
}
