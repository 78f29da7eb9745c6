//! The ceremony on paper: printed by a real browser on A4 and Letter, then looked at, word by word and in grey.
//!
//! `HSM_KMS_TEST_PAPER` names a folder to keep the documents and their pages in, for eyes.

mod documents;
pub mod print;

use hsm_kms::attributes::AttributeName;
use hsm_kms::ceremony::transcript::CeremonyKind;
use hsm_kms::ceremony::{steps, words};

use self::documents::{Ceremony, HOSTILE};
use self::print::{Paper, Printed};

const STAMP: &str = "REHEARSAL";

#[test]
fn a_large_rehearsal_is_printed_whole() {
    let ceremony = Ceremony::large();
    for paper in Paper::ALL {
        let script = Printed::new("large-script", &ceremony.script(CeremonyKind::Rehearsal), paper);
        script.is_tidy(8..=16);
        script.has_on_every_page(STAMP);
        has_what_a_script_has(&script, &ceremony);
        let report = Printed::new("large-report", &ceremony.report(CeremonyKind::Rehearsal), paper);
        report.is_tidy(8..=18);
        report.has_on_every_page(STAMP);
        has_what_a_report_has(&report, &ceremony);
        report.lacks("NO RECOVERY");
    }
}

#[test]
fn a_small_ceremony_is_printed_whole() {
    let ceremony = Ceremony::small();
    for paper in Paper::ALL {
        let script = Printed::new("small-script", &ceremony.script(CeremonyKind::Production), paper);
        script.is_tidy(7..=13);
        script.lacks(STAMP);
        has_what_a_script_has(&script, &ceremony);
        let report = Printed::new("small-report", &ceremony.report(CeremonyKind::Production), paper);
        report.is_tidy(5..=10);
        report.lacks(STAMP);
        report.has(&["NO RECOVERY"]);
        has_what_a_report_has(&report, &ceremony);
    }
}

#[test]
fn the_script_of_an_import_is_printed_whole() {
    let ceremony = Ceremony::import();
    let script = Printed::new("import-script", &ceremony.script(CeremonyKind::Production), Paper::A4);
    script.is_tidy(8..=16);
    has_what_a_script_has(&script, &ceremony);
}

#[test]
fn a_report_shows_what_is_wrong() {
    // The small ceremony's plan does not permit what its token has.
    let ceremony = Ceremony::small();
    assert!(ceremony.report(CeremonyKind::Production).contains("YES, NOT PERMITTED"));
    // And one that is there in the plan only did not take part.
    let mut ceremony = Ceremony::large();
    assert!(!ceremony.report(CeremonyKind::Production).contains("NOT PERMITTED"));
    assert!(ceremony.report(CeremonyKind::Production).contains(">8-witness</span>; do"));
    ceremony.record.witnessed.as_mut().unwrap().people.pop();
    let report = ceremony.report(CeremonyKind::Production);
    assert!(report.contains(">7-custodian</span>; do"));
    assert!(report.contains("<b>no</b>"));
}

#[test]
fn a_report_of_two_keys_shows_both() {
    let ceremony = Ceremony::with_mac_key();
    let report = Printed::new("two-keys", &ceremony.report(CeremonyKind::Production), Paper::A4);
    report.is_tidy(6..=11);
    report.has(&["Attributes of kek-2026-mac", "CKK_GENERIC_SECRET", "either"]);
    report.lacks("NOT PERMITTED");
    has_what_a_report_has(&report, &ceremony);
}

#[test]
fn documents_reach_for_nothing_and_run_nothing() {
    for ceremony in [Ceremony::large(), Ceremony::small()] {
        for html in [ceremony.script(CeremonyKind::Rehearsal), ceremony.report(CeremonyKind::Rehearsal)] {
            for lacking in ["http:", "https:", "src=", "href=", "<script", "@import", "url(", "<link", "<img", HOSTILE]
            {
                assert!(!html.contains(lacking), "{lacking}");
            }
            assert!(html.contains("default-src 'none'"));
        }
    }
}

#[test]
fn a_page_that_is_not_tidy_is_found() {
    let good = Ceremony::small().script(CeremonyKind::Production);
    for (number, (style, why)) in [
        (
            "dd { white-space: nowrap } dd::after { content: 'mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm' }",
            "from",
        ),
        (".step h3 + p { margin-top: -6mm }", "overlap"),
        ("main { background: #ccc }", "not white"),
        ("h2 { break-after: page }", "ends with"),
        ("main { color: #bbb } main * { border-color: #ccc !important }", "nothing black"),
    ]
    .into_iter()
    .enumerate()
    {
        let html = good.replace("</head>", &format!("<style>{style}</style></head>"));
        let printed = Printed::new(&format!("untidy-{number}"), &html, Paper::A4);
        let found = std::panic::catch_unwind(|| printed.is_tidy(1..=30)).unwrap_err();
        let found = found.downcast_ref::<String>().unwrap();
        assert!(found.contains(why), "{style}: {found}");
    }
}

fn has_what_a_script_has(script: &Printed, ceremony: &Ceremony) {
    has_plan_and_people(script, ceremony);
    for step in steps(&ceremony.plan, ceremony.witnessed()) {
        script.has(&[step.title, step.what, step.why]);
    }
    for copy in &ceremony.witnessed().copies {
        script.has(&[&copy.serial]);
    }
    script.has(&["Exception sheet 2", "Closing sheet", "Number of the bag"]);
}

fn has_what_a_report_has(report: &Printed, ceremony: &Ceremony) {
    has_plan_and_people(report, ceremony);
    for step in steps(&ceremony.plan, ceremony.witnessed()) {
        report.has(&[step.title]);
    }
    report.has(&AttributeName::ALL.map(AttributeName::name));
    report.has(&words(&ceremony.head).split(' ').collect::<Vec<_>>());
    report.has(&[&ceremony.head.to_string(), &ceremony.record_sha256.to_string()]);
    for event in &ceremony.events {
        report.has(&[&event.seq.to_string(), &event.time.to_string(), &event.step, &event.kind, &event.text]);
    }
    for refusal in &ceremony.refusals {
        report.has(&[&refusal.attempt, &refusal.answer]);
    }
    for text in ceremony.exceptions.iter().chain(&ceremony.bags) {
        report.has(&[text]);
    }
    for proof in &ceremony.record.proofs {
        report.has(&[&proof.challenge_sha256.to_string()]);
    }
    report.has(&[
        "sha256sum -c SHA256SUMS",
        "hsm-kms ceremony verify-record",
        "for who in 1-administrator 2-operator 3-witness",
    ]);
}

fn has_plan_and_people(printed: &Printed, ceremony: &Ceremony) {
    let plan = ceremony.witnessed();
    printed.has(&[ceremony.plan.cluster.as_str(), &plan.site, &plan.serial, &ceremony.plan.kek.label]);
    printed.has(&words(&plan.lock.digest).split(' ').collect::<Vec<_>>());
    printed.has(&[&plan.lock.digest.to_string()]);
    for person in plan.people.all() {
        printed.has(&[person.name.as_str(), person.role.word(), &person.key.fingerprint()]);
    }
}
