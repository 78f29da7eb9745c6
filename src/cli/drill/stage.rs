//! A throw-away set-up: a SoftHSM2 token, a KEK in it, and plugins of this program. All of it goes at the end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use serde_json::{Value, json};

use super::failure;
use crate::ceremony::{self, PIN_HALVES, THROW_AWAY_LABEL};
use crate::cli::CliError;
use crate::cli::call::{Target, random_uid};
use crate::exit::ExitCode;
use crate::kms::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use crate::recovery::{HybridKey, Recipient};

/// A folder of this user alone, removed when this goes.
pub(super) struct Folder(PathBuf);

/// A throw-away token.
pub(super) struct Token {
    folder: PathBuf,
    pub(super) configuration: PathBuf,
    pub(super) pin: PathBuf,
    pub(super) serial: String,
}

/// A recovery key, whose public half lies in a file.
pub(super) struct RecoveryKey {
    pub(super) key: HybridKey,
    pub(super) recipient: Recipient,
    pub(super) public: PathBuf,
}

/// A running `hsm-kms serve`, killed when this goes.
pub(super) struct Plugin {
    child: Child,
    log: PathBuf,
    pub(super) socket: PathBuf,
}

/// Longest wait for a plugin to say `ok`, or why not.
const START_LIMIT: Duration = Duration::from_secs(20);
pub(super) const PAUSE: Duration = Duration::from_millis(50);

