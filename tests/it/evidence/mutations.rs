//! Ten thousand edits of a transcript, each found by both programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hsm_kms::ceremony::transcript::verify;
use hsm_kms::record::Sha256Digest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::story::Evidence;

#[test]
fn every_edit_of_a_transcript_is_found_by_both_verifiers() {
    let evidence = Evidence::unsigned(|_| {});
    let plan = fs::read(evidence.file("plan.lock.json")).unwrap();
    let whole = fs::read(evidence.file("transcript.jsonl")).unwrap();
    let mutants = mutants(&whole);
    assert!(mutants.len() >= 10_000, "{}", mutants.len());

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plan.lock.json"), &plan).unwrap();
    for (number, (_, mutant)) in mutants.iter().enumerate() {
        fs::write(folder.path().join(format!("{number:06}.jsonl")), mutant).unwrap();
    }
    fs::write(folder.path().join("whole.jsonl"), &whole).unwrap();
    let other = std::thread::spawn({
        let folder = folder.path().to_owned();
        move || Command::new(script()).arg("--transcripts").arg(folder).output().unwrap()
    });

    let plan_sha256 = Sha256Digest::of(&plan);
    verify(&whole, &plan_sha256).unwrap();
    let missed: Vec<_> =
        mutants.iter().filter(|(_, mutant)| verify(mutant, &plan_sha256).is_ok()).map(|(what, _)| what).collect();
    assert!(missed.is_empty(), "{missed:?}");

    let output = other.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut verdicts = text.lines();
    for (number, (what, _)) in mutants.iter().enumerate() {
        let verdict = verdicts.next().unwrap_or_default();
        assert!(verdict.starts_with(&format!("{number:06}.jsonl does NOT hold: ")), "{what}: {verdict}");
    }
    assert!(verdicts.next().unwrap().starts_with("whole.jsonl holds: "));
    assert_eq!((verdicts.next(), output.status.code()), (None, Some(1)));
}

type Edit<'a> = &'a dyn Fn(&mut Vec<Value>);

/// Edits by somebody who makes each hash again: only the rules find them.
#[test]
fn rules_are_kept_by_both_verifiers_where_each_hash_is_right() {
    let evidence = Evidence::unsigned(|_| {});
    let whole = fs::read_to_string(evidence.file("transcript.jsonl")).unwrap();
    let events: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let plan = fs::read(evidence.file("plan.lock.json")).unwrap();
    let plan_sha256 = Sha256Digest::of(&plan);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plan.lock.json"), &plan).unwrap();
    let last = events.len() - 1;
    let resumed = json!({"data": {"torn_bytes": 0}, "kind": "resumed", "monotonic_ms": 1, "step": "resumed", "time": "2026-01-31T12:00:00Z"});
    let mut deep = json!([]);
    for _ in 0..30 {
        deep = json!([deep]);
    }
    let edits: [(&str, bool, Edit<'_>); 38] = [
        ("nothing", true, &|_| {}),
        ("goes on after an interruption", true, &|e| e.insert(8, resumed.clone())),
        ("a step begun again after an interruption", true, &|e| {
            e.insert(2, resumed.clone());
            e.insert(3, e[1].clone());
        }),
        ("an intent before the result", false, &|e| e.insert(2, e[1].clone())),
        ("a result twice", false, &|e| e.insert(8, e[7].clone())),
        ("a result of another step", false, &|e| e[7]["step"] = json!("clock")),
        ("no result at the end", false, &|e| drop(e.remove(last - 1))),
        ("opened twice", false, &|e| e.insert(1, e[0].clone())),
        ("opened later", false, &|e| e.swap(0, 1)),
        ("closed twice", false, &|e| e.push(e[last].clone())),
        ("something after closed", false, &|e| e.push(resumed.clone())),
        ("closed before the end", false, &|e| e.swap(last, last - 1)),
        ("closed without a record", false, &|e| e[last]["data"] = json!({})),
        ("a record of other form", false, &|e| e[last]["data"]["record_sha256"] = json!("A".repeat(64))),
        ("another plan", false, &|e| e[0]["data"]["plan_sha256"] = json!("0".repeat(64))),
        ("no ceremony", false, &|e| e[0]["data"]["ceremony_id"] = json!("0".repeat(31))),
        ("no tool", false, &|e| e[0]["data"]["tool"] = json!(1)),
        ("a trial", false, &|e| e[0]["data"]["kind"] = json!("trial")),
        ("an unknown kind", false, &|e| e[2]["kind"] = json!("note")),
        ("a kind that is no text", false, &|e| e[2]["kind"] = json!({"answer": null})),
        ("a key more", false, &|e| e[2]["more"] = json!(1)),
        ("a key less", false, &|e| drop(e[2].as_object_mut().unwrap().remove("time"))),
        ("data that is no mapping", false, &|e| e[2]["data"] = json!([])),
        ("an empty step", false, &|e| e[2]["step"] = json!("")),
        ("a step in capitals", false, &|e| e[2]["step"] = json!("People")),
        ("a step with a newline", false, &|e| e[2]["step"] = json!("people\n")),
        ("a time with a fraction", false, &|e| e[2]["time"] = json!("2026-01-31T12:00:00.5Z")),
        ("a time elsewhere", false, &|e| e[2]["time"] = json!("2026-01-31T12:00+00Z")),
        ("a day that is none", false, &|e| e[2]["time"] = json!("2026-02-30T12:00:00Z")),
        ("a second that is none", false, &|e| e[2]["time"] = json!("2026-01-31T12:00:60Z")),
        ("a time that is none", false, &|e| e[2]["time"] = json!(null)),
        ("a time before", false, &|e| e[2]["monotonic_ms"] = json!(-1)),
        ("a time that is true", false, &|e| e[2]["monotonic_ms"] = json!(true)),
        ("a fraction", false, &|e| e[2]["data"] = json!({"a": 0.5})),
        ("a number too large", false, &|e| e[2]["data"] = json!({"a": 1_u64 << 53})),
        ("the largest number", true, &|e| {
            e[2]["data"] = json!({"a": (1_u64 << 53) - 1, "\u{1f511}": 1, "\u{ffff}": "\u{7f}\u{1}"});
        }),
        ("nested deep", true, &|e| e[2]["data"] = deep.as_array().map(|_| json!({"a": deep[0]})).unwrap()),
        ("nested too deep", false, &|e| e[2]["data"] = json!({"a": deep})),
    ];
    let mut ours = Vec::new();
    for (number, (what, holds, edit)) in edits.iter().enumerate() {
        let mut events = events.clone();
        edit(&mut events);
        let forged = chained(events, &plan_sha256);
        let verdict = verify(&forged, &plan_sha256);
        assert_eq!(verdict.is_ok(), *holds, "{what}: {verdict:?}");
        fs::write(folder.path().join(format!("{number:02}.jsonl")), forged).unwrap();
        ours.push((what, holds));
    }
    let output = Command::new(script()).arg("--transcripts").arg(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), ours.len(), "{}", String::from_utf8_lossy(&output.stderr));
    for (verdict, (what, holds)) in text.lines().zip(ours) {
        assert_eq!(verdict.contains(".jsonl holds: "), *holds, "{what}: {verdict}");
    }
}

