//! The token under measurement: its section of a configuration, the KEK made in it, and the fault module in front of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hsm_kms::profile::Profile;
use serde_json::{Value, json};

use crate::Args;

/// A token with a KEK.
pub struct Site {
    /// The section `token`.
    section: Value,
    directory: PathBuf,
    sandbox: String,
}

impl Site {
    /// Reads the section and holds a ceremony, unless a ceremony was held in this directory before.
    pub fn new(args: &Args) -> Self {
        let text = fs::read_to_string(&args.token).expect("the file with the section token");
        let mut file: Value = serde_yaml::from_str(&text).expect("YAML");
        let site =
            Self { section: file["token"].take(), directory: args.directory.clone(), sandbox: args.sandbox.clone() };
        if !site.record().exists() {
            let rules: Vec<_> = args
                .hide
                .iter()
                .map(|function| json!({"function": function, "action": {"return": "CKR_FUNCTION_NOT_SUPPORTED"}}))
                .collect();
            let hidden = site.behind_fault_module(args, &json!({ "rules": rules }), !rules.is_empty());
            hidden.hold_ceremony(args);
        }
        let delay = json!({"rules": [{"function": "*", "action": {"delay_ms": args.delay_ms}}]});
        site.behind_fault_module(args, &delay, args.delay_ms > 0)
    }

    /// The same token, with the fault module doing this in front of it, if it is wanted.
    fn behind_fault_module(&self, args: &Args, control: &Value, wanted: bool) -> Self {
        let mut section = self.section.clone();
        if wanted {
            let fault_module = args.fault_module.as_ref().expect("--fault-module");
            let path = self.directory.join("faults.json");
            fs::write(&path, control.to_string()).expect("the fault module's file");
            if !section["environment"].is_object() {
                section["environment"] = json!({});
            }
            let forward = section["module"].take();
            section["sandbox"]["read"] = json!([Path::new(forward.as_str().unwrap_or_default()).parent()]);
            section["sandbox"]["write"] = json!([self.directory]);
            section["environment"]["HSM_KMS_FAULT_FORWARD"] = forward;
            section["environment"]["HSM_KMS_FAULT_CONTROL"] = json!(path);
            section["module"] = json!(fault_module);
        }
        Self { section, directory: self.directory.clone(), sandbox: self.sandbox.clone() }
    }

    fn hold_ceremony(&self, args: &Args) {
        let plan = json!({
            "version": 1, "kind": "trial", "cluster": CLUSTER, "token": self.section, "output": self.directory,
            "kek": {"label": "kek", "permit": args.permit},
        });
        let path = self.directory.join("plan.yaml");
        fs::write(&path, plan.to_string()).expect("plan");
        let output =
            Command::new(&args.plugin).args(["ceremony", "run", "--plan"]).arg(&path).output().expect("plugin");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a configuration with this many sessions.
    pub fn configuration(&self, sessions: usize) -> PathBuf {
        let configuration = json!({
            "version": 1, "cluster": CLUSTER, "socket": {"path": self.socket()}, "token": self.section,
            "kek": {"record": self.record(), "allow_trial": true}, "limits": {"sessions": sessions}, "sandbox": self.sandbox,
        });
        let path = self.directory.join(format!("{sessions}.yaml"));
        fs::write(&path, configuration.to_string()).expect("configuration");
        path
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("hsm@kms.sock")
    }

    pub fn record(&self) -> PathBuf {
        self.directory.join("kek-record.json")
    }

    pub fn module(&self) -> &Path {
        Path::new(self.text("module"))
    }

    pub fn pin(&self) -> &Path {
        Path::new(self.section["pin"]["file"].as_str().expect("a PIN file"))
    }

    pub fn reserved(&self) -> Option<&str> {
        self.section["init_reserved"].as_str()
    }

    pub fn profile(&self) -> Profile {
        let name = self.text("profile");
        let profile = if name.starts_with('/') { Profile::load(Path::new(name)) } else { Profile::by_name(name) };
        profile.expect("profile")
    }

    /// What the module needs to find its token.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        let environment = self.section["environment"].as_object().into_iter().flatten();
        environment.map(|(name, value)| (name.as_str(), value.as_str().expect("a text")))
    }

    fn text(&self, key: &str) -> &str {
        self.section[key].as_str().expect("a text")
    }
}

const CLUSTER: &str = "bench";
