//! The answer to Decrypt, written so that its seed is not left behind in the connection.
//!
//! `h2` copies the beginning of what it sends, up to 1024 bytes, into a buffer that a connection keeps as long as it lives and does
//! not wipe. So the seed stands behind as many zeros: the same field, twice. Of such, each reader takes the last (Protocol Buffers,
//! "Encoding", "Last One Wins"; it is among the conformance tests).

use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, bytes as field, skip_field};
use prost::{DecodeError, Message};

/// `v2.DecryptResponse` of the Kubernetes KMS v2 API (`k8s.io/kms/apis/v2/api.proto`). Its Debug tells only a length.
#[derive(Clone, Default, PartialEq)]
pub struct DecryptResponse {
    /// The opened seed.
    pub plaintext: Bytes,
}

const PLAINTEXT_TAG: u32 = 1;

/// `CHAIN_THRESHOLD_WITHOUT_VECTORED_IO` of `h2`; the test in `tests/it/memory.rs` fails if it grows.
const PADDING: Bytes = Bytes::from_static(&[0; 1024]);

impl Message for DecryptResponse {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        field::encode(PLAINTEXT_TAG, &PADDING, buffer);
        field::encode(PLAINTEXT_TAG, &self.plaintext, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            PLAINTEXT_TAG => field::merge(wire_type, &mut self.plaintext, buffer, context),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        field::encoded_len(PLAINTEXT_TAG, &PADDING) + field::encoded_len(PLAINTEXT_TAG, &self.plaintext)
    }

    fn clear(&mut self) {
        self.plaintext.clear();
    }
}

impl std::fmt::Debug for DecryptResponse {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "DecryptResponse({} bytes)", self.plaintext.len())
    }
}