impl Folder {
    pub(super) fn new() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("hsm-kms-drill-{}", random_uid().get(..12).unwrap_or_default()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| system(&error))?;
        Ok(Self(path))
    }

    /// A further folder in it.
    pub(super) fn within(&self, name: &str) -> Result<PathBuf, CliError> {
        let path = self.0.join(name);
        DirBuilder::new().mode(0o700).recursive(true).create(&path).map_err(|error| system(&error))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is a token that nobody uses, and copies of public files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Token {
    /// An empty token in this folder.
    pub(super) fn new(folder: PathBuf) -> Result<Self, CliError> {
        let configuration = ceremony::configure(&folder).map_err(|error| system(&error))?;
        let serial = ceremony::initialise(&configuration)
            .map_err(|error| failure(ExitCode::BadUsage, error.to_string(), "apt-get install -y softhsm2"))?;
        let pin = folder.join("pin");
        write_secret(&pin, &PIN_HALVES.concat())?;
        Ok(Self { folder, configuration, pin, serial })
    }

    /// Where SoftHSM2 keeps what an HSM would keep inside.
    fn inside(&self) -> PathBuf {
        self.folder.join("tokens")
    }

    /// The token is out of reach.
    pub(super) fn take_away(&self) -> Result<(), CliError> {
        fs::rename(self.inside(), self.folder.join("away"))
            .and_then(|()| fs::create_dir(self.inside()))
            .map_err(|error| system(&error))
    }

    /// It is back.
    pub(super) fn give_back(&self) -> Result<(), CliError> {
        fs::remove_dir_all(self.inside())
            .and_then(|()| fs::rename(self.folder.join("away"), self.inside()))
            .map_err(|error| system(&error))
    }

    /// It is no more.
    pub(super) fn destroy(&self) -> Result<(), CliError> {
        fs::remove_dir_all(self.inside()).and_then(|()| fs::create_dir(self.inside())).map_err(|error| system(&error))
    }

    /// The section `token`.
    pub(super) fn section(&self) -> Value {
        json!({
            "profile": "softhsm2",
            "label": THROW_AWAY_LABEL,
            "pin": {"file": self.pin},
            "environment": {"SOFTHSM2_CONF": self.configuration},
        })
    }

    /// Makes a KEK in it, whose seeds are sealed to that recovery key, too, and gives its record's path.
    pub(super) fn make_kek(&self, recipient: Option<&RecoveryKey>, output: &Path) -> Result<PathBuf, CliError> {
        let recipients = recipient.map(|RecoveryKey { recipient, public, .. }| {
            json!({"file": public, "fingerprint": recipient.fingerprint().to_string()})
        });
        let plan = json!({
            "version": 1,
            "kind": "trial",
            "cluster": CLUSTER,
            "token": self.section(),
            "kek": {"label": "kek"},
            "recipients": recipients.as_slice(),
            "output": output,
        });
        let path = output.join("plan.json");
        write(&path, &plan)?;
        let output_of = program().args(["ceremony", "run", "--json", "--plan"]).arg(&path).output();
        let said = output_of.map_err(|error| system(&error))?;
        if said.status.success() {
            return Ok(output.join("kek-record.json"));
        }
        let why = String::from_utf8_lossy(&said.stderr).lines().rev().take(2).collect::<Vec<_>>().join("; ");
        Err(failure(ExitCode::NotReachable, format!("no KEK was made: {why}"), "hsm-kms ceremony run shows more"))
    }
}

impl RecoveryKey {
    /// A new one, with the file in this folder.
    pub(super) fn new(folder: &Path) -> Result<Self, CliError> {
        let key = HybridKey::generate().map_err(|error| system(&error))?;
        let none = || failure(ExitCode::DoesNotHold, "no recovery key", "report this");
        let recipient = key.recipient().ok_or_else(none)?;
        let public = folder.join("recipient.json");
        fs::write(&public, recipient.to_json()).map_err(|error| system(&error))?;
        Ok(Self { key, recipient, public })
    }
}

/// The cluster of every throw-away set-up.
pub(super) const CLUSTER: &str = "drill";

/// A configuration in this folder that serves this record from this token.
pub(super) fn configure(folder: &Path, cluster: &str, token: &Value, record: &Path) -> Result<PathBuf, CliError> {
    let config = json!({
        "version": 1,
        "cluster": cluster,
        "socket": {"path": folder.join("hsm@kms.sock")},
        "token": token,
        "health": "strict",
        "kek": {"record": record, "allow_trial": true, "accept_data_loss": true},
    });
    let path = folder.join("config.json");
    write(&path, &config)?;
    Ok(path)
}

impl Plugin {
    /// Starts one with the configuration that [`configure`] wrote into this folder.
    pub(super) fn start(folder: &Path) -> Result<Self, CliError> {
        let (log, socket) = (folder.join("log"), folder.join("hsm@kms.sock"));
        let file = File::create(&log).map_err(|error| system(&error))?;
        let mut command = program();
        command.args(["serve", "--config"]).arg(folder.join("config.json"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Ok(Self { child: command.spawn().map_err(|error| system(&error))?, log, socket })
    }

    /// Starts one that must serve: without it there is nothing to play.
    pub(super) fn serving(folder: &Path) -> Result<Self, CliError> {
        let mut plugin = Self::start(folder)?;
        plugin.healthy().map_err(out_of_reach)?;
        Ok(plugin)
    }

    /// Waits until Status is `ok`. `Err`: what it says instead, or why it ended.
    pub(super) fn healthy(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_LIMIT;
        let mut said = "it does not answer".to_owned();
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return Err(format!("it ended: {}", self.last_word()));
            }
            match if self.socket.exists() { status(&self.socket) } else { Err(said.clone()) } {
                Ok(answer) if answer.healthz == "ok" => return Ok(()),
                Ok(answer) if answer.healthz.starts_with("starting") => said = answer.healthz,
                Ok(answer) => return Err(format!("Status says {:?}", answer.healthz)),
                Err(why) => said = why,
            }
            thread::sleep(PAUSE);
        }
        Err(said)
    }

    /// Why it ended, in its own words.
    fn last_word(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let why = log.lines().find_map(|line| line.strip_prefix("hsm-kms: why: "));
        why.or(log.lines().last()).unwrap_or("it said nothing").to_owned()
    }

    /// Process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it lives.
    pub(super) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks a plugin for its Status.
pub(super) fn status(socket: &Path) -> Result<StatusResponse, String> {
    call(socket, StatusRequest {}, async |mut client, request| client.status(request).await)
}

/// Has a plugin seal these bytes.
pub(super) fn encrypt(socket: &Path, seed: &[u8]) -> Result<EncryptResponse, String> {
    let request = EncryptRequest { plaintext: Bytes::copy_from_slice(seed), uid: random_uid() };
    call(socket, request, async |mut client, request| client.encrypt(request).await)
}

/// Has a plugin open what one sealed, and compares. `Ok`: it gave these bytes.
pub(super) fn opens(socket: &Path, sealed: &EncryptResponse, seed: &[u8]) -> Result<(), String> {
    let request = DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: random_uid(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    let opened = call(socket, request, async |mut client, request| client.decrypt(request).await)?;
    if opened.plaintext == seed { Ok(()) } else { Err("Decrypt gave other bytes".to_owned()) }
}

fn call<M, R>(
    socket: &Path,
    message: M,
    method: impl AsyncFnOnce(crate::kms::client::Client, tonic::Request<M>) -> Result<tonic::Response<R>, tonic::Status>,
) -> Result<R, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let target = Target { socket: socket.to_owned(), timeout: SECONDS };
    runtime.block_on(target.call(message, method)).map_err(|error| error.why)
}

/// Longest time of one call.
const SECONDS: u64 = 3;

fn program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null());
    command
}

/// A file that is not there yet, for this user alone.
pub(super) fn write(path: &Path, content: &Value) -> Result<(), CliError> {
    write_secret(path, &format!("{content:#}\n"))
}

fn write_secret(path: &Path, text: &str) -> Result<(), CliError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| system(&error))
}

/// A plugin that should serve does not.
pub(super) fn out_of_reach(why: String) -> CliError {
    failure(ExitCode::NotReachable, why, "hsm-kms serve shows more")
}

/// The living plugin, which the configuration names, does not answer.
pub(super) fn no_plugin(socket: &Path, why: &str) -> CliError {
    let why = format!("the plugin at {}: {why}", socket.display());
    failure(ExitCode::NotReachable, why, "start the plugin; hsm-kms doctor shows more")
}

/// The machine refused something.
pub(super) fn system(error: &impl std::fmt::Display) -> CliError {
    failure(ExitCode::NotReachable, error.to_string(), "check the temporary folder (TMPDIR), its room and its rights")
}
