//! A real etcd for one test, and what its files hold.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use data_encoding::BASE64;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::harness::wait_for;
use crate::parts::{installed, record_run};

/// A running etcd on loopback, with a folder of its own. Killed when it goes; its log is printed if the test failed.
pub struct Etcd {
    child: Child,
    url: String,
    folder: PathBuf,
}

/// A key and its value.
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
}

impl Etcd {
    /// Starts it in an empty folder below `directory` and waits until it answers.
    pub fn start(directory: &Path) -> Self {
        let folder = directory.join("etcd");
        fs::create_dir(&folder).unwrap();
        // Between here and etcd's start somebody may take a port that was free.
        (0..5).find_map(|_| Self::try_start(&folder)).expect("etcd does not start: see its log above")
    }

    fn try_start(folder: &Path) -> Option<Self> {
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let data = data(folder);
        let _ = fs::remove_dir_all(&data);
        let log = File::options().create(true).append(true).open(log(folder)).unwrap();
        let child = Command::new(installed(PathBuf::from("/usr/bin/etcd")))
            .args(["--name", "test", "--logger", "zap", "--log-level", "warn", "--data-dir"])
            .arg(&data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut etcd = Self { child, url: client, folder: folder.to_owned() };
        let answers = wait_for("etcd", || {
            if etcd.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            etcd.ctl(&["endpoint", "health"], &[]).status.success().then_some(true)
        });
        if !answers {
            eprintln!("{}", fs::read_to_string(self::log(folder)).unwrap());
        }
        answers.then_some(etcd)
    }

    /// Where it takes clients.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Puts a value.
    pub fn put(&self, key: &str, value: &[u8]) {
        let output = self.ctl(&["put", key], value);
        assert!(output.status.success(), "{output:?}");
    }

    /// All entries whose keys begin so.
    pub fn list(&self, prefix: &str) -> Vec<Entry> {
        let output = self.ctl(&["get", "--prefix", prefix, "--write-out", "json"], &[]);
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let bytes = |text: &Value| BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap();
        let entry = |entry: &Value| Entry {
            key: String::from_utf8(bytes(&entry["key"])).unwrap(),
            value: bytes(&entry["value"]),
        };
        answer["kvs"].as_array().unwrap().iter().map(entry).collect()
    }

    /// Stops it (SIGTERM: it writes out what it holds) and returns the content of all its files, write-ahead log included.
    pub fn stop(mut self) -> Vec<(PathBuf, Vec<u8>)> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        wait_for("etcd's end", || self.child.try_wait().unwrap());
        record_run("etcd");
        files(&data(&self.folder))
    }

    fn ctl(&self, arguments: &[&str], input: &[u8]) -> Output {
        let given = self.folder.join("input");
        fs::write(&given, input).unwrap();
        Command::new(installed(PathBuf::from("/usr/bin/etcdctl")))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(arguments)
            .stdin(File::open(given).unwrap())
            .output()
            .unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of etcd:\n{}", fs::read_to_string(log(&self.folder)).unwrap_or_default());
        }
    }
}

/// Whether `text` stands anywhere in the files.
pub fn holds(files: &[(PathBuf, Vec<u8>)], text: &[u8]) -> bool {
    files.iter().any(|(_, bytes)| bytes.windows(text.len()).any(|window| window == text))
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found
}
