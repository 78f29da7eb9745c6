//! A chain that was written by the writer, and what is done to it.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::audit::{Destination, Event, OnFull, Settings, Writer};

const LINES: usize = 6;

struct Log {
    folder: TempDir,
    path: PathBuf,
}

impl Log {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        Self { folder, path }
    }

    /// So many lines more, in a run of their own.
    fn write(&self, lines: usize) {
        let settings = Settings { to: Destination::File(self.path.clone()), chain: true, on_full: OnFull::Stop };
        let writer = Writer::start(&settings).unwrap();
        for number in 1..lines {
            writer.send(Event::KeyringRefused { reason: format!("{number}") }, None);
        }
        writer.stop(std::time::Duration::from_secs(5));
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.path).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    fn set(&self, lines: &[String]) {
        fs::write(&self.path, lines.iter().map(|line| line.clone() + "\n").collect::<String>()).unwrap();
    }

    fn verify(&self) -> Result<Verified, Fault> {
        verify(std::slice::from_ref(&self.path), None)
    }
}

#[test]
fn any_change_to_any_line_is_found_and_named() {
    let log = Log::new();
    log.write(LINES);
    let lines = log.lines();
    assert_eq!((lines.len(), log.verify().unwrap().lines), (LINES, LINES as u64));
    for position in 0..lines.len() {
        for byte in (0..lines[position].len()).step_by(7) {
            let mut changed = lines.clone();
            let mut bytes = changed[position].clone().into_bytes();
            bytes[byte] = if bytes[byte] == b'0' { b'1' } else { b'0' };
            changed[position] = String::from_utf8(bytes).unwrap();
            log.set(&changed);
            let Err(fault) = log.verify() else {
                // What nothing follows on is only noticed where it is about the chain: that is what a head is for.
                assert_eq!(position, lines.len() - 1, "line {position}, byte {byte}");
                continue;
            };
            let (line, position) = (usize::try_from(fault.line).unwrap(), position + 1);
            assert!(line == position || line == position + 1, "line {position}, byte {byte}: {fault}");
        }
        if position > 0 && position < lines.len() - 1 {
            let mut fewer = lines.clone();
            fewer.remove(position);
            log.set(&fewer);
            assert_eq!(log.verify().unwrap_err().line, position as u64 + 1);
            let mut moved = lines.clone();
            moved.swap(position, position + 1);
            log.set(&moved);
            assert_eq!(log.verify().unwrap_err().line, position as u64 + 1);
        }
    }
}

#[test]
fn what_was_taken_from_the_end_is_found_by_a_head_only() {
    let log = Log::new();
    log.write(LINES);
    let head = log.verify().unwrap().head;
    let has_head = || verify(std::slice::from_ref(&log.path), head.as_deref()).unwrap().has_head;
    assert!(has_head());
    let lines = log.lines();
    log.set(&lines[..LINES - 1]);
    assert!(!has_head());
    // More lines after it do not hide it.
    log.set(&lines);
    log.write(LINES);
    assert!(has_head());
}

#[test]
fn a_torn_line_stays_and_the_chain_goes_on_behind_it() {
    for cut in [1, 20, 100] {
        let log = Log::new();
        log.write(LINES);
        let text = fs::read_to_string(&log.path).unwrap();
        // `cut` bytes are missing, the line's end among them.
        fs::write(&log.path, &text[..text.len() - cut]).unwrap();
        assert!(log.verify().unwrap().unfinished > 0);
        log.write(LINES);
        let verified = log.verify().unwrap();
        assert_eq!((verified.torn, verified.unfinished), (1, 0));
        assert_eq!(verified.lines, 2 * LINES as u64 + 1);

        // The piece cannot be changed either, nor the line before it, nor can the word of it be taken away.
        let lines = log.lines();
        for position in [LINES - 2, LINES - 1] {
            let mut changed = lines.clone();
            changed[position] = changed[position].replacen('2', "3", 1);
            log.set(&changed);
            assert!(log.verify().is_err());
        }
        let mut without = lines.clone();
        without.remove(LINES);
        log.set(&without);
        assert!(log.verify().is_err());
    }
}

#[test]
fn files_follow_on_each_other_in_one_order() {
    let log = Log::new();
    log.write(LINES);
    let lines = log.lines();
    let parts: Vec<PathBuf> = (0..3).map(|number| log.folder.path().join(format!("part-{number}"))).collect();
    for (part, lines) in parts.iter().zip(lines.chunks(2)) {
        fs::write(part, lines.iter().map(|line| line.clone() + "\n").collect::<String>()).unwrap();
    }
    assert_eq!(verify(&parts, None).unwrap().lines, LINES as u64);
    assert!(verify(&parts[1..], None).unwrap().begins_after.is_some());
    for wrong in [[0, 2, 1], [1, 0, 2], [0, 0, 1]] {
        let wrong = wrong.map(|number| parts[number].clone());
        assert_eq!(verify(&wrong, None).unwrap_err().line, 1);
    }
    // A new chain in the second file: what stood between is not known.
    fs::write(&parts[1], lines[0].clone() + "\n").unwrap();
    assert!(matches!(verify(&parts[..2], None).unwrap_err().reason, FaultReason::Begins));
    fs::write(&parts[0], &lines[0]).unwrap();
    assert!(matches!(verify(&parts[..2], None).unwrap_err().reason, FaultReason::Unfinished));
    assert!(verify(&[log.folder.path().join("nothing")], None).unwrap_err().is_unreadable());
}

#[test]
fn what_is_no_chain_is_refused() {
    let log = Log::new();
    for text in [
        "x\n".to_owned(),
        "{}\n".to_owned(),
        "{\"event\":\"stop\"}\n".to_owned(),
        "\n\n".to_owned(),
        "{\"event\":\"stop\",\"previous\":\"none\",\"previous\":\"none\"}\n".to_owned(),
        "x".repeat(LONGEST_LINE + 1),
    ] {
        fs::write(&log.path, &text).unwrap();
        assert!(log.verify().is_err(), "{} bytes", text.len());
    }
    fs::write(&log.path, "").unwrap();
    assert_eq!(log.verify().unwrap(), Verified::default());
}

proptest! {
    #[test]
    fn damaged_files_are_refused_or_read_and_never_panic(
        place in any::<prop::sample::Index>(),
        junk in prop::collection::vec(any::<u8>(), 0..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let log = Log::new();
        log.write(3);
        let mut bytes = fs::read(&log.path).unwrap();
        let original = bytes.clone();
        let place = place.index(bytes.len());
        bytes.splice(place..place, junk);
        bytes.truncate(cut.index(bytes.len()) + 1);
        fs::write(&log.path, &bytes).unwrap();
        if let Ok(verified) = log.verify() {
            let kept = bytes.len() - verified.unfinished;
            prop_assert!(original.starts_with(&bytes[..kept]) || place + 200 > original.len() || verified.lines < 3);
        }
    }
}
