//! The file, the checked configuration and docs/configuration.md say the same.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_yaml::Value;

use super::*;
use crate::pin::PinSource;
use crate::profile::Profile;

const EXAMPLE: &str = include_str!("../../docs/examples/config.yaml");
const DOCUMENT: &str = include_str!("../../docs/configuration.md");

const SMALLEST: &str = "version: 1
cluster: prod
token:
  profile: softhsm2
  module: /usr/lib/softhsm/libsofthsm2.so
  label: kek
  pin: { file: /etc/pin }
kek: { record: /etc/kek-record.json }
";

fn error(text: &str) -> String {
    Config::parse(text.as_bytes()).unwrap_err().to_string()
}

fn error_after(old: &str, new: &str) -> ConfigError {
    assert!(EXAMPLE.contains(old), "{old}");
    Config::parse(EXAMPLE.replacen(old, new, 1).as_bytes()).unwrap_err()
}

#[test]
fn the_example_is_read() {
    let config = Config::parse(EXAMPLE.as_bytes()).unwrap();
    assert_eq!(config.cluster.as_str(), "prod-eu-1");
    assert_eq!(config.socket, Socket { path: "/run/hsm-kms/hsm@kms.sock".into(), mode: 0o600, peers: None });
    assert_eq!(config.token.profile, Profile::by_name("softhsm2").unwrap());
    assert_eq!(config.token.pin, Some(PinSource::File("/etc/hsm-kms/pin".into())));
    assert_eq!(config.token.environment["SOFTHSM2_CONF"], "/etc/hsm-kms/softhsm2.conf");
    let (deadline, probe) = (Duration::from_millis(2500), Duration::from_secs(2));
    assert_eq!(config.limits, Limits { queue: 256, sessions: 2, deadline, probe });
    assert_eq!(config.log, Log { format: Format::Text, level: Level::Info });
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn peers_are_numbers_and_some() {
    let peers = |text: &str| {
        Config::parse(with(SMALLEST, "socket.peers", Some(text)).as_bytes()).map(|config| config.socket.peers)
    };
    assert_eq!(peers("[0, 1001]").unwrap(), Some(vec![0, 1001]));
    for wrong in ["[]", "[-1]", "[root]", "0", "[4294967296]", "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]"] {
        assert!(peers(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_pin_source_is_read() {
    for (pin, source) in [
        ("{ file: /etc/pin }", PinSource::File("/etc/pin".into())),
        ("{ environment: HSM_PIN }", PinSource::Environment("HSM_PIN".to_owned())),
        ("{ credential: hsm-pin }", PinSource::Credential("hsm-pin".to_owned())),
        ("{ descriptor: 3 }", PinSource::Descriptor(3)),
    ] {
        let text = SMALLEST.replace("{ file: /etc/pin }", pin);
        assert_eq!(Config::parse(text.as_bytes()).unwrap().token.pin, Some(source));
    }
}

#[test]
fn faults_are_named_with_field_and_line() {
    for (old, new, error) in [
        ("mode:", "mod:", "configuration: line 6, column 3: unknown key `socket.mod`"),
        ("level: info", "level: info\n  level: warn", "line 23, column 3: duplicate key `level`"),
        ("cluster: prod-eu-1", "cluster: Prod", "line 3, column 10: `cluster`: a cluster id has 1 to 63"),
        ("cluster: prod-eu-1\n", "", "missing key `cluster`"),
        ("  record: /etc/hsm-kms/kek-record.json\n", "", "`kek`: of `kek.record` and `kek.keyring` there must be one"),
        ("  record: /etc", "  keyring: /etc/x\n  record: /etc", "there must be one; both are there"),
        ("\"0600\"", "\"0666\"", "line 6, column 9: `socket.mode`: expected \"0600\" (owner) or \"0660\""),
        ("\"0600\"", "384", "`socket.mode`: expected \"0600\""),
        ("/run/hsm-kms/", "run/", "`socket.path`: expected an absolute path"),
        ("/run/hsm-kms/", "/run/../", "`socket.path`: expected an absolute path"),
        ("hsm@kms.sock", &"x".repeat(91), "`socket.path`: the path has 104 bytes, a socket's at most 103"),
        ("profile: softhsm2", "profile: softhsm", "configuration: `token.profile`: unknown profile"),
        ("profile: softhsm2", "profile: ./a.yaml", "`token.profile`: expected an absolute path"),
        ("profile: softhsm2", "profile: /no/a.yaml", "`token.profile`: profile /no/a.yaml: the file cannot be read"),
        ("module: /usr", "module: usr", "`token.module`: expected an absolute path"),
        ("label: kek", "label: ''", "`token.label`: expected a token label of 1 to 32 bytes"),
        ("label: kek", "label: [kek]", "line 10, column 10: `token.label`: expected a text, found sequence"),
        ("{ file: /etc/hsm-kms/pin }", "{}", "`token.pin`: the PIN has no source"),
        ("{ file: /etc/hsm-kms/pin }", "{ file: /a, descriptor: 3 }", "`token.pin`: the PIN has more than one source"),
        ("{ file: /etc/hsm-kms/pin }", "{ file: pin }", "`token.pin.file`: expected an absolute path"),
        ("{ file: /etc/hsm-kms/pin }", "{ credential: a/b }", "`token.pin.credential`: expected the name"),
        ("{ file: /etc/hsm-kms/pin }", "{ environment: 1A }", "`token.pin.environment`: expected the name"),
        (
            "{ file: /etc/hsm-kms/pin }",
            "{ environment: SOFTHSM2_CONF }",
            "`token.environment`: SOFTHSM2_CONF holds the PIN, and a PIN must not stand in this file",
        ),
        (
            "SOFTHSM2_CONF: ",
            "SOFTHSM2-CONF: ",
            "`token.environment.SOFTHSM2-CONF`: expected the name of an environment variable",
        ),
        (
            "sessions: 2",
            "sessions: four",
            "line 17, column 13: `limits.sessions`: expected a whole number from 1 to 64",
        ),
        ("sessions: 2", "sessions: -4", "`limits.sessions`: expected a whole number from 1 to 64, found integer"),
        ("allow_trial: false", "allow_trial: no", "`kek.allow_trial`: expected a boolean, found string"),
        ("format: text", "format: xml", "`log.format`: expected `json` or `text`"),
        ("level: info", "level: loud", "`log.level`: expected one of `debug`, `error`"),
        ("  queue: 256", "\tqueue: 256", "tab at line 18: YAML wants spaces"),
        ("# Config", "\u{feff}# Config", "line 1: the file begins with a byte-order mark"),
        ("  level: info\n", "  level: info\n---\nversion: 1\n", "more than one YAML document"),
        ("version: 1", "version: 3", "version 3 is not known, this release reads version 1"),
    ] {
        let found = error_after(old, new);
        assert!(found.to_string().contains(error), "{found}\n{error}");
        assert!(!found.hint().is_empty());
    }
}

#[test]
fn hints_name_the_nearest_key() {
    assert_eq!(error_after("sessions:", "session:").hint(), "did you mean `sessions`?");
    assert_eq!(error_after("profile: softhsm2", "profile: softhsm").hint(), "did you mean `softhsm2`?");
    assert_eq!(error_after("queue:", "backlog:").hint(), "allowed here: queue, sessions, deadline_ms, probe_seconds");
}

#[test]
fn a_pin_in_the_wrong_place_is_not_printed() {
    for pin in
        ["1234", "\"1234\"", "[1234]", "{ descriptor: 1234 }", "{ descriptor: 12.34 }", "{ file: 1234 }", "!1234 x"]
    {
        let text = SMALLEST.replace("{ file: /etc/pin }", pin);
        let error = Config::parse(text.as_bytes()).unwrap_err();
        assert!(!format!("{error} {error:?} {}", error.hint()).contains("34"), "{error:?}");
    }
}

#[test]
fn a_socket_name_without_an_at_sign_is_warned_about() {
    let text = EXAMPLE.replace("hsm@kms.sock", "kms.sock").replace("/run/hsm-kms", "/run/hsm@kms");
    let warnings = Config::parse(text.as_bytes()).unwrap().warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("kms.sock has no '@'"), "{}", warnings[0]);
}

#[test]
fn a_module_that_is_not_named_is_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let module = directory.path().join("module.so");
    let profile = directory.path().join("profile.yaml");
    let softhsm2 = include_str!("../../hsm-profiles/softhsm2.yaml");
    let paths = format!("paths: [/nonexistent/module.so, {}]", module.display());
    let start = softhsm2.find("paths:").unwrap();
    let end = softhsm2.find("  # C_GetInfo").unwrap();
    std::fs::write(&profile, softhsm2.replace(&softhsm2[start..end], &format!("{paths}\n"))).unwrap();
    let text = SMALLEST
        .replace("  module: /usr/lib/softhsm/libsofthsm2.so\n", "")
        .replace("profile: softhsm2", &format!("profile: {}", profile.display()));
    let fault = Config::parse(text.as_bytes()).unwrap_err();
    assert_eq!(fault.to_string(), "configuration: `token.module`: no module of profile softhsm2 is installed");
    assert!(fault.hint().contains("tried: /nonexistent/module.so"));
    std::fs::write(&module, "").unwrap();
    assert_eq!(Config::parse(text.as_bytes()).unwrap().token.module, module);
}

#[test]
fn a_variant_of_a_profile_is_named_after_a_slash() {
    let text = SMALLEST.replace("profile: softhsm2", "profile: utimaco/gp");
    let token = Config::parse(text.as_bytes()).unwrap().token;
    assert_eq!(token.profile, Profile::by_name("utimaco/gp").unwrap());
    for (profile, problem) in [
        ("thales-luna", "`token.profile`: profile thales-luna has variants, and none is named"),
        ("thales-luna/fips", "`token.profile`: the module of profile thales-luna/fips needs /etc/Chrystoki.conf"),
        ("google-kms", "`token.pin`: nobody logs in with profile google-kms"),
        ("nethsm", "`token.profile`: profile nethsm refuses: it has AES-CBC without a MAC"),
        ("utimaco/x/y", "`token.profile`: expected an absolute path"),
    ] {
        let found = error(&SMALLEST.replace("profile: softhsm2", &format!("profile: {profile}")));
        assert!(found.contains(problem), "{found}");
    }
}

/// SMALLEST with a profile file that has `more` at its end.
fn with_profile(directory: &Path, more: &str) -> String {
    let path = directory.join("profile.yaml");
    let softhsm2 = include_str!("../../hsm-profiles/softhsm2.yaml");
    std::fs::write(&path, format!("{softhsm2}{more}")).unwrap();
    SMALLEST.replace("profile: softhsm2", &format!("profile: {}", path.display()))
}

#[test]
fn a_device_with_few_sessions_is_not_asked_for_more() {
    let directory = tempfile::tempdir().unwrap();
    let text = with_profile(directory.path(), "sessions: { max: 3 }\n");
    assert!(Config::parse(text.as_bytes()).is_ok());
    let fault = Config::parse(format!("{text}limits: {{ sessions: 3 }}\n").as_bytes()).unwrap_err();
    assert!(fault.to_string().contains("`limits.sessions`: an HSM of profile softhsm2 has 3 sessions"), "{fault}");
    assert_eq!(fault.hint(), "set it to at most 2");
}

#[test]
fn the_module_s_own_files_must_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let softhsm2 = include_str!("../../hsm-profiles/softhsm2.yaml");
    let path = directory.path().join("profile.yaml");
    let files = "  files: [/proc/self/status, /nonexistent/hsm.conf]\nseal:";
    std::fs::write(&path, softhsm2.replacen("seal:", files, 1)).unwrap();
    let text = SMALLEST.replace("profile: softhsm2", &format!("profile: {}", path.display()));
    let fault = Config::parse(text.as_bytes()).unwrap_err();
    assert!(fault.to_string().contains("needs /nonexistent/hsm.conf, and it is not there"), "{fault}");
    assert!(fault.hint().contains("or set SOFTHSM2_CONF under token.environment"), "{}", fault.hint());
    let elsewhere = text.replace("label: kek", "label: kek\n  environment: { SOFTHSM2_CONF: /etc/x }");
    assert!(Config::parse(elsewhere.as_bytes()).is_ok());
}

#[test]
fn files_are_named_in_errors() {
    let found = Config::load(Path::new("/nonexistent/config.yaml")).unwrap_err().to_string();
    assert!(found.starts_with("configuration /nonexistent/config.yaml: the file cannot be read: "), "{found}");
    assert_eq!(error(""), "configuration: the file is empty");
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        cut in 0..EXAMPLE.len(),
        place in 0..EXAMPLE.len(),
        junk in prop::sample::select(vec![
            "[", "]", "{", "}", ": ", "- ", "? ", "&a ", "*a", "!t ", "|\n", ">\n", "\"", "'", "%", "@", "<<: ", "\n", "#", ",", "0x", "\u{0}",
        ]),
    ) {
        let damaged = format!("{}{junk}{}", &EXAMPLE[..place], &EXAMPLE[place..]);
        let _ = Config::parse(damaged.as_bytes());
        let _ = Config::parse(&damaged.as_bytes()[..cut]);
        let _ = Config::parse(&damaged.as_bytes()[cut..]);
    }
}

/// One line of the table in docs/configuration.md.
struct Row {
    key: &'static str,
    default: &'static str,
    range: &'static str,
}

fn rows() -> Vec<Row> {
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|line| {
        let cells: Vec<_> = line.split(" | ").collect();
        assert_eq!(cells.len(), 5, "{line}");
        Row { key: cells[0].trim_end_matches('`'), default: cells[2], range: cells[3] }
    })
    .collect()
}

