//! The transcript of a ceremony: what verifies is in its only form. No fuzzer guesses hashes, so every second input has them mended.
#![no_main]

use hsm_kms::ceremony::transcript::verify;
use hsm_kms::record::Sha256Digest;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What the seeds say of the plan.
const PLAN: Sha256Digest = Sha256Digest([1; 32]);

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&mended(bytes));
});

fn check(bytes: &[u8]) {
    let events = match verify(bytes, &PLAN) {
        Ok(events) => events,
        Err(fault) => return drop(fault.to_string()),
    };
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), events.len());
    for (seq, (line, event)) in (0..).zip(lines.iter().zip(&events)) {
        assert_eq!(event.seq, seq);
        let value: Value = serde_json::from_slice(line).unwrap();
        assert_eq!([&serde_json_canonicalizer::to_vec(&value).unwrap()[..], b"\n"].concat(), *line);
    }
    assert!(verify(bytes, &Sha256Digest([2; 32])).is_err(), "another plan");
    assert!(verify(&bytes[..bytes.len() - lines[lines.len() - 1].len()], &PLAN).is_err(), "without its end");
    assert!(verify(&[bytes, lines[lines.len() - 1]].concat(), &PLAN).is_err(), "with its end twice");
    assert!(verify(&[bytes, b"\n"].concat(), &PLAN).is_err(), "with an empty line");
}

/// The same lines as canonical JSON, with the hashes that docs/formats.md asks for.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let (mut mended, mut hash) = (Vec::new(), None::<[u8; 32]>);
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let Ok(Value::Object(mut event)) = serde_json::from_slice(line) else { continue };
        event.remove("hash");
        let tool = event.get("data").and_then(|data| data.get("tool_sha256")?.as_str()?.parse().ok());
        let before = hash.unwrap_or_else(|| {
            let Sha256Digest(tool) = tool.unwrap_or(PLAN);
            Sha256::digest([&b"hsm-kms/ceremony/v1"[..], &PLAN.0, &tool].concat()).into()
        });
        let Ok(content) = serde_json_canonicalizer::to_vec(&event) else { continue };
        let next: [u8; 32] = Sha256::digest([&before[..], &content].concat()).into();
        hash = Some(next);
        event.insert("hash".to_owned(), Sha256Digest(next).to_string().into());
        mended.extend(serde_json_canonicalizer::to_vec(&event).unwrap_or_default());
        mended.push(b'\n');
    }
    mended
}
