//! Whole ceremonies on a terminal, by people who type, on each of the modules.

use serde_json::json;

use super::copies::Copy;
use super::staged::{PEOPLE, Staged, clock};
use super::terminal::Terminal;
use crate::harness::{Config, Plugin, TestToken, text};
use crate::parts;
use crate::refusal::serve_refuses;

/// What is typed until the KEK is made.
pub fn open(terminal: &mut Terminal, staged: &Staged) {
    for (name, _) in PEOPLE {
        terminal.answer(&format!("{name}, "), name);
    }
    terminal.answer("time on the wall clock", &clock());
    terminal.answer("the same as on every printed script?", "yes");
    terminal.answer("the release that was agreed to?", "yes");
    pin(terminal, staged);
}

/// The two halves, each by its keeper: the custodian, then the operator.
pub fn pin(terminal: &mut Terminal, staged: &Staged) {
    terminal.answer("Mary Somerville: half 1", &staged.halves[0]);
    terminal.answer("Grace Hopper: half 2", &staged.halves[1]);
}

/// What is typed once the KEK is made.
pub fn close(terminal: &mut Terminal, staged: &Staged, copies: &[Copy]) {
    for copy in copies {
        terminal.until_asked();
        copy.make();
        terminal.answer("type \"copied\"", "copied");
        pin(terminal, staged);
    }
    if copies.len() < 2 {
        terminal.answer("type NO-RECOVERY", "NO-RECOVERY");
    }
    for bag in ["A 0017", "none"] {
        terminal.answer("number of bag", bag);
        terminal.answer("the same again", bag);
    }
}

/// Arguments of a run on a terminal, after a rehearsal.
pub fn arguments(staged: &Staged, more: &[&str]) -> Vec<String> {
    let mut arguments = staged.bare_arguments();
    arguments.extend(["--rehearsal".to_owned(), staged.rehearse()]);
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    arguments
}

/// What stood on the screen: on 80 columns, in plain text, and not the PIN.
pub fn is_plain(screen: &str, staged: &Staged) {
    let temporary = text(&std::env::temp_dir());
    // A path is as long as it is.
    for line in screen.lines().filter(|line| !line.contains(&temporary)) {
        assert!(line.trim_end().chars().count() <= 80, "more than 80 columns: {line:?}");
    }
    let control = screen.chars().find(|c| c.is_control() && !matches!(c, '\r' | '\n'));
    assert_eq!(control, None, "{screen:?}");
    for half in &staged.halves {
        // A short one may stand there by chance.
        assert!(half.len() < 8 || !screen.contains(half), "a half of the PIN was shown:\n{screen}");
    }
}

#[tokio::test]
async fn a_ceremony_with_two_copies_ends_with_a_kek_that_is_served() {
    let mut staged = Staged::new();
    let copies = staged.with_copies();
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    open(&mut terminal, &staged);
    close(&mut terminal, &staged, &copies);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    is_plain(&screen, &staged);
    assert!(!screen.contains("NO-RECOVERY") && !screen.contains("REHEARSAL"), "{screen}");
    for person in PEOPLE {
        assert!(screen.contains(person.0), "{screen}");
    }

    let record = staged.record();
    assert_eq!((&record["kind"], &record["recovery"]), (&json!("production"), &json!("copies")));
    let witnessed = &record["witnessed"];
    assert_eq!(witnessed["people"].as_array().unwrap().len(), 4);
    assert_eq!(witnessed["plan_sha256"], staged.lint()["plan_sha256"]);
    assert_eq!((&witnessed["origin"], &witnessed["exceptions"]), (&json!("generated"), &json!([])));
    let serials: Vec<_> = copies.iter().map(|copy| json!(copy.serial)).collect();
    assert_eq!(
        witnessed["copies"].as_array().unwrap().iter().map(|c| c["serial"].clone()).collect::<Vec<_>>(),
        serials
    );
    staged.has_the_key_of_its_record();

    // From the token itself, and from a copy alone.
    let served = |section: &serde_json::Value, name: &str| {
        let mut config = Config::on(section, staged.token.directory(), &staged.output().join("kek-record.json"), name);
        config.value["kek"].as_object_mut().unwrap().remove("allow_trial");
        config
    };
    let mut plugin = Plugin::start(&served(&staged.token.section(), "plugin")).healthy().await;
    plugin.stop().await;
    let mut standby = served(&staged.token.section(), "standby");
    let fault = crate::fault_module::FaultModule::new(&staged.token, "gone");
    fault.stand_in_front(&mut standby.value["token"]);
    fault.always("C_GetSlotList", &json!("no_slots"));
    standby.value["standby"] = json!([{"token": copies[1].section(), "serial": copies[1].serial}]);
    let mut plugin = Plugin::start(&standby).healthy().await;
    plugin.stop().await;
    parts::record_run(staged.token.profile);
}

#[tokio::test]
async fn a_kek_without_copies_is_served_only_to_those_who_say_that_they_know() {
    let staged = Staged::new();
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    open(&mut terminal, &staged);
    close(&mut terminal, &staged, &[]);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    is_plain(&screen, &staged);
    assert!(screen.contains("NO-RECOVERY"));
    no_recovery_is_refused(&staged).await;
}

/// `serve` refuses the record, and with `kek.accept_data_loss` serves it.
async fn no_recovery_is_refused(staged: &Staged) {
    assert_eq!(staged.record()["recovery"], "none");
    let record = staged.output().join("kek-record.json");
    let mut config = Config::on(&staged.token.section(), staged.token.directory(), &record, "plugin");
    config.value["kek"].as_object_mut().unwrap().remove("allow_trial");
    serve_refuses(config.write(), "the ceremony proved no copies of the KEK");
    config.value["kek"]["accept_data_loss"] = json!(true);
    let mut plugin = Plugin::start(&config).healthy().await;
    plugin.stop().await;
}

/// Yubico's own driver on a simulated device: PIN of a form of its own, a key type of its own, no session keys.
#[tokio::test]
async fn a_ceremony_on_yubicos_driver() {
    let mut staged = Staged::on(TestToken::yubihsm2());
    staged.plan["kek"]["permit"] = json!(["CKA_KEY_GEN_MECHANISM", "CKA_ALLOWED_MECHANISMS"]);
    let mut terminal = Terminal::start(&arguments(&staged, &[]));
    open(&mut terminal, &staged);
    close(&mut terminal, &staged, &[]);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    is_plain(&screen, &staged);
    assert_eq!(staged.record()["deviations"].as_array().unwrap().len(), 2);
    no_recovery_is_refused(&staged).await;
}
