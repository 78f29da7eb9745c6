//! What a keyring may become, and what its file must be.

use proptest::prelude::*;

use super::history::{follow, settle};
use super::*;
use crate::record::UtcTime;

fn path(kek: usize) -> RecordPath {
    format!("kek-{kek}.json").parse().unwrap()
}

fn stage(kek: usize) -> Change {
    let digest = Sha256Digest::of([u8::try_from(kek).unwrap()]);
    Change::Stage { record: path(kek), record_sha256: digest }
}

fn activate(kek: usize) -> Change {
    Change::Activate { record: path(kek), at: None, forced: false }
}

fn retire(kek: usize) -> Change {
    Change::Retire { record: path(kek), inventories: Vec::new(), forced: true }
}

fn begun() -> KeyringFile {
    let init = Change::Init { record: path(1), record_sha256: Sha256Digest::of(b"1") };
    KeyringFile::new("prod".parse().unwrap()).after(init, None).unwrap()
}

fn after(file: &KeyringFile, changes: &[Change]) -> KeyringFile {
    changes.iter().fold(file.clone(), |file, change| file.after(change.clone(), None).unwrap())
}

fn states(file: &KeyringFile) -> Vec<(State, u64)> {
    file.at(UtcTime::now()).iter().map(|entry| (entry.state, entry.activations)).collect()
}

#[test]
fn states_follow_the_events() {
    use State::{Active, Destroyed, Retired, Staged};
    let file = after(&begun(), &[stage(2), stage(3)]);
    assert_eq!(states(&file), [(Active, 1), (Staged, 0), (Staged, 0)]);
    let file = after(&file, &[activate(2)]);
    assert_eq!(states(&file), [(Retired, 1), (Active, 1), (Staged, 0)]);
    let file = after(&file, &[activate(1), retire(2), retire(3)]);
    assert_eq!(states(&file), [(Active, 2), (Destroyed, 1), (Destroyed, 0)]);
    let file = after(&file, &[Change::Restore { record: path(2) }, Change::Restore { record: path(3) }]);
    assert_eq!(states(&file), [(Active, 2), (Retired, 1), (Staged, 0)]);
}

#[test]
fn what_a_state_forbids_is_refused() {
    let file = after(&begun(), &[stage(2), stage(3), retire(3)]);
    for (change, why) in [
        (Change::Init { record: path(4), record_sha256: Sha256Digest::of(b"4") }, "a history begins with `init`"),
        (stage(2), "the keyring has the record kek-2.json already"),
        (activate(1), "the KEK of kek-1.json is active: it seals already"),
        (activate(3), "the KEK of kek-3.json is destroyed: restore it first"),
        (activate(4), "the keyring has no record kek-4.json"),
        (retire(1), "the KEK of kek-1.json is active: activate another one first"),
        (retire(3), "it is out of service already"),
        (Change::Restore { record: path(2) }, "only what is out of service is restored"),
        (Change::Cancel { record: path(2) }, "no activation of the KEK of kek-2.json is planned"),
    ] {
        let refusal = file.after(change, None).unwrap_err();
        assert!(refusal.to_string().contains(why), "{refusal}");
        assert!(!refusal.hint().is_empty());
    }
    let many: Vec<_> = (2..=32).map(stage).collect();
    assert_eq!(after(&begun(), &many).after(stage(33), None), Err(Refusal::TooMany));
}

#[test]
fn a_plan_comes_at_its_time_and_the_last_plan_counts() {
    let at = |text: &str| text.parse::<UtcTime>().unwrap();
    let plan = |kek, time| Change::Activate { record: path(kek), at: Some(at(time)), forced: false };
    let file = after(&begun(), &[stage(2), stage(3), plan(2, "2999-01-01T00:00:00Z"), plan(3, "2999-01-02T00:00:00Z")]);
    assert_eq!(file.planned(), Some(at("2999-01-02T00:00:00Z")));
    let active = |time: &str| file.at(at(time)).iter().position(|entry| entry.state == State::Active);
    assert_eq!(active("2999-01-01T12:00:00Z"), Some(0));
    assert_eq!(active("2999-01-02T00:00:00Z"), Some(2));
    assert_eq!(KeyringFile::parse(file.to_json().as_bytes()).unwrap(), file);
    assert_eq!(after(&file, &[Change::Cancel { record: path(3) }]).planned(), None);
    assert_eq!(after(&file, &[activate(2)]).planned(), None, "an activation now takes the place of a plan");
}

