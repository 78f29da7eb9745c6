//! What lies in the annotation: a seed, sealed to one recipient. It comes back from etcd, that is, from the attacker.

use thiserror::Error;

use super::recipient::Scheme;

/// A well-formed recovery blob. Layout v1: version 1, scheme code (one byte each), then as many bytes as the scheme makes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecoveryBlob<'a> {
    scheme: Scheme,
    sealed: &'a [u8],
}

/// Why bytes are not a recovery blob.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BlobError {
    /// It is shorter or longer than its scheme makes it.
    #[error("a recovery blob of {found} bytes, which its scheme does not make")]
    Length {
        /// Bytes.
        found: usize,
    },
    /// The scheme code is unknown to this release.
    #[error("recovery blob has scheme {code}, which this release does not know")]
    Scheme {
        /// The code.
        code: u8,
    },
    /// The version is unknown to this release.
    #[error("recovery blob has version {version}, this release knows version {VERSION}")]
    Version {
        /// The version.
        version: u8,
    },
}

impl<'a> RecoveryBlob<'a> {
    pub(super) fn new(scheme: Scheme, sealed: &'a [u8]) -> Result<Self, BlobError> {
        let fits = scheme.sealed_bytes().contains(&sealed.len());
        let found = sealed.len().saturating_add(HEADER_BYTES);
        if fits { Ok(Self { scheme, sealed }) } else { Err(BlobError::Length { found }) }
    }

    /// Reads a blob strictly.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let Some((&[version, code], sealed)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(BlobError::Length { found: bytes.len() });
        };
        if version != VERSION {
            return Err(BlobError::Version { version });
        }
        Self::new(Scheme::from_code(code).ok_or(BlobError::Scheme { code })?, sealed)
    }

    /// The bytes of the annotation.
    pub fn encode(&self) -> Vec<u8> {
        [&[VERSION, self.scheme.code()], self.sealed].concat()
    }

    /// The recipient's scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What the scheme made.
    pub fn sealed(&self) -> &'a [u8] {
        self.sealed
    }
}

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same_way(code: u8, length in 0_usize..2200, fill: u8) {
            let bytes = [&[VERSION, code][..], &vec![fill; length]].concat();
            let scheme = Scheme::from_code(code);
            let fits = scheme.is_some_and(|scheme| scheme.sealed_bytes().contains(&length));
            match RecoveryBlob::parse(&bytes) {
                Ok(blob) => prop_assert!(fits && blob.encode() == bytes && Some(blob.scheme()) == scheme),
                Err(_) => prop_assert!(!fits),
            }
        }

        #[test]
        fn other_versions_and_codes_are_refused(version: u8, code: u8, length in prop::sample::select(vec![384, 512, 1168])) {
            let bytes = [&[version, code][..], &vec![7; length]].concat();
            let read = RecoveryBlob::parse(&bytes);
            prop_assert!(read.is_err() || (version == VERSION && (1..=3).contains(&code)));
        }
    }
}
