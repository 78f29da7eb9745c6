//! `hsm-kms doctor`: all well, everything broken, and each fault alone in its own row. Nobody logs in.

mod broken;
mod faults;
mod keyrings;
mod people;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::fault_module::FaultModule;
use crate::harness::{Config, Plugin, TestToken, program, run_ceremony, text};

/// A token with the fault module in front, its KEK's record, and a configuration of both.
struct Site {
    token: TestToken,
    fault: FaultModule,
    record: PathBuf,
    config: Config,
}

impl Site {
    fn new() -> Self {
        let token = TestToken::new();
        let record = run_ceremony(&token, token.directory());
        let mut config = Config::new(&token, &record, "plugin");
        let fault = FaultModule::new(&token, "fault");
        fault.stand_in_front(&mut config.value["token"]);
        Self { token, fault, record, config }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.token.directory().join(name)
    }

    /// An `EncryptionConfiguration` for this plugin.
    fn encryption(&self) -> Value {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{
                "resources": ["secrets"],
                "providers": [{"kms": {
                    "apiVersion": "v2",
                    "name": "hsm-kms",
                    "endpoint": format!("unix://{}", self.config.socket().display()),
                }}],
            }],
        })
    }

    /// The rows for this configuration.
    fn rows(&self) -> Rows {
        Rows::of(&["--config", &text(self.config.write())])
    }
}

/// What `doctor --json` said.
struct Rows {
    code: i32,
    json: Value,
}

impl Rows {
    fn of(arguments: &[&str]) -> Self {
        let output = doctor(&[arguments, &["--json"]].concat());
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let code = output.status.code().unwrap();
        assert_eq!(json["holds"], code == 0, "{json:#}");
        Self { code, json }
    }

    fn all(&self) -> &Vec<Value> {
        self.json["rows"].as_array().unwrap()
    }

    /// The first row of this check.
    fn row(&self, check: &str) -> &Value {
        self.all().iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("no row {check}"))
    }

    /// The checks that came to this, each once.
    fn with(&self, result: &str) -> Vec<&str> {
        let rows = self.all().iter().filter(|row| row["result"] == result);
        let mut names: Vec<_> = rows.map(|row| row["check"].as_str().unwrap()).collect();
        names.dedup();
        names
    }
}

fn doctor(arguments: &[&str]) -> Output {
    program().arg("doctor").args(arguments).output().unwrap()
}

fn write(path: &Path, value: &Value) -> String {
    std::fs::write(path, format!("{value:#}\n")).unwrap();
    text(path)
}

/// Everything that can be well on a token of software is; and the module was asked neither for a session nor for a login.
#[tokio::test]
async fn a_running_plugin_is_well_and_nobody_logs_in() {
    let site = Site::new();
    let mut plugin = Plugin::start(&site.config).healthy().await;
    let encryption = write(&site.file("encryption.yaml"), &site.encryption());
    let counts = |function: &str| site.fault.calls(function);
    let before = ["C_Initialize", "C_Login"].map(counts);
    let config = text(site.config.write());
    let arguments = ["--config", &config, "--encryption-configuration", &encryption, "--kubernetes-version", "1.31"];
    let rows = Rows::of(&arguments);
    assert_eq!(rows.code, 0, "{:#}", rows.json);
    // A trial's KEK without a recovery key, behind the fault module; and Kryoptic's profile has not seen each of its fields.
    let warnings = rows.with("warning");
    let expected = ["module-known", "evidence", "record", "recovery"];
    assert!(warnings.iter().all(|check| expected.contains(check) || *check == "memory"), "{:#}", rows.json);
    assert_eq!(rows.with("not-checked"), ["audit-log", "drill", "keyring", "encryption-same"]);
    assert!(rows.row("status")["found"].as_str().unwrap().starts_with("ok in "));

    // The plugin proves its KEK all the time; the doctor's own process opened no session.
    assert_eq!(counts("C_Login"), before[1]);
    assert_eq!(counts("C_Initialize"), before[0] + 1);
    let calls = std::fs::read_to_string(site.file("fault.calls")).unwrap();
    let calls: Vec<Vec<&str>> = calls.lines().map(|line| line.split(' ').collect()).collect();
    let process = calls.iter().rev().find(|call| call[0] == "C_Initialize").unwrap()[1];
    let mut own: Vec<_> = calls.iter().filter(|call| call[1] == process).map(|call| call[0]).collect();
    own.sort_unstable();
    own.dedup();
    let harmless = |function: &&str| {
        ["C_Initialize", "C_Finalize", "C_GetMechanismInfo"].contains(function)
            || function.starts_with("C_GetInterface")
            || ["C_GetInfo", "C_GetFunctionList", "C_GetSlotList", "C_GetTokenInfo"].contains(function)
    };
    assert!(own.iter().all(harmless), "{own:?}");

    // The same for people.
    let output = doctor(&arguments);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with("Nothing failed.\n"), "{said}");
    assert!(said.lines().all(|line| line.len() <= 80 && !line.contains('\x1b')), "{said}");
    plugin.stop().await;
}
