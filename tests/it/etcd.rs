//! A real etcd for one test, and what its files hold.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use data_encoding::BASE64;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::harness::{text, wait_for};
use crate::parts::{self, installed, record_run};

/// A running etcd on loopback, with a folder of its own. Killed when it goes; its log is printed if the test failed.
pub struct Etcd {
    child: Child,
    version: Version,
    url: String,
    folder: PathBuf,
    /// With TLS: where its certificates lie, and a client's.
    certificates: Option<PathBuf>,
}

/// Which etcd.
#[derive(Clone, Copy, Debug)]
pub enum Version {
    /// 3.4 of this Debian.
    Debian,
    /// 3.5 of the next.
    Newer,
}

impl Version {
    fn program(self, name: &str) -> PathBuf {
        installed(match self {
            Self::Debian => Path::new("/usr/bin").join(name),
            Self::Newer => parts::folder().join("etcd-newer/usr/bin").join(name),
        })
    }

    fn component(self) -> &'static str {
        match self {
            Self::Debian => "etcd",
            Self::Newer => "etcd 3.5",
        }
    }
}

/// A key and its value.
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
}

impl Etcd {
    /// Starts it in an empty folder below `directory` and waits until it answers.
    pub fn start(directory: &Path) -> Self {
        Self::start_version(directory, Version::Debian)
    }

    /// The same, of this version.
    pub fn start_version(directory: &Path, version: Version) -> Self {
        Self::start_with(directory, version, None)
    }

    /// Starts one that speaks TLS and wants client certificates. `directory` has the files ca.crt, client.crt and client.key then, and
    /// other.crt of an authority that nobody trusts.
    pub fn start_tls(directory: &Path) -> Self {
        make_certificates(directory);
        Self::start_with(directory, Version::Debian, Some(directory))
    }

    /// Starts one on what this snapshot holds, as an operator restores a backup.
    pub fn restored(directory: &Path, snapshot: &Path) -> Self {
        Self::start_on(directory, Version::Debian, None, Some(snapshot))
    }

    fn start_with(directory: &Path, version: Version, certificates: Option<&Path>) -> Self {
        Self::start_on(directory, version, certificates, None)
    }

    fn start_on(directory: &Path, version: Version, certificates: Option<&Path>, snapshot: Option<&Path>) -> Self {
        let folder = directory.join("etcd");
        fs::create_dir(&folder).unwrap();
        // Between here and etcd's start somebody may take a port that was free.
        (0..5)
            .find_map(|_| Self::try_start(&folder, version, certificates, snapshot))
            .expect("etcd does not start: see its log above")
    }

    fn try_start(
        folder: &Path,
        version: Version,
        certificates: Option<&Path>,
        snapshot: Option<&Path>,
    ) -> Option<Self> {
        let [client, peer] = free_ports();
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let data = data(folder);
        let _ = fs::remove_dir_all(&data);
        if let Some(snapshot) = snapshot {
            let mut restore = Command::new(version.program("etcdctl"));
            restore.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(&data);
            restore.args(["--name", "test", "--initial-cluster", &format!("test={peer}")]);
            let output = restore.args(["--initial-advertise-peer-urls", &peer]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let log = File::options().create(true).append(true).open(log(folder)).unwrap();
        let mut command = Command::new(version.program("etcd"));
        command
            .args(["--name", "test", "--logger", "zap", "--log-level", "warn", "--data-dir"])
            .arg(&data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")]);
        if let Some(certificates) = certificates {
            let file = |name: &str| text(&certificates.join(name));
            command.args(["--cert-file", &file("server.crt"), "--key-file", &file("server.key")]);
            command.args(["--client-cert-auth", "--trusted-ca-file", &file("ca.crt")]);
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let certificates = certificates.map(Path::to_owned);
        let mut etcd = Self { child, version, url: client, folder: folder.to_owned(), certificates };
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
        self.succeed(&["put", key], value);
    }

    /// Puts `count` values under numbered keys, many in one transaction, by etcd's JSON gateway.
    pub fn fill(&self, folder: &str, count: usize, value: impl Fn(usize) -> Vec<u8>) {
        let put = |number: usize| {
            let key = BASE64.encode(format!("{folder}{number:06}").as_bytes());
            json!({"requestPut": {"key": key, "value": BASE64.encode(&value(number))}})
        };
        // At most 128 operations, by default.
        for begin in (0..count).step_by(128) {
            let puts: Vec<Value> = (begin..count.min(begin + 128)).map(put).collect();
            let body = json!({ "success": puts }).to_string();
            let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
            let head = format!("POST /v3/kv/txn HTTP/1.0\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all([head, body].concat().as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        self.succeed(&["del", key], &[]);
    }

    /// Forgets all older revisions.
    pub fn compact(&self) {
        let status = self.succeed(&["endpoint", "status", "--write-out", "json"], &[]);
        let status: Value = serde_json::from_slice(&status).unwrap();
        self.succeed(&["compact", "--physical", &status[0]["Status"]["header"]["revision"].to_string()], &[]);
    }

    /// Writes its file anew.
    pub fn defragment(&self) {
        self.succeed(&["defrag"], &[]);
    }

    /// Saves a snapshot there.
    pub fn snapshot(&self, path: &Path) -> PathBuf {
        self.succeed(&["snapshot", "save", &text(path)], &[]);
        path.to_owned()
    }

    /// The file in which it keeps its data.
    pub fn database(&self) -> PathBuf {
        data(&self.folder).join("member/snap/db")
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
        record_run(self.version.component());
        files(&data(&self.folder))
    }

    fn succeed(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.ctl(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    }

    fn ctl(&self, arguments: &[&str], input: &[u8]) -> Output {
        let given = self.folder.join("input");
        fs::write(&given, input).unwrap();
        let mut command = Command::new(self.version.program("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]);
        if let Some(certificates) = &self.certificates {
            for (flag, name) in [("--cacert", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")] {
                command.arg(flag).arg(certificates.join(name));
            }
        }
        command.args(arguments).stdin(File::open(given).unwrap()).output().unwrap()
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

/// An authority, a server's and a client's certificate by it, and another authority.
fn make_certificates(directory: &Path) {
    let configuration = directory.join("openssl.cnf");
    let sections = "[req]\ndistinguished_name = name\n[name]\n[authority]\nbasicConstraints = critical, CA:TRUE\n\
                    [end]\nbasicConstraints = CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";
    fs::write(&configuration, sections).unwrap();
    for (name, section) in [("ca", "authority"), ("other", "authority"), ("server", "end"), ("client", "end")] {
        let [certificate, key] = ["crt", "key"].map(|extension| text(&directory.join(format!("{name}.{extension}"))));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        command.args(["-subj", &format!("/CN={name}"), "-extensions", section, "-keyout", &key, "-out", &certificate]);
        command.arg("-config").arg(&configuration);
        if section == "end" {
            command.arg("-CA").arg(directory.join("ca.crt")).arg("-CAkey").arg(directory.join("ca.key"));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
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
