//! Each rule by one changed line of a good file.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::{CHECKS, EncryptionConfiguration, KubernetesVersion, Surroundings, lint, unread};
use crate::finding::{Finding, Verdict};

const SOCKET: &str = "/run/hsm-kms/hsm@kms.sock";

const GOOD: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources:
  - secrets
  providers:
  - kms:
      apiVersion: v2
      name: hsm-kms
      endpoint: unix:///run/hsm-kms/hsm@kms.sock
      timeout: 3s
";

fn linted(text: &str, version: Option<&str>) -> Vec<Finding> {
    let around = Surroundings {
        socket: Some(Path::new(SOCKET)),
        deadline: Some(Duration::from_millis(2500)),
        version: version.map(|text| text.parse().unwrap()),
    };
    match EncryptionConfiguration::parse(text.as_bytes()) {
        Ok(file) => lint(&file, &around),
        Err(error) => unread(&error),
    }
}

#[test]
fn a_good_file_has_no_fault() {
    let findings = linted(GOOD, Some("1.31"));
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:#?}");
    assert_eq!(findings.len() + 1, CHECKS.len());
}

#[test]
fn each_rule_finds_its_fault() {
    use Verdict::{Failed, Warning};
    let identity = "  - identity: {}\n";
    let with_end = |end: &str| format!("{GOOD}{end}");
    let cases = [
        (GOOD.replace("kind: ", "knid: "), "encryption-file", Failed, "unknown key `knid`"),
        (
            GOOD.replace("      name", "      naem"),
            "encryption-file",
            Failed,
            "unknown key `resources[0].providers[0].kms.naem`",
        ),
        (with_end("---\na: 1\n"), "encryption-file", Failed, "more than one YAML document"),
        (GOOD.replace("config.k8s.io/v1", "config.k8s.io/v1beta1"), "encryption-kind", Failed, "v1beta1"),
        (GOOD.replace("EncryptionConfiguration", "EncryptionConfig"), "encryption-kind", Failed, "EncryptionConfig"),
        (GOOD.replace("      apiVersion: v2\n", ""), "encryption-kms-v2", Failed, "which means v1"),
        (GOOD.replace("apiVersion: v2", "apiVersion: v1"), "encryption-kms-v2", Failed, "no kms provider has"),
        (GOOD.replace("apiVersion: v2", "apiVersion: v3"), "encryption-kms-v2", Failed, "neither v1 nor v2"),
        (with_end("    identity: {}\n"), "encryption-kms-v2", Failed, "more than one"),
        (with_end("- resources: [pods]\n  providers: []\n"), "encryption-kms-v2", Failed, "has no provider"),
        (with_end("      cachesize: 1000\n"), "encryption-cachesize", Failed, "has one"),
        (GOOD.replace("hsm-kms\n", "hsm:kms\n"), "encryption-name", Failed, "has a colon"),
        (GOOD.replace("name: hsm-kms\n", "name: ''\n"), "encryption-name", Failed, "empty"),
        (GOOD.replace("timeout: 3s", "timeout: 3"), "encryption-timeout", Failed, "no duration above 0"),
        (GOOD.replace("timeout: 3s", "timeout: 0s"), "encryption-timeout", Failed, "no duration above 0"),
        (GOOD.replace("timeout: 3s", "timeout: 2500ms"), "encryption-timeout", Warning, "up to 2500 ms"),
        (GOOD.replace("timeout: 3s", "timeout: 1m"), "encryption-timeout", Warning, "for so long"),
        (GOOD.replace("unix:///run", "unix://run"), "encryption-endpoint", Failed, "taken for a host"),
        (GOOD.replace("unix:///run", "http:///run"), "encryption-endpoint", Failed, "no scheme"),
        (GOOD.replace("/run/hsm-kms/hsm@", "/@hsm"), "encryption-endpoint", Failed, "abstract"),
        (GOOD.replace("hsm@kms.sock", "other@kms.sock"), "encryption-endpoint", Failed, "the plugin's socket"),
        (GOOD.replace("hsm@kms", "hsm%40kms"), "encryption-endpoint", Failed, "mean something"),
        (GOOD.replace("hsm@kms", "kms"), "encryption-socket-name", Failed, "has no @"),
        (GOOD.replace("  - kms:", "  - identity: {}\n  - kms:"), "encryption-order", Failed, "clear text"),
        (
            GOOD.replace("  - kms:", "  - aescbc: {keys: [{name: a, secret: c2VjcmV0}]}\n  - kms:"),
            "encryption-order",
            Failed,
            "aescbc is first",
        ),
        (with_end(identity), "encryption-identity", Warning, "the first phase"),
        (
            with_end("- resources: [events]\n  providers:\n  - identity: {}\n"),
            "encryption-identity",
            Warning,
            "events are written in clear text",
        ),
        (
            with_end("  - secretbox: {keys: [{name: a, secret: c2VjcmV0}]}\n"),
            "encryption-old-keys",
            Warning,
            "secretbox",
        ),
        (GOOD.replace("  - secrets", "  - configmaps"), "encryption-secrets", Failed, "no entry"),
        (GOOD.replace("  - secrets", "  - secrets\n  - '*.'"), "encryption-resources", Failed, "overlap"),
        (GOOD.replace("  - secrets", "  - secrets\n  - secrets"), "encryption-resources", Failed, "overlap"),
        (GOOD.replace("  - secrets", "  - '*'"), "encryption-resources", Failed, "alone is no name"),
        (
            with_end("- resources: [secrets]\n  providers:\n  - identity: {}\n"),
            "encryption-resources",
            Warning,
            "an entry above decides",
        ),
    ];
    for (text, check, verdict, found) in cases {
        let findings = linted(&text, Some("1.31"));
        let finding = findings.iter().find(|finding| finding.check.name == check).unwrap();
        assert!(finding.verdict == verdict && finding.found.contains(found), "{text}\n{finding:#?}");
        assert!(finding.advice.is_some());
    }
}