/// The events as lines, each numbered and hashed anew.
fn chained(events: Vec<Value>, plan: &Sha256Digest) -> Vec<u8> {
    let mut head: [u8; 32] = Sha256::digest([&b"hsm-kms/ceremony/v1"[..], &plan.0, &[7; 32]].concat()).into();
    let mut lines = Vec::new();
    for (number, mut event) in events.into_iter().enumerate() {
        event["seq"] = json!(number);
        event.as_object_mut().unwrap().remove("hash");
        let content = serde_json_canonicalizer::to_vec(&event).unwrap();
        head = Sha256::digest([&head[..], &content].concat()).into();
        event["hash"] = json!(Sha256Digest(head));
        lines.extend(serde_json_canonicalizer::to_vec(&event).unwrap());
        lines.push(b'\n');
    }
    lines
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/verify-ceremony")
}

/// Each edited transcript, and what was done to it.
fn mutants(whole: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut mutants: Vec<(String, Vec<u8>)> = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for position in 0..whole.len() {
        // Xorshift: the same edits in each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut mutant = whole.to_vec();
        mutant[position] ^= 1 << (random % 8);
        mutants.push((format!("bit {} of byte {position} turned", random % 8), mutant));
    }
    for position in (0..=whole.len()).step_by(9) {
        for blank in [b' ', b'\n'] {
            let mut mutant = whole.to_vec();
            mutant.insert(position, blank);
            mutants.push((format!("byte {blank} put in at {position}"), mutant));
        }
    }
    let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    for number in 0..lines.len() {
        let mut add = |what: &str, lines: &[&[u8]]| mutants.push((format!("line {number} {what}"), lines.concat()));
        let (before, after) = lines.split_at(number);
        add("and all after it left out", before);
        add("left out", &[before, &after[1..]].concat());
        add("doubled", &[before, &after[..1], after].concat());
        if let [first, second, rest @ ..] = after {
            add("swapped with the next", &[before, &[*second, *first], rest].concat());
        }
        add("moved to the end", &[before, &after[1..], &after[..1]].concat());
        let torn = &after[0][..after[0].len() - 1];
        add("without its newline, at the end", &[before, &[torn]].concat());
    }
    mutants.retain(|(_, mutant)| mutant != whole);
    mutants
}
