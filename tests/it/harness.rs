//! What the tests stand on: a token with a PIN, a KEK made in it, a running plugin, and commands with input and output.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hsm_kms::kms::client::{self, Client};
use hsm_kms::kms::proto::StatusRequest;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::parts;
use crate::setup::Script;
use crate::yubihsm::device::Device;

/// Label of every test token and of every KEK that [`run_ceremony`] makes.
pub const LABEL: &str = "kek";
/// The cluster of every test.
pub const CLUSTER: &str = "test";

/// An initialised token, in a folder of its own that goes with it. Its label is [`LABEL`] but on the `YubiHSM`, which has its own.
pub struct TestToken {
    /// What must run beside the module. It ends before the folder goes.
    _beside: Option<Beside>,
    directory: TempDir,
    /// The section `token`, but for what stands in the other fields.
    section: Value,
    /// Path of the PKCS#11 module.
    pub module: PathBuf,
    /// Name of the vendor profile.
    pub profile: &'static str,
    /// What the module needs to find the token.
    pub environment: BTreeMap<String, String>,
    /// File with the user PIN, mode 0600.
    pub pin: PathBuf,
}

impl TestToken {
    /// Makes a token of the module under test.
    pub fn new() -> Self {
        match env::var("HSM_KMS_TEST_MODULE").as_deref() {
            Err(env::VarError::NotPresent) | Ok("softhsm2") => Self::softhsm2(),
            Ok("kryoptic") => Self::kryoptic(),
            other => panic!("HSM_KMS_TEST_MODULE is {other:?}, not softhsm2 or kryoptic"),
        }
    }

    /// The folder with all that belongs to the token, for further files of the test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The section `token` of plans and configurations.
    pub fn section(&self) -> Value {
        let mut section = self.section.clone();
        section["module"] = json!(self.module);
        section["pin"] = json!({"file": self.pin});
        section["environment"] = json!(self.environment);
        section
    }

    /// A token of SoftHSM2, whatever module is under test.
    pub fn softhsm2() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("softhsm2");
        let mut setup = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/softhsm2-setup"));
        succeed(setup.arg("--dir").arg(&home).args(["--label", LABEL]));
        let section = json!({
            "profile": "softhsm2",
            "module": "/usr/lib/softhsm/libsofthsm2.so",
            "label": LABEL,
            "pin": {"file": home.join("pin")},
            "environment": {"SOFTHSM2_CONF": home.join("softhsm2.conf")},
        });
        Self::of_section(directory, "softhsm2", section, None)
    }

    /// A token of Kryoptic, whatever module is under test.
    pub fn kryoptic() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let module = parts::installed(parts::folder().join("libkryoptic_pkcs11.so"));
        let configuration = directory.path().join("kryoptic.conf");
        let database = directory.path().join("kryoptic.sql");
        let slot = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", database.display());
        fs::write(&configuration, slot).unwrap();
        let pin = directory.path().join("pin");
        write_secret(&pin, USER_PIN);
        let tool = |arguments: &[&str]| {
            let mut tool = Command::new("pkcs11-tool");
            tool.env("KRYOPTIC_CONF", &configuration).arg("--module").arg(&module).args(["--slot", "1"]);
            succeed(tool.args(["--so-pin", SO_PIN]).args(arguments));
        };
        tool(&["--init-token", "--label", LABEL]);
        tool(&["--login", "--login-type", "so", "--init-pin", "--pin", USER_PIN]);
        let section = json!({
            "profile": "kryoptic",
            "module": module,
            "label": LABEL,
            "pin": {"file": pin},
            "environment": {"KRYOPTIC_CONF": configuration},
        });
        Self::of_section(directory, "kryoptic", section, None)
    }

    /// A database token of NSS softokn, with a copy of its profile that does not refuse it.
    pub fn nss() -> Self {
        Self::by_script("nss", "nss-setup", &[])
    }

    /// A soft token of openCryptoki, and its daemon. Its state is the system's, so one test at a time has it, and others wait.
    pub fn opencryptoki() -> Self {
        Self::by_script("opencryptoki-soft/v3-8", "opencryptoki-setup", &["--trial"])
    }

    /// A token of tpm2-pkcs11 on a simulated TPM, with a KEK [`LABEL`] and its MAC key.
    pub fn tpm2() -> Self {
        Self::by_script("tpm2", "tpm2-setup", &["--simulate"])
    }

    /// A simulated `YubiHSM` 2 behind Yubico's driver.
    pub fn yubihsm2() -> Self {
        let device = Device::new();
        let section = device.section();
        Self::of_section(tempfile::tempdir().unwrap(), "yubihsm2", section, Some(Beside::Device { _device: device }))
    }

    fn by_script(profile: &'static str, script: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = text(&directory.path().join("token"));
        let (script, section) = Script::run(script, &[&["--dir", &home, "--label", LABEL], arguments].concat());
        Self::of_section(directory, profile, section, Some(Beside::Script { _script: script }))
    }

    fn of_section(directory: TempDir, profile: &'static str, section: Value, beside: Option<Beside>) -> Self {
        let path = |value: &Value| PathBuf::from(value.as_str().unwrap());
        let environment = section["environment"].as_object().into_iter().flatten();
        Self {
            module: parts::installed(path(&section["module"])),
            profile,
            environment: environment.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect(),
            pin: path(&section["pin"]["file"]),
            _beside: beside,
            directory,
            section,
        }
    }
}