#[test]
fn the_version_decides() {
    let plain = GOOD.replace("hsm@kms", "kms");
    for (version, check, verdict) in [
        (Some("1.28"), "encryption-kubernetes", Verdict::Failed),
        (Some("v1.29.3"), "encryption-kubernetes", Verdict::Ok),
        (None, "encryption-kubernetes", Verdict::NotChecked),
        (Some("1.31"), "encryption-socket-name", Verdict::Failed),
        (Some("1.32"), "encryption-socket-name", Verdict::Ok),
        (None, "encryption-socket-name", Verdict::Warning),
    ] {
        let findings = linted(&plain, version);
        let finding = findings.iter().find(|finding| finding.check.name == check).unwrap();
        assert_eq!(finding.verdict, verdict, "{version:?} {finding:#?}");
    }
    for wrong in ["", "1", "1.", "2.1", "1.x", "1.99999", "1.-1"] {
        wrong.parse::<KubernetesVersion>().unwrap_err();
    }
}

/// A migration from another plugin, which is read for a while.
#[test]
fn another_plugin_is_told_from_this_one() {
    let (head, entry) = GOOD.split_at(GOOD.find("  - kms:").unwrap());
    let other = entry.replace("name: hsm-kms", "name: other").replace("hsm@kms.sock", "other.sock");
    let verdicts = |text: &str| {
        let findings = linted(text, None);
        ["encryption-order", "encryption-old-keys", "encryption-endpoint"]
            .map(|check| findings.iter().find(|finding| finding.check.name == check).unwrap().verdict)
    };
    let (ok, warning, failed) = (Verdict::Ok, Verdict::Warning, Verdict::Failed);
    assert_eq!(verdicts(&format!("{head}{entry}{other}")), [ok, warning, ok]);
    assert_eq!(verdicts(&format!("{head}{other}{entry}")), [failed, warning, ok]);
}

/// The files that operators are given.
#[test]
fn the_phases_of_the_documents_are_known() {
    let around = Surroundings { socket: Some(Path::new(SOCKET)), ..Surroundings::default() };
    for (text, failed, warnings) in [
        (
            include_str!("../../docs/deploy/encryption/phase-0.yaml"),
            &["encryption-order"][..],
            &["encryption-identity"][..],
        ),
        (include_str!("../../docs/deploy/encryption/phase-1.yaml"), &[], &["encryption-identity"]),
        (include_str!("../../docs/deploy/encryption/phase-2.yaml"), &[], &[]),
    ] {
        let findings = lint(&EncryptionConfiguration::parse(text.as_bytes()).unwrap(), &around);
        let with = |verdict| {
            let found = findings.iter().filter(move |finding| finding.verdict == verdict);
            found.map(|finding| finding.check.name).collect::<Vec<_>>()
        };
        assert_eq!((with(Verdict::Failed).as_slice(), with(Verdict::Warning).as_slice()), (failed, warnings), "{text}");
    }
}

#[test]
fn two_names_in_two_entries_must_differ() {
    let (head, entry) = GOOD.split_at(GOOD.find("- resources:").unwrap());
    let two = format!("{head}{entry}{}", entry.replace("secrets", "configmaps"));
    let findings = linted(&two, None);
    let name = findings.iter().find(|finding| finding.check.name == "encryption-name").unwrap();
    assert!(name.verdict == Verdict::Failed && name.found.contains("stands twice"), "{name:#?}");
}

#[test]
fn the_digest_is_of_the_content() {
    let digest = |text: &str| EncryptionConfiguration::parse(text.as_bytes()).unwrap().digest();
    let commented = format!("# node 1\n{}", GOOD.replace("timeout: 3s", "timeout: \"3s\""));
    assert_eq!(digest(GOOD), digest(&commented));
    assert_ne!(digest(GOOD), digest(&GOOD.replace("timeout: 3s", "timeout: 4s")));
}

#[test]
fn keys_are_never_shown() {
    let with_key = format!("{GOOD}  - aescbc: {{keys: [{{name: a, secret: Y2FuYXJ5}}]}}\n");
    for text in
        [with_key.clone(), with_key.replace("secret:", "secert:"), with_key.replace("[{", "{").replace("}]", "}")]
    {
        assert!(!format!("{:?}", linted(&text, None)).contains("Y2FuYXJ5"));
    }
}

#[test]
fn a_bomb_is_refused() {
    let bomb = (1..20).fold("a0: &a0 [x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let before = level - 1;
        format!("{text}a{level}: &a{level} [*a{before},*a{before},*a{before},*a{before}]\n")
    });
    for text in [bomb, "[".repeat(60_000), "x".repeat(70_000), String::new()] {
        let findings = linted(&text, None);
        assert_eq!(findings[0].verdict, Verdict::Failed);
        assert!(findings[1..].iter().all(|finding| finding.verdict == Verdict::NotChecked));
    }
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(place in 0..GOOD.len(), insert in ".{0,12}") {
        let mut text = GOOD.to_owned();
        text.insert_str(place, &insert);
        let _ = linted(&text, Some("1.30"));
    }
}
