//! A simulated `YubiHSM` 2, and a process that has Yubico's driver loaded on it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{wait_for, write_secret};
use crate::parts::{Running, YUBIHSM_CHECK, YUBIHSM_SIMULATOR, folder, installed};

/// A simulated device behind its connector, with its state in a folder that goes with it.
pub struct Device {
    directory: TempDir,
    port: u16,
    running: Option<Running>,
}

impl Device {
    /// Starts a new device.
    pub fn new() -> Self {
        let mut device = Self { directory: tempfile::tempdir().unwrap(), port: 0, running: None };
        device.start();
        let config = format!("connector={}\n", device.connector());
        fs::write(device.directory().join("yubihsm_pkcs11.conf"), config).unwrap();
        device
    }

    /// The folder with all that belongs to it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The connector's URL.
    pub fn connector(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it on the port that it had.
    pub fn start(&mut self) {
        let path = |name: &str| self.directory().join(name);
        let mut running = YUBIHSM_SIMULATOR.spawn(|command| {
            command.args(["--port", &self.port.to_string()]);
            command.arg("--state").arg(path("state.json")).arg("--control").arg(path("faults.json"))
        });
        let port = running.wait_for("listening")["port"].as_u64().unwrap();
        self.port = u16::try_from(port).unwrap();
        self.running = Some(running);
    }

    /// Kills it, as a power cut does.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// From the next command on, it has these faults (tests/parts/README.md) and no others.
    pub fn set_faults(&self, faults: &Value) {
        let new = self.directory().join("faults.new");
        fs::write(&new, faults.to_string()).unwrap();
        fs::rename(new, self.directory().join("faults.json")).unwrap();
        let refuse = faults["refuse"] == json!(true);
        wait_for("the connector to take or refuse connections", || {
            (TcpStream::connect(("127.0.0.1", self.port)).is_err() == refuse).then_some(())
        });
    }

    /// The section `token` of plans and configurations, for Yubico's driver on this device.
    pub fn section(&self) -> Value {
        let libraries = folder().join("yubihsm-driver/lib");
        let pin = self.directory().join("pin");
        if !pin.exists() {
            write_secret(&pin, LOGIN.trim_start_matches("login "));
        }
        json!({
            "profile": "yubihsm2",
            "module": installed(libraries.join("pkcs11/yubihsm_pkcs11.so")),
            "label": "YubiHSM",
            "pin": {"file": pin},
            "environment": {
                "YUBIHSM_PKCS11_CONF": self.directory().join("yubihsm_pkcs11.conf"),
                "LD_LIBRARY_PATH": libraries,
            },
        })
    }

    /// Loads the driver on it, in a process of its own.
    pub fn load_driver(&self) -> Driver {
        Driver::spawn(self.directory())
    }

    /// Loads the driver on it and logs in.
    pub fn log_in(&self) -> Driver {
        let mut driver = self.load_driver();
        driver.does(LOGIN);
        driver
    }
}

/// Where the driver's own libraries are: its `LD_LIBRARY_PATH`.
pub fn libraries() -> PathBuf {
    folder().join("yubihsm-driver/lib")
}

/// The driver.
pub fn module() -> PathBuf {
    installed(libraries().join("pkcs11/yubihsm_pkcs11.so"))
}

/// The PIN of a new device: the number of its authentication key, and its password.
pub const LOGIN: &str = "login 0001password";

/// A process with the driver.
pub struct Driver(Running);

impl Driver {
    fn spawn(directory: &Path) -> Self {
        let mut running = YUBIHSM_CHECK.spawn(|command| {
            // The driver looks for yubihsm_pkcs11.conf here first.
            command.current_dir(directory).env_remove("YUBIHSM_PKCS11_CONF");
            command.env("LD_LIBRARY_PATH", libraries()).arg("--module").arg(module())
        });
        let loaded = running.next().expect("an answer");
        assert_eq!((&loaded["step"], &loaded["ok"]), (&json!("load"), &json!(true)), "{loaded}");
        Self(running)
    }

    /// Has it do something, whose outcome is still open.
    pub fn begin(&mut self, command: &str) {
        self.0.say(command);
    }

    /// Waits for the outcome.
    pub fn outcome(&mut self) -> Value {
        self.0.next().expect("the driver's process answers")
    }

    /// Whether there is no outcome for so long.
    pub fn is_silent_for(&mut self, duration: Duration) -> bool {
        self.0.is_silent_for(duration)
    }

    /// It must do this.
    pub fn does(&mut self, command: &str) -> Value {
        self.begin(command);
        let outcome = self.outcome();
        assert_eq!(outcome["ok"], json!(true), "{command}: {outcome}");
        outcome
    }

    /// It must refuse this. Returns the code and the function that it comes from.
    pub fn refuses(&mut self, command: &str) -> String {
        self.begin(command);
        let outcome = self.outcome();
        assert_eq!(outcome["ok"], json!(false), "{command}: {outcome}");
        outcome["error"].as_str().unwrap().to_owned()
    }

    /// Seals these bytes (hexadecimal, as all of them here).
    pub fn seal(&mut self, plaintext: &str) -> String {
        self.does(&format!("seal {plaintext}"))["value"].as_str().unwrap().to_owned()
    }

    /// Opens what was sealed.
    pub fn open(&mut self, sealed: &str) -> String {
        self.does(&format!("open {sealed}"))["value"].as_str().unwrap().to_owned()
    }

    /// Unloads the driver: it closes its session in the device.
    pub fn end(mut self) {
        self.0.end();
    }

    /// Writes the evidence that it did its work.
    pub fn record(&self) {
        self.0.record();
    }
}