/// The value at `key` of a configuration, put there or taken away.
fn with(text: &str, key: &str, value: Option<&str>) -> String {
    let mut root: Value = serde_yaml::from_str(text).unwrap();
    let (parents, name) =
        key.rsplit_once('.').map_or((vec![], key), |(parents, name)| (parents.split('.').collect(), name));
    let mut at = root.as_mapping_mut().unwrap();
    for parent in parents {
        let below = at.entry(Value::from(parent)).or_insert_with(|| serde_yaml::from_str("{}").unwrap());
        at = below.as_mapping_mut().unwrap();
    }
    match value {
        Some(value) => drop(at.insert(Value::from(name), serde_yaml::from_str(value).unwrap())),
        None => drop(at.remove(name)),
    }
    serde_yaml::to_string(&root).unwrap()
}

/// The keys that the reader allows in the mapping `within`, by its own words; `None` if it is not such a mapping.
fn allowed(within: &str) -> Option<Vec<String>> {
    let text = if within.is_empty() {
        with(SMALLEST, "zzz", Some("1"))
    } else {
        with(&with(SMALLEST, within, None), within, Some("{ zzz: 1 }"))
    };
    match Config::parse(text.as_bytes()) {
        Err(ConfigError::File(FileError { fault, .. })) => match *fault {
            strict::Fault::UnknownKey { allowed, .. } => Some(allowed),
            _ => None,
        },
        _ => None,
    }
}