enum Beside {
    Device { _device: Device },
    Script { _script: Script },
}

// Not secret: they open a token that lives as long as one test.
const SO_PIN: &str = "87654321";
const USER_PIN: &str = "pin-of-the-token-5093817264";

/// Makes a KEK with label [`LABEL`] in the token, by `hsm-kms ceremony run`; returns the path of its record in `directory`.
pub fn run_ceremony(token: &TestToken, directory: &Path) -> PathBuf {
    let record = run_ceremony_on(&token.section(), &[], directory);
    parts::record_run(token.profile);
    record
}

/// The same on the token of this section, with these attributes permitted to deviate.
pub fn run_ceremony_on(section: &Value, permit: &[&str], directory: &Path) -> PathBuf {
    let output = hold_ceremony(section, permit, directory);
    assert!(output.status.success(), "the ceremony failed: {}", String::from_utf8_lossy(&output.stderr));
    let record = directory.join("kek-record.json");
    assert!(record.is_file(), "the ceremony wrote no record");
    record
}

/// Runs a ceremony that may fail. Its standard output is JSON if it does not.
pub fn hold_ceremony(section: &Value, permit: &[&str], directory: &Path) -> Output {
    let plan = json!({
        "version": 1,
        "kind": "trial",
        "cluster": CLUSTER,
        "token": section,
        "kek": {"label": LABEL, "permit": permit},
        "output": directory,
    });
    let path = directory.join("plan.yaml");
    write_yaml(&path, &plan);
    run(&["ceremony", "run", "--json", "--plan", &text(&path)], b"")
}

/// A configuration of `hsm-kms serve`. A test changes `value` before the plugin starts: `config.value["kek"]["record"] = ...`.
pub struct Config {
    path: PathBuf,
    /// The content of the file.
    pub value: Value,
}

impl Config {
    /// A configuration `name`.yaml that serves this record from this token, on a socket beside the token.
    pub fn new(token: &TestToken, record: &Path, name: &str) -> Self {
        Self::on(&token.section(), token.directory(), record, name)
    }

    /// The same for the token of this section, in `directory`.
    pub fn on(section: &Value, directory: &Path, record: &Path, name: &str) -> Self {
        let value = json!({
            "version": 1,
            "cluster": CLUSTER,
            "socket": {"path": directory.join(format!("{name}@kms.sock"))},
            "token": section,
            "health": "strict",
            "kek": {"record": record, "allow_trial": true},
        });
        Self { path: directory.join(format!("{name}.yaml")), value }
    }

    /// Writes the file and returns its path.
    pub fn write(&self) -> &Path {
        write_yaml(&self.path, &self.value);
        &self.path
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(self.value["socket"]["path"].as_str().unwrap())
    }
}

/// A running `hsm-kms serve`. Killed when it goes; its log is printed if the test failed.
pub struct Plugin {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Plugin {
    /// Starts the plugin and waits until its socket accepts. The HSM may not be there yet: see [`Plugin::healthy`].
    pub fn start(config: &Config) -> Self {
        Self::start_by(config, program())
    }

