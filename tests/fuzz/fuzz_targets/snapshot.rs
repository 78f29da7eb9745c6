//! A snapshot of etcd: a hostile file ends the walk, and never the program; nothing is met that the file has no room for.
#![no_main]

use std::ops::ControlFlow;

use hsm_kms::etcd::snapshot::Snapshot;
use hsm_kms_fuzz::file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = file(&pages(bytes));
    let snapshot = match Snapshot::open(&path) {
        Ok(snapshot) => snapshot,
        Err(error) => return drop(error.to_string()),
    };
    drop(snapshot.check_digest(&mut |_| {}));
    let mut met = 0_usize;
    let walked = snapshot.newest(&mut |_| {}, &mut |entry| {
        met += entry.key.len() + entry.value.len();
        ControlFlow::Continue(())
    });
    assert!(met <= 512 * 1024, "more than the file can hold");
    assert!(walked.faults.iter().all(|fault| !fault.chars().any(char::is_control)));
});

/// The fuzzer's bytes without the long runs of zeros that pages end with: `ff 00 n` is n times 16 zeros, and `ff 00 00` itself `ff 00`.
fn pages(bytes: &[u8]) -> Vec<u8> {
    let mut pages = Vec::new();
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        rest = match after {
            [0, 0, after @ ..] if first == 0xff => {
                pages.extend([0xff, 0]);
                after
            }
            [0, count, after @ ..] if first == 0xff => {
                pages.resize(pages.len() + 16 * usize::from(*count), 0);
                after
            }
            _ => {
                pages.push(first);
                after
            }
        };
        if pages.len() > 256 * 1024 {
            break;
        }
    }
    pages
}
