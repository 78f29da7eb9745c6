use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::record::CeremonyId;

const PLAN: Sha256Digest = Sha256Digest([1; 32]);

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

fn opening() -> Opening {
    Opening {
        ceremony_id: CeremonyId::new([3; 16]),
        kind: CeremonyKind::Production,
        plan_sha256: PLAN,
        tool: "hsm-kms 0.1.0".to_owned(),
        tool_sha256: Sha256Digest([2; 32]),
    }
}

fn begun(directory: &Path) -> Transcript {
    let mut transcript = Transcript::create(directory, &opening()).unwrap();
    for (step, kind, data) in [
        ("people", EventKind::Answer, json!({"name": "Ada Lovelace", "sign": "\u{e9}\u{1f511}\n\"\\\u{7}"})),
        ("generate", EventKind::Intent, json!({"id": "a0a1"})),
        ("generate", EventKind::Result, json!({"attributes": {"CKA_SENSITIVE": true, "CKA_VALUE_LEN": 32}})),
        ("clock", EventKind::Check, json!({"seconds_off": -2, "holds": true, "list": [1, null, {}]})),
    ] {
        assert_eq!(transcript.append(step, kind, object(data)).unwrap(), transcript.head());
    }
    transcript
}

fn close(transcript: &mut Transcript) {
    transcript.append("closing", EventKind::Closed, object(json!({"record_sha256": PLAN}))).unwrap();
}

fn content(directory: &Path) -> Vec<u8> {
    fs::read(directory.join(TRANSCRIPT_FILE)).unwrap()
}

#[test]
fn what_is_written_holds_and_hashes_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = begun(folder.path());
    assert_eq!(verify(&content(folder.path()), &PLAN).unwrap_err(), fault(5, Problem::NotClosed));
    close(&mut transcript);
    let bytes = content(folder.path());
    let events = verify(&bytes, &PLAN).unwrap();
    assert_eq!(events.len(), 6);
    assert_eq!(events[5].hash, transcript.head());
    let mode = fs::metadata(folder.path().join(TRANSCRIPT_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);

    let mut hash: [u8; 32] = Sha256::digest([&b"hsm-kms/ceremony/v1"[..], &[1; 32], &[2; 32]].concat()).into();
    for line in std::str::from_utf8(&bytes).unwrap().lines() {
        let mut event: Value = serde_json::from_str(line).unwrap();
        let said = event.as_object_mut().unwrap().remove("hash").unwrap();
        let content = serde_json_canonicalizer::to_vec(&event).unwrap();
        hash = Sha256::digest([&hash[..], &content].concat()).into();
        assert_eq!(said, Sha256Digest(hash).to_string());
    }
    assert_eq!(verify(&bytes, &Sha256Digest([3; 32])).unwrap_err(), fault(0, Problem::Hash));
    let twice = [bytes.clone(), bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap().to_vec()].concat();
    assert_eq!(verify(&twice, &PLAN).unwrap_err(), fault(6, Problem::AfterClosed));
}

#[test]
fn an_event_that_may_not_come_next_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = begun(folder.path());
    let before = content(folder.path());
    let mut deep = json!(1);
    for _ in 0..MAX_DEPTH {
        deep = json!([deep]);
    }
    for (step, kind, data, problem) in [
        ("opened", EventKind::Opened, json!({"tool": "hsm-kms 0.1.0"}), Problem::Opened),
        ("generate", EventKind::Result, json!({}), Problem::NoIntent),
        ("Key", EventKind::Check, json!({}), Problem::Step),
        ("key", EventKind::Check, json!({"a": 1.5}), Problem::Number),
        ("key", EventKind::Check, json!({"a": 1_u64 << 53}), Problem::Number),
        ("key", EventKind::Check, json!({"a": deep}), Problem::TooDeep),
        ("key", EventKind::Check, json!({"a": "a".repeat(MAX_LINE_BYTES)}), Problem::LineTooLong),
        ("closing", EventKind::Closed, json!({}), Problem::Data("record_sha256")),
    ] {
        match transcript.append(step, kind, object(data)).unwrap_err() {
            TranscriptError::Refused { problem: found, .. } => assert_eq!(found, problem),
            other => panic!("{other}"),
        }
    }
    assert_eq!(content(folder.path()), before);
    transcript.append("import", EventKind::Intent, Map::new()).unwrap();
    for (step, kind) in [("copies", EventKind::Intent), ("copies", EventKind::Result), ("closing", EventKind::Closed)] {
        transcript.append(step, kind, object(json!({"record_sha256": PLAN}))).unwrap_err();
    }
    transcript.append("import", EventKind::Result, Map::new()).unwrap();
    close(&mut transcript);
    transcript.append("copies", EventKind::Check, Map::new()).unwrap_err();
}

#[test]
fn a_line_torn_at_any_byte_is_cut_off_and_the_transcript_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    drop(begun(folder.path()));
    let path = folder.path().join(TRANSCRIPT_FILE);
    let whole = content(folder.path());
    let start = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for end in start..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(Transcript::closed_events(folder.path(), &PLAN).unwrap(), None);
        let (mut transcript, events, torn) = Transcript::resume(folder.path(), &PLAN).unwrap();
        assert_eq!((events.len(), torn), (4, end - start));
        assert_eq!(content(folder.path()), &whole[..start]);
        let torn = object(json!({"torn_bytes": torn}));
        transcript.append("clock", EventKind::Check, Map::new()).unwrap_err();
        transcript.append("clock", EventKind::Resumed, torn).unwrap();
        close(&mut transcript);
        verify(&content(folder.path()), &PLAN).unwrap();
    }
    // A line whose end came to the disk, and its middle did not.
    let mut holed = whole.clone();
    holed[start + 1..whole.len() - 1].fill(0);
    fs::write(&path, holed).unwrap();
    assert_eq!(Transcript::resume(folder.path(), &PLAN).unwrap().2, whole.len() - start);
    fs::write(&path, &whole).unwrap();
    assert_eq!(Transcript::resume(folder.path(), &PLAN).unwrap().2, 0);
}

