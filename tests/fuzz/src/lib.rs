//! What several targets need.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use bech32::primitives::iter::{ByteIterExt, Fe32IterExt};
use bech32::{Bech32m, Hrp};

/// A YAML file that was accepted is accepted no longer with an unknown key, with one twice, or with a second document.
pub fn refuses_more_yaml(bytes: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    for more in ["\nunknown_key: 1\n", "\nversion: 1\n", "\n---\nversion: 1\n"] {
        assert!(!accepts(&[bytes, more.as_bytes()].concat()), "accepted with {more:?} at its end");
    }
}

/// A JSON object that was accepted is accepted no longer with an unknown key, or with one twice.
pub fn refuses_more_json(bytes: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'}') else { return };
    for more in [&br#","unknown_key":1}"#[..], br#","version":1}"#, b"}{}"] {
        assert!(
            !accepts(&[&bytes[..end], more].concat()),
            "accepted with {} at its end",
            String::from_utf8_lossy(more)
        );
    }
}

/// The text with a checksum that fits: no fuzzer guesses one.
pub fn bech32m(human_readable: &str, bytes: &[u8]) -> String {
    let hrp = Hrp::parse(human_readable).unwrap();
    bytes.iter().copied().bytes_to_fes().with_checksum::<Bech32m>(&hrp).chars().collect()
}

/// A file of this process in memory, with these bytes.
pub fn file(bytes: &[u8]) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(|| PathBuf::from(format!("/dev/shm/hsm-kms-fuzz-{}", std::process::id())));
    File::create(path).and_then(|mut file| file.write_all(bytes)).unwrap();
    path.clone()
}
