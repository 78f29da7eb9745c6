//! The sealed blob: one encoding only, and never longer than the API server stores.
#![no_main]

use hsm_kms::envelope::{Blob, Context};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(blob) = Blob::parse(bytes) else { return };
    assert_eq!(blob.encode(), bytes);
    assert!(bytes.len() <= 1024);
    assert_eq!(blob.iv().len(), usize::from(blob.form().iv_length));
    assert_eq!(Blob::new(blob.form(), blob.iv(), blob.ciphertext()), Ok(blob));
    let context = |cluster: &str| *Context::proof(blob.form(), cluster, blob.iv(), []).as_bytes();
    assert_ne!(context("a"), context("b"));
});
