//! The frames between front, launcher and worker: `proto/link.proto`, each message behind its length.

mod descriptors;
mod spin;

use prost::Message;
use thiserror::Error;
use zeroize::Zeroize;

pub use self::descriptors::{MAX_DESCRIPTORS, Receiver, send};
pub use self::spin::Spin;

/// The generated messages of `proto/link.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::pedantic, reason = "generated")]
pub mod link {
    tonic::include_proto!("link");
}

/// Longest frame, in bytes. The longest real one is a Start with some KEKs.
pub const MAX_FRAME_BYTES: usize = 256 * 1024;

/// A peer that does not speak this protocol.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The bytes are no message.
    #[error("a frame on the worker link is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The announced length is over [`MAX_FRAME_BYTES`].
    #[error("a frame on the worker link announces {0} bytes")]
    TooLong(usize),
}

/// Appends `message` as one frame.
pub fn append(message: &impl Message, buffer: &mut Vec<u8>) {
    buffer.reserve(message.encoded_len() + 10);
    // Encoding into a Vec cannot run out of room.
    let _ = message.encode_length_delimited(buffer);
}

/// Bytes as they arrive, taken out as whole messages. Wiped when they have been read: they hold seeds.
#[derive(Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl FrameBuffer {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes are there.
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let mut cursor = rest;
        let length = match prost::decode_length_delimiter(&mut cursor) {
            Ok(length) => length,
            // A length may itself arrive in pieces; no real one is longer than this.
            Err(_) if rest.len() < 10 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = cursor.get(..length) else { return Ok(None) };
        let message = M::decode(body)?;
        self.taken += rest.len() - cursor.len() + length;
        if self.is_empty() {
            self.wipe();
        }
        Ok(Some(message))
    }

    /// Whether a further whole or partial frame waits.
    pub fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    fn wipe(&mut self) {
        self.bytes.as_mut_slice().zeroize();
        self.bytes.clear();
        self.taken = 0;
    }
}

impl Drop for FrameBuffer {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::link::{Reply, Request, Sealed, reply};
    use super::*;

    fn reply(id: u64) -> Reply {
        let sealed = Sealed { iv: vec![7; 12], ciphertext: vec![9; 300] };
        Reply { id, outcome: Some(reply::Outcome::Sealed(sealed)), calls: Vec::new() }
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let mut bytes = Vec::new();
        for id in 0..5 {
            append(&reply(id), &mut bytes);
        }
        for piece in [1, 2, 3, 100, 317, bytes.len()] {
            let mut frames = FrameBuffer::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(piece) {
                frames.push(chunk);
                while let Some(message) = frames.take::<Reply>().unwrap() {
                    found.push(message);
                }
            }
            assert!(frames.is_empty());
            assert_eq!(found, (0..5).map(reply).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_read() {
        let mut frames = FrameBuffer::default();
        frames.push(&[0xff, 0xff, 0xff, 0x7f]);
        assert!(matches!(frames.take::<Reply>(), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_the_same_way_in_any_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            whole in 0_usize..3,
            piece in 1_usize..50,
        ) {
            let mut sent = Vec::new();
            (0..whole as u64).for_each(|id| append(&reply(id), &mut sent));
            sent.extend(bytes);
            prop_assert_eq!(read::<Reply>(&sent, piece), read::<Reply>(&sent, sent.len().max(1)));
            prop_assert_eq!(read::<Request>(&sent, piece), read::<Request>(&sent, sent.len().max(1)));
        }
    }

    fn read<M: Message + Default>(bytes: &[u8], piece: usize) -> (Vec<M>, bool) {
        let (mut frames, mut messages) = (FrameBuffer::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            frames.push(piece);
            loop {
                match frames.take() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(_) => return (messages, false),
                }
            }
        }
        (messages, true)
    }
}
