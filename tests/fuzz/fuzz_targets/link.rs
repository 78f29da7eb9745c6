//! The frames between front and worker: the same messages come out however the bytes arrive.
#![no_main]

use hsm_kms::wire::link::{Reply, Request, Start, Started};
use hsm_kms::wire::{FrameBuffer, MAX_FRAME_BYTES, append};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(piece).max(1);
    check::<Request>(bytes, piece);
    check::<Reply>(bytes, piece);
    check::<Start>(bytes, piece);
    check::<Started>(bytes, piece);
});

fn check<M: Message + Default + PartialEq>(bytes: &[u8], piece: usize) {
    let whole = read::<M>(bytes, bytes.len().max(1));
    assert!(whole == read::<M>(bytes, piece), "pieces of {piece}");
    let mut written = Vec::new();
    whole.0.iter().for_each(|message| append(message, &mut written));
    let again = read::<M>(&written, piece);
    assert!(again == (whole.0, None), "written and read");
}

/// The messages, and what is wrong with the rest.
fn read<M: Message + Default>(bytes: &[u8], piece: usize) -> (Vec<M>, Option<String>) {
    let (mut frames, mut messages) = (FrameBuffer::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        frames.push(piece);
        loop {
            match frames.take() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    assert!(messages.iter().all(|message: &M| message.encoded_len() <= 4 * MAX_FRAME_BYTES));
    (messages, None)
}
