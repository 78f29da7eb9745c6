//! The fault module (tests/parts/README.md): a PKCS#11 module in front of the token's own, which fails as a test says.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::TestToken;
use crate::parts;

/// The module as one plugin loads it. Faults are switched on and off while the plugin runs; without any it only forwards.
pub struct FaultModule {
    forward: PathBuf,
    control: PathBuf,
    counts: PathBuf,
    changes: AtomicUsize,
}

impl FaultModule {
    /// In front of this token's module. `name` tells several apart that stand in front of one token.
    pub fn new(token: &TestToken, name: &str) -> Self {
        Self::before(&token.module, token.directory(), name)
    }

    /// In front of any module, with its files in `directory`.
    pub fn before(module: &Path, directory: &Path, name: &str) -> Self {
        let file = |suffix: &str| directory.join(format!("{name}.{suffix}"));
        Self {
            forward: module.to_owned(),
            control: file("faults.json"),
            counts: file("calls"),
            changes: AtomicUsize::new(0),
        }
    }

    /// Changes the section `token` of a plan or configuration so that it loads this module.
    pub fn stand_in_front(&self, section: &mut Value) {
        section["module"] = json!(parts::installed(parts::folder().join("libfault_module.so")));
        let environment = &mut section["environment"];
        environment["HSM_KMS_FAULT_FORWARD"] = json!(self.forward);
        environment["HSM_KMS_FAULT_CONTROL"] = json!(self.control);
        environment["HSM_KMS_FAULT_COUNTS"] = json!(self.counts);
        // The module in front is the profile's, for all that the sandbox knows.
        let mut allow = |right: &str, path: &Path| {
            let paths = &mut section["sandbox"][right];
            let known = paths.as_array().cloned().unwrap_or_default();
            *paths = json!([known, vec![json!(path.parent().unwrap())]].concat());
        };
        allow("read", &self.forward);
        allow("write", &self.control);
    }

    /// From now on the module does what this control file says.
    pub fn set(&self, control: &Value) {
        // The module knows a new file by its inode, time and size. Blanks at the end make sure of it.
        let blanks = self.changes.fetch_add(1, Ordering::Relaxed) % 100;
        let new = self.control.with_extension("new");
        fs::write(&new, format!("{control}{}", " ".repeat(blanks))).unwrap();
        fs::rename(&new, &self.control).unwrap();
    }

    /// As [`FaultModule::set`] with one rule: all calls of this function meet this action.
    pub fn always(&self, function: &str, action: &Value) {
        self.set(&json!({"rules": [{"function": function, "action": action}]}));
    }

    /// The same, for the next call only.
    pub fn once(&self, function: &str, action: &Value) {
        self.set(&json!({"rules": [{"function": function, "times": 1, "action": action}]}));
    }

    /// From now on the module only forwards.
    pub fn clear(&self) {
        match fs::remove_file(&self.control) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", self.control.display()),
            _ => {}
        }
    }

    /// Names of all functions that were called so far.
    pub fn functions(&self) -> BTreeSet<String> {
        let lines = fs::read_to_string(&self.counts).unwrap_or_default();
        lines.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    }

    /// How often the function was called so far, or any for `*`, by all processes together.
    pub fn calls(&self, function: &str) -> usize {
        let lines = fs::read_to_string(&self.counts).unwrap_or_default();
        lines.lines().filter(|line| function == "*" || line.split(' ').next() == Some(function)).count()
    }
}
