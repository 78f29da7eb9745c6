//! Copies of a token under another serial number, as a vendor's cloning makes them. SoftHSM2 and Kryoptic keep the serial number
//! in a file of the token, so that a plain copy of the files would pass for the token itself.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::TestToken;

/// A place for a copy.
pub struct Copy {
    pub serial: String,
    section: Value,
    of: String,
    from: PathBuf,
    to: PathBuf,
}

impl Copy {
    /// The configuration of a token that is not there yet.
    pub fn planned(token: &TestToken, of: &str, number: u32) -> Self {
        let place = token.directory().join(format!("copy-{number}"));
        fs::create_dir(&place).unwrap();
        let configuration = place.join("configuration");
        let (variable, content, file) = if token.profile == "softhsm2" {
            let folder = place.join("tokens");
            let content = format!("directories.tokendir = {}\nobjectstore.backend = file\n", folder.display());
            fs::create_dir(&folder).unwrap();
            ("SOFTHSM2_CONF", content, "softhsm2/tokens")
        } else {
            let database = place.join("kryoptic.sql");
            let content = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", database.display());
            ("KRYOPTIC_CONF", content, "kryoptic.sql")
        };
        fs::write(&configuration, content).unwrap();
        let mut section = token.section();
        section["environment"] = json!({variable: configuration});
        let from = token.directory().join(file);
        let to = place.join(from.file_name().unwrap());
        Self { serial: another(of, number), section, of: of.to_owned(), from, to }
    }

    /// As it stands in the plan.
    pub fn plan(&self) -> Value {
        let mut section = self.section.clone();
        section.as_object_mut().unwrap().remove("pin");
        json!({"serial": self.serial, "token": section})
    }

    /// As it stands in a configuration.
    pub fn section(&self) -> Value {
        self.section.clone()
    }

    /// Copies what is on the token now.
    pub fn make(&self) {
        copy(&self.from, &self.to, self.of.as_bytes(), self.serial.as_bytes());
    }
}

/// A serial number like this one.
fn another(serial: &str, number: u32) -> String {
    let (start, last) = serial.split_at(serial.len() - 1);
    let last = u32::from_str_radix(last, 16).unwrap();
    format!("{start}{:x}", (last + number) % 16)
}

fn copy(from: &Path, to: &Path, serial: &[u8], other: &[u8]) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()), serial, other);
        }
        return;
    }
    let mut content = fs::read(from).unwrap();
    if let Some(place) = content.windows(serial.len()).position(|part| part == serial) {
        content[place..place + serial.len()].copy_from_slice(other);
    }
    fs::write(to, content).unwrap();
}
