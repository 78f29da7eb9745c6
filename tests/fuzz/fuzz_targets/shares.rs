//! The text of a share: one text only, beside blanks and case, and no slip of the pen makes another share of it.
#![no_main]

use hsm_kms::shares::Share;
use hsm_kms_fuzz::bech32m;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(&String::from_utf8_lossy(bytes));
    check(&bech32m("hks", &bytes[..bytes.len().min(100)]));
    // The version and counts that a share may have, so that the rest is tried more often.
    let mut share = [&[1, 2, 3, 4, 5, 2, 1][..], &bytes[..bytes.len().min(64)]].concat();
    if let Some(byte) = bytes.first() {
        share[5] = byte & 15;
        share[6] = byte >> 4;
    }
    check(&bech32m("hks", &share));
});

fn check(text: &str) {
    let share = match Share::parse(text) {
        Ok(share) => share,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    let plain = |text: &str| text.split_whitespace().collect::<String>().to_ascii_lowercase();
    let written = share.to_text();
    assert_eq!(plain(&written), plain(text));
    assert!(Share::parse(&written).is_ok_and(|again| again.is(&share)));
    assert!(Share::parse(&written.to_uppercase()).is_ok_and(|again| again.is(&share)));
    // To find the slip takes thousands of attempts: not with every share.
    if share.number() != 1 {
        return;
    }
    let mut wrong = written.to_string();
    let last = if wrong.ends_with('q') { 'p' } else { 'q' };
    wrong.pop();
    wrong.push(last);
    assert!(Share::parse(&wrong).is_err());
}
