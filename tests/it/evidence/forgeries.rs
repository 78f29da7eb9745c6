//! Forgeries of a whole directory, each found by both programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hsm_kms::ceremony::transcript::CeremonyKind;
use serde_json::{Value, json};

use super::story::{Evidence, Story};
use crate::harness::run;

/// What was done, by which edit, and the checks that do not hold then.
type Forgery<'a> = (&'a str, &'a dyn Fn(&Evidence), &'a [&'a str]);

/// The same of a story, before anything was written.
type Retelling<'a> = (&'a str, &'a dyn Fn(&mut Story), &'a [&'a str]);

/// Both programs find that the evidence holds, or does not; ours names these checks.
fn judge(what: &str, evidence: &Evidence, failed: &[&str]) {
    let directory = evidence.path().display().to_string();
    let output = run(&["ceremony", "verify-record", "--json", &directory], b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["holds"] == json!(false));
    let found: Vec<_> = checks.map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(found, failed, "{what}: {report:#}");
    assert_eq!(report["holds"], failed.is_empty(), "{what}");
    let code = i32::from(!failed.is_empty());
    assert_eq!(output.status.code(), Some(code), "{what}");

    let output = Command::new(script()).arg(directory).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{what}: {text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.ends_with(if code == 0 { "the evidence holds\n" } else { "the evidence does NOT hold\n" }), "{text}");
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/verify-ceremony")
}

#[test]
fn what_a_ceremony_leaves_holds() {
    judge("as it was made", &Evidence::new(), &[]);
    judge(
        "a rehearsal on another token, without its copies",
        &Evidence::of(|story| {
            story.kind = CeremonyKind::Rehearsal;
            story.record["kind"] = json!("rehearsal");
            story.record["token"]["serial"] = json!("another");
            story.record["recovery"] = json!("none");
            story.record["witnessed"]["copies"] = json!([]);
        }),
        &[],
    );
    judge(
        "no copies and no exceptions",
        &Evidence::of(|story| {
            story.plan.as_object_mut().unwrap().remove("copies");
            story.plan["previous"] = json!("5".repeat(64));
            story.record["recovery"] = json!("none");
            story.record["witnessed"]["copies"] = json!([]);
            story.record["witnessed"]["exceptions"] = json!([]);
            story.record["witnessed"]["previous_record_sha256"] = json!("5".repeat(64));
        }),
        &[],
    );
    let directory = Evidence::new();
    let output = run(&["ceremony", "verify-record", directory.path().to_str().unwrap()], b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("\nthe evidence holds\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let mut sums = Command::new("sha256sum");
    sums.args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(directory.path());
    assert!(sums.status().unwrap().success());
}

#[test]
fn files_that_were_edited_are_found() {
    let all = ["signatures"];
    let edits: [Forgery<'_>; 17] = [
        (
            "record edited",
            &|e| e.edit("kek-record.json", "kek-1", "kek-2"),
            &["record as closed", "statement.txt", "SHA256SUMS", all[0]],
        ),
        (
            "record damaged",
            &|e| e.edit("kek-record.json", "{", "["),
            &[
                "kek-record.json",
                "record as closed",
                "record and plan",
                "people",
                "copies",
                "exceptions",
                "statement.txt",
                "SHA256SUMS",
                all[0],
            ],
        ),
        (
            "statement edited",
            &|e| e.edit("statement.txt", "prod-eu-1", "prod-eu-2"),
            &["statement.txt", "SHA256SUMS", all[0]],
        ),
        (
            "statement longer",
            &|e| e.edit("statement.txt", "words:", "more: 1\nwords:"),
            &["statement.txt", "SHA256SUMS", all[0]],
        ),
        ("sums edited", &|e| e.edit("SHA256SUMS", "script", "scribe"), &["SHA256SUMS"]),
        ("report edited", &|e| e.edit("report.html", "report", "repeat"), &["SHA256SUMS"]),
        ("report gone", &|e| fs::remove_file(e.file("report.html")).unwrap(), &["SHA256SUMS"]),
        ("sums gone", &|e| fs::remove_file(e.file("SHA256SUMS")).unwrap(), &["SHA256SUMS"]),
        ("file added", &|e| fs::write(e.file("note.txt"), "note").unwrap(), &["SHA256SUMS"]),
        ("directory added", &|e| fs::create_dir(e.file("notes")).unwrap(), &["SHA256SUMS"]),
        (
            "link in place of a file",
            &|e| {
                fs::rename(e.file("script.html"), e.path().with_file_name("script.html")).unwrap();
                symlink(e.path().with_file_name("script.html"), e.file("script.html")).unwrap();
            },
            &["SHA256SUMS"],
        ),
        (
            "signers edited",
            &|e| e.edit("allowed_signers", "namespaces", "cert-authority,namespaces"),
            &["allowed_signers", "SHA256SUMS"],
        ),
        ("witness has not signed", &|e| fs::remove_file(e.signature(3)).unwrap(), &["signatures/3-witness.sig"]),
        ("signed by a stranger", &|e| e.sign(3, 0, "hsm-kms-ceremony"), &["signatures/3-witness.sig"]),
        ("signed by another of them", &|e| e.sign(3, 1, "hsm-kms-ceremony"), &["signatures/3-witness.sig"]),
        ("signed for something else", &|e| e.sign(3, 3, "git"), &["signatures/3-witness.sig"]),
        ("signed by one who was not there", &|e| e.sign(5, 5, "hsm-kms-ceremony"), &["nobody else signed"]),
    ];
    for (what, edit, failed) in edits {
        let evidence = Evidence::new();
        edit(&evidence);
        judge(what, &evidence, failed);
        // The sums are no secret: whoever edits a file makes them good again.
        let others: Vec<_> = failed.iter().copied().filter(|name| *name != "SHA256SUMS").collect();
        if others.len() < failed.len() && !others.is_empty() {
            evidence.sum_up();
            judge(&format!("{what}, sums made good"), &evidence, &others);
        }
    }
}

#[test]
fn a_plan_that_was_edited_is_found() {
    let evidence = Evidence::new();
    evidence.edit("plan.lock.json", "room 112", "room 113");
    evidence.sum_up();
    let without_transcript = [
        "transcript.jsonl",
        "record as closed",
        "record and plan",
        "people",
        "copies",
        "exceptions",
        "statement.txt",
        "signatures",
    ];
    judge("plan edited", &evidence, &without_transcript);
    let evidence = Evidence::new();
    evidence.edit("plan.lock.json", ",", ", ");
    evidence.sum_up();
    let without_plan = [&["plan.lock.json"], &without_transcript[..7], &["allowed_signers", "signatures"]].concat();
    judge("plan not canonical", &evidence, &without_plan);
}

/// Everything was made again after an edit, and those who are left have signed it.
#[test]
fn stories_that_do_not_hang_together_are_found() {
    let stories: [Retelling<'_>; 12] = [
        ("no witness", &|s| leave_out(s, 2), &["people", "signatures"]),
        ("no custodian", &|s| leave_out(s, 3), &["people", "signatures"]),
        ("somebody signed in who is not in the record", &|s| s.present.truncate(3), &["people", "signatures"]),
        (
            "another order",
            &|s| s.record["witnessed"]["people"].as_array_mut().unwrap().reverse(),
            &["people", "signatures"],
        ),
        ("another cluster", &|s| s.plan["cluster"] = json!("prod-eu-2"), &["record and plan"]),
        ("another token", &|s| s.record["token"]["serial"] = json!("3c4d5e6f70819203"), &["record and plan"]),
        ("another origin", &|s| s.record["witnessed"]["origin"] = json!("imported"), &["record and plan"]),
        ("another record before", &|s| s.plan["previous"] = json!("0".repeat(64)), &["record and plan"]),
        ("a copy that was not planned", &|s| s.plan["copies"][1]["serial"] = json!("4"), &["copies"]),
        (
            "a copy that was not proved",
            &|s| {
                s.record["recovery"] = json!("none");
                s.record["witnessed"]["copies"].as_array_mut().unwrap().truncate(1);
            },
            &["copies"],
        ),
        ("an exception that nobody answers for", &|s| s.excepted = "clock", &["exceptions"]),
        ("a record of a rehearsal", &|s| s.kind = CeremonyKind::Rehearsal, &["record as closed"]),
    ];
    for (what, change, failed) in stories {
        judge(what, &Evidence::of(change), failed);
    }
}

fn leave_out(story: &mut Story, place: usize) {
    story.present.remove(place);
    story.record["witnessed"]["people"].as_array_mut().unwrap().remove(place);
}

#[test]
fn what_cannot_be_looked_at_is_not_judged() {
    for arguments in [["ceremony", "verify-record", "/nonexistent"], ["ceremony", "verify-record", "/dev/null"]] {
        assert_eq!(run(&arguments, b"").status.code(), Some(2));
    }
    for arguments in [&["/nonexistent"][..], &[], &["/tmp", "/tmp"], &["--transcripts", "/nonexistent"]] {
        assert_eq!(Command::new(script()).args(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(run(&["ceremony", "verify-record", empty.path().to_str().unwrap()], b"").status.code(), Some(1));
    assert_eq!(Command::new(script()).arg(empty.path()).output().unwrap().status.code(), Some(1));
}