#[test]
fn an_interrupted_step_may_be_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut transcript = begun(folder.path());
    transcript.append("copies", EventKind::Intent, Map::new()).unwrap();
    drop(transcript);
    let (mut transcript, ..) = Transcript::resume(folder.path(), &PLAN).unwrap();
    transcript.append("copies", EventKind::Resumed, object(json!({"torn_bytes": 0}))).unwrap();
    transcript.append("copies", EventKind::Intent, Map::new()).unwrap();
    transcript.append("copies", EventKind::Result, Map::new()).unwrap();
    close(&mut transcript);
    verify(&content(folder.path()), &PLAN).unwrap();
}

#[test]
fn only_one_process_writes_and_only_what_is_whole_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(TRANSCRIPT_FILE);
    let resume = || Transcript::resume(folder.path(), &PLAN);
    let mut transcript = begun(folder.path());
    assert!(matches!(resume(), Err(TranscriptError::InUse { .. })));
    close(&mut transcript);
    drop(transcript);
    let events = Transcript::closed_events(folder.path(), &PLAN).unwrap();
    assert_eq!(events.unwrap(), verify(&content(folder.path()), &PLAN).unwrap());
    assert!(matches!(resume(), Err(TranscriptError::Closed { .. })));
    let created = Transcript::create(folder.path(), &opening());
    assert!(matches!(created, Err(TranscriptError::Exists { .. })));

    let mut changed = content(folder.path());
    changed[300] ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(matches!(resume(), Err(TranscriptError::Fault { .. })));
    assert_eq!(content(folder.path()), changed);
    fs::write(&path, "{").unwrap();
    assert!(matches!(resume(), Err(TranscriptError::Empty { .. })));
    fs::write(&path, vec![b'a'; MAX_TRANSCRIPT_BYTES + 2]).unwrap();
    assert!(matches!(resume(), Err(TranscriptError::Fault { .. })));
    assert_eq!(content(folder.path()).len(), MAX_TRANSCRIPT_BYTES + 2);
    fs::remove_file(&path).unwrap();
    let error = resume().unwrap_err();
    assert!(matches!(error, TranscriptError::Empty { .. }) && !error.hint().is_empty());
}

#[test]
fn after_a_failed_write_nothing_is_appended() {
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let mut transcript = Transcript::on(full, &PLAN);
    let mut append = || {
        let data = json!({
            "ceremony_id": "0".repeat(32), "kind": "rehearsal", "plan_sha256": PLAN, "tool": "t", "tool_sha256": PLAN,
        });
        transcript.append("opened", EventKind::Opened, object(data)).unwrap_err()
    };
    assert!(matches!(append(), TranscriptError::System { .. }));
    assert!(matches!(append(), TranscriptError::Failed { .. }));
}

#[test]
fn other_bytes_with_the_same_content_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    close(&mut begun(folder.path()));
    let text = String::from_utf8(content(folder.path())).unwrap();
    for (old, new, problem) in [
        ("{\"data\"", "{ \"data\"", Problem::NotCanonical),
        ("\"seq\":0", "\"seq\":0,\"seq\":0", Problem::NotCanonical),
        ("\"seq\":0", "\"seq\":-0", Problem::Number),
        ("\"seq\":0", "\"seq\":0.0", Problem::Number),
        ("production", "\\u0070roduction", Problem::NotCanonical),
        ("}\n", "}\r\n", Problem::NotCanonical),
    ] {
        let found = verify(text.replacen(old, new, 1).as_bytes(), &PLAN).unwrap_err();
        assert_eq!(found, fault(0, problem), "{new}");
    }
    for new in ["{\"intent\":null}", "\"begun\"", "7"] {
        let found = verify(text.replacen("\"opened\"", new, 1).as_bytes(), &PLAN).unwrap_err();
        assert!(matches!(found.problem, Problem::NotAnEvent(_)), "{found}");
    }
    assert_eq!(verify(b"", &PLAN).unwrap_err(), fault(0, Problem::NotClosed));
    assert_eq!(verify(b"\n", &PLAN).unwrap_err().line, 1);
}

#[test]
fn the_documented_transcript_holds() {
    let document = include_str!("../../../docs/formats.md");
    let (_, rest) = document.split_once("```transcript\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let plan = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752".parse().unwrap();
    let events = verify(text.as_bytes(), &plan).unwrap();
    assert!(document.contains(&format!("\"transcript_head\": \"{}\"", events[1].hash)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_byte_of_a_transcript_can_be_changed(place: prop::sample::Index, other: u8) {
        let folder = tempfile::tempdir().unwrap();
        let mut transcript = begun(folder.path());
        close(&mut transcript);
        let whole = content(folder.path());
        prop_assert_eq!(verify(&whole, &PLAN).unwrap().len(), 6);
        let place = place.index(whole.len());
        let mut changed = whole.clone();
        changed[place] = other;
        prop_assert!(changed == whole || verify(&changed, &PLAN).is_err());
        prop_assert!(verify(&whole[..place], &PLAN).is_err());
        prop_assert!(verify(&[&whole[..], &[other]].concat(), &PLAN).is_err());
    }
}