#[test]
fn every_key_is_documented_and_no_other() {
    let mut schema = BTreeSet::new();
    let mut mappings = vec![String::new()];
    while let Some(within) = mappings.pop() {
        for name in allowed(&within).unwrap() {
            let key = if within.is_empty() { name } else { format!("{within}.{name}") };
            if allowed(&key).is_some() {
                mappings.push(key);
            } else {
                schema.insert(key);
            }
        }
    }
    let documented: BTreeSet<_> = rows().iter().map(|row| row.key.to_owned()).collect();
    assert_eq!(schema, documented);
    assert_eq!(documented.len(), rows().len());
    for name in Profile::names() {
        assert!(DOCUMENT.contains(&format!("`{name}`")), "profile {name}");
    }
}

#[test]
fn documented_defaults_are_the_code_s() {
    let mut defaults = 0;
    for Row { key, default, .. } in rows() {
        if default == "required" {
            let found = error(&with(SMALLEST, key, None));
            assert!(found.contains(&format!("missing key `{key}`")), "{found}");
        } else if let Some(default) = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
            let omitted = Config::parse(with(SMALLEST, key, None).as_bytes()).unwrap();
            let written = Config::parse(with(SMALLEST, key, Some(default)).as_bytes()).unwrap();
            assert_eq!(omitted, written, "{key}");
            defaults += 1;
        }
    }
    assert_eq!(defaults, 17);
}

#[test]
fn documented_ranges_are_the_code_s() {
    let mut ranges = 0;
    for Row { key, range, .. } in rows() {
        let words: Vec<_> = range.split('`').collect();
        let base =
            if key.starts_with("token.pin.") { with(SMALLEST, "token.pin", Some("{}")) } else { SMALLEST.to_owned() };
        let base = if key.starts_with("audit.") { with(&base, "audit.to", Some("/var/audit.log")) } else { base };
        let accepts = |value: &str| Config::parse(with(&base, key, Some(value)).as_bytes()).is_ok();
        if let ["", least, " to ", most, ""] = words[..] {
            let (least, most): (u64, u64) = (least.parse().unwrap(), most.parse().unwrap());
            for (value, good) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
                assert_eq!(accepts(&value.to_string()), good, "{key} {value}");
            }
            ranges += 1;
        } else if words.len() >= 3 && words[0].is_empty() && key != "cluster" {
            for value in words.iter().skip(1).step_by(2) {
                assert!(accepts(value), "{key} {value}");
            }
        } else if key == "socket.path" {
            assert_eq!(range, format!("absolute, at most {} bytes", crate::kms::socket::PATH_LIMIT));
        }
    }
    assert_eq!(ranges, 5);
}
