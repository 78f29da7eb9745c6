//! Who may import whom: a request goes down one floor at a time and nothing calls up (docs/design.md has the picture).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// May be used by every module.
const COMMON: [&str; 12] = [
    "attributes",
    "class",
    "cluster",
    "exit",
    "finding",
    "key_id",
    "memory",
    "pin",
    "random",
    "seal",
    "secret",
    "strict",
];

/// A module, and what else it may use. `cli` may use everything, and nobody uses `cli`.
const ALLOWED: [(&str, &[&str]); 22] = [
    ("audit", &["observe"]),
    ("ceremony", &["config", "envelope", "pkcs11", "profile", "record", "recovery", "shares"]),
    ("config", &["audit", "kms", "observe", "profile", "sandbox", "token"]),
    ("doctor", &["audit", "config", "keyring", "kms", "kubernetes", "probe", "profile", "record", "worker"]),
    ("envelope", &[]),
    ("etcd", &["envelope", "recovery"]),
    ("init", &["config", "kms", "profile"]),
    ("keyring", &["envelope", "record", "recovery", "token", "wire"]),
    ("kms", &["audit", "envelope", "keyring", "observe", "recovery", "token"]),
    ("kubernetes", &["record"]),
    ("observe", &[]),
    ("pkcs11", &["profile"]),
    ("probe", &["ceremony", "pkcs11", "profile", "record"]),
    ("profile", &["sandbox"]),
    ("record", &["envelope", "recovery", "shares"]),
    ("recovery", &["envelope"]),
    ("sandbox", &[]),
    ("token", &["audit", "observe", "wire", "worker"]),
    ("wire", &[]),
    ("worker", &["pkcs11", "profile", "sandbox", "wire"]),
    ("shares", &[]),
    ("strict", &[]),
];

#[test]
fn nothing_skips_a_floor_and_nothing_calls_up() {
    let mut wrong = Vec::new();
    for (module, used) in imports(Path::new("src")) {
        if module == "cli" || module == "lib" || module == "main" {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, allowed)| allowed);
        for name in used {
            if name != module && !COMMON.contains(&name.as_str()) && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{module} uses {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn cryptoki_and_unsafe_stay_in_their_rooms() {
    for (path, text) in sources(Path::new("src")) {
        let in_pkcs11 = path.starts_with("src/pkcs11/") || path == "src/pkcs11.rs";
        if !in_pkcs11 {
            assert!(!text.contains("use cryptoki::") && !text.contains("cryptoki::session"), "{path} uses cryptoki");
        }
        let has_unsafe = text.lines().any(|line| line.contains("unsafe {") || line.contains("allow(unsafe_code)"));
        assert!(!has_unsafe || path.starts_with("src/pkcs11/raw"), "{path} has unsafe code");
    }
}

/// Top-level module -> top-level modules that it names by `crate::`.
fn imports(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources(root) {
        let module = path.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        let used = found.entry(module).or_default();
        for (position, _) in text.match_indices("crate::") {
            let name: String = text[position + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                used.insert(name);
            }
        }
    }
    found
}

/// Paths and texts of all Rust files below.
pub fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}