#[test]
fn a_file_is_read_as_it_was_written_and_no_other_way() {
    let file = after(&begun(), &[stage(2), activate(2)]);
    let text = file.to_json();
    assert_eq!(KeyringFile::parse(text.as_bytes()).unwrap(), file);
    assert!(text.starts_with("{\n  \"version\": 1,\n  \"cluster\": \"prod\",\n  \"keks\": [\n"), "{text}");
    for (old, new, why) in [
        ("\"version\": 1", "\"version\": 2", "version 2 is not known"),
        ("\"cluster\": \"prod\"", "\"cluster\": \"test\"", "an event does not follow the one before it"),
        ("\"state\": \"active\"", "\"state\": \"staged\"", "the states are not what the history adds up to"),
        ("\"state\": \"active\"", "\"state\": \"gone\"", "`keks[1].state`: expected one of `staged`"),
        ("\"activations\": 1", "\"activations\": 2", "the states are not what the history adds up to"),
        ("\"kind\": \"activate\"", "\"kind\": \"cancel\"", "history[2].change"),
        ("kek-2.json", "../kek-2.json", "expected a path from the keyring's own folder on"),
        ("  \"cluster\"", " \"cluster\"", "not in the form that it was written in"),
        ("\"head\": \"", "\"more\": 1,\n  \"head\": \"", "unknown key `more`"),
    ] {
        assert!(text.contains(old), "{old}");
        let error = KeyringFile::parse(text.replacen(old, new, 1).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let empty = KeyringFile::new("prod".parse().unwrap()).to_json();
    assert!(KeyringFile::parse(empty.as_bytes()).unwrap_err().to_string().contains("begins with `init`"));
}

#[test]
fn a_history_knows_its_own_past() {
    let begun = begun();
    let later = after(&begun, &[stage(2), activate(2)]);
    assert_eq!(later.events_after(later.head()), Some(0));
    assert_eq!(later.events_after(begun.head()), Some(2));
    assert_eq!(begun.events_after(later.head()), None);
    let fork = after(&begun, &[stage(3)]);
    assert_eq!(later.events_after(fork.head()), None);
}

proptest! {
    /// Whatever is asked for: one KEK is active, no count goes down, no activation has the key_id of another, and the file reads back.
    #[test]
    fn no_order_of_commands_breaks_a_rule(steps in prop::collection::vec((0_u8..5, 1_usize..5), 0..40)) {
        let mut file = begun();
        let mut announced = vec![(path(1), 1)];
        for (what, kek) in steps {
            let change = match what {
                0 => stage(kek),
                1 => activate(kek),
                2 => retire(kek),
                3 => Change::Restore { record: path(kek) },
                _ => Change::Cancel { record: path(kek) },
            };
            let before = file.at(UtcTime::now());
            let Ok(next) = file.after(change, None) else { continue };
            file = next;
            let now = file.at(UtcTime::now());
            let active: Vec<_> = now.iter().filter(|entry| entry.state == State::Active).collect();
            prop_assert_eq!(active.len(), 1);
            for (before, now) in before.iter().zip(&now) {
                prop_assert!(before.record == now.record && before.activations <= now.activations);
            }
            let announcement = (active[0].record.clone(), active[0].activations);
            if announced.last() != Some(&announcement) {
                prop_assert!(!announced.contains(&announcement), "{:?} again", announcement);
                announced.push(announcement);
            }
        }
        let text = file.to_json();
        prop_assert_eq!(KeyringFile::parse(text.as_bytes()).unwrap(), file.clone());
        let mut replayed = Vec::new();
        for event in file.history() {
            follow(&mut replayed, event).unwrap();
        }
        settle(&mut replayed, UtcTime::now());
        prop_assert_eq!(replayed, file.at(UtcTime::now()));
    }
}