    /// As [`Plugin::start`], by a command that runs the program, or becomes it, with the arguments that are added to it.
    pub fn start_by(config: &Config, mut command: Command) -> Self {
        let log = config.path.with_extension("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .args(["serve", "--config"])
            .arg(config.write())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut plugin = Self { child, socket: config.socket(), log };
        wait_for("the socket", || {
            if let Some(status) = plugin.child.try_wait().unwrap() {
                panic!("the plugin ended with {status}");
            }
            UnixStream::connect(&plugin.socket).ok()
        });
        plugin
    }

    /// Waits until Status says `ok`.
    pub async fn healthy(self) -> Self {
        let mut client = self.client().await;
        let deadline = Instant::now() + LIMIT;
        loop {
            match client.status(StatusRequest {}).await {
                Ok(answer) if answer.get_ref().healthz == "ok" => return self,
                answer => assert!(Instant::now() < deadline, "the plugin is not healthy: {answer:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> Client {
        client::connect(&self.socket, LIMIT).await.unwrap()
    }

    /// Process id of the front process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything it wrote so far, of all its runs with this configuration.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Where it writes its log.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Asks it to stop (SIGTERM) and waits for its end, while this runtime's clients can close their connections.
    pub async fn stop(&mut self) -> ExitStatus {
        rustix::process::kill_process(self.pid(), Signal::TERM).unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the plugin does not stop");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks it for a new try (SIGHUP), as an operator does who mended something.
    pub fn hang_up(&self) {
        rustix::process::kill_process(self.pid(), Signal::HUP).unwrap();
    }

    /// Kills it (SIGKILL), as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("log of the plugin on {}:\n{log}", self.socket.display());
        }
    }
}

/// A loopback address that nobody has, for endpoints.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A copy of the program, which can be run at once: one that this process wrote could still be open in a child of another test, and
/// exec(2) then fails with ETXTBSY.
pub fn copy_program(to: &Path) {
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_hsm-kms")).arg(to).status().unwrap().success());
}

/// Runs `hsm-kms` with these arguments and this standard input.
pub fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child =
        program().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        // A command that refuses early reads no input: a broken pipe is its right.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    })
}

/// Polls until there is a value; panics after [`LIMIT`].
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        thread::sleep(PAUSE);
    }
}

/// Longest wait for anything; passed only when something is broken.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// The program under test, without the module's variables: it must take them from its own files.
pub fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_hsm-kms"));
    program.env_remove("SOFTHSM2_CONF").env_remove("KRYOPTIC_CONF");
    program
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
}

/// JSON is YAML.
fn write_yaml(path: &Path, value: &Value) {
    fs::write(path, format!("{value:#}\n")).unwrap();
}

pub fn write_secret(path: &Path, secret: &str) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_token_is_the_tests_own() {
    let token = TestToken::new();
    assert_eq!(fs::metadata(&token.pin).unwrap().permissions().mode() & 0o7777, 0o600);
    for path in token.environment.values() {
        assert!(Path::new(path).starts_with(token.directory()));
    }
    let pin = fs::read_to_string(&token.pin).unwrap();
    let mut tool = Command::new("pkcs11-tool");
    tool.envs(&token.environment).arg("--module").arg(&token.module).args(["--token-label", LABEL]);
    succeed(tool.args(["--login", "--pin", &pin, "--list-objects"]));
}

#[tokio::test]
async fn a_plugin_starts_answers_and_stops() {
    let token = TestToken::new();
    let record = run_ceremony(&token, token.directory());
    let config = Config::new(&token, &record, "plugin");
    let mut plugin = Plugin::start(&config).healthy().await;

    let socket = text(plugin.socket());
    let sealed = run(&["call", "encrypt", "--socket", &socket], b"0123456789abcdef0123456789abcdef");
    assert!(sealed.status.success(), "{sealed:?}");
    let opened = run(&["call", "decrypt", "--socket", &socket], &sealed.stdout);
    assert!(opened.status.success(), "{opened:?}");
    assert_eq!(opened.stdout, b"0123456789abcdef0123456789abcdef");
    assert!(!plugin.log().is_empty());

    assert_eq!(plugin.stop().await.code(), Some(0));
    assert!(!config.socket().exists());
    let mut plugin = Plugin::start(&config);
    plugin.kill();
    assert!(config.socket().exists());
    let plugin = Plugin::start(&config).healthy().await;
    let opened = run(&["call", "decrypt", "--socket", &text(plugin.socket())], &sealed.stdout);
    assert_eq!(opened.stdout, b"0123456789abcdef0123456789abcdef");
}
