//! Ten thousand edits of a transcript, each found by both programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use hsm_kms::ceremony::transcript::verify;
use hsm_kms::record::Sha256Digest;
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
    let verifier = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/verify-ceremony");
    let other = std::thread::spawn({
        let folder = folder.path().to_owned();
        move || Command::new(verifier).arg("--transcripts").arg(folder).output().unwrap()
    });

    let plan_sha256 = Sha256Digest(Sha256::digest(&plan).into());
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
    for position in (0..=whole.len()).step_by(3) {
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
