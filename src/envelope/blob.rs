//! The sealed blob: what Encrypt returns and etcd keeps. It comes back from etcd, that is, from the attacker.

use thiserror::Error;

use crate::seal::{IvLayout, Seal, SealForm};

/// Most bytes of a sealed blob: what the API server stores at most (Kubernetes `kmsv2/envelope.go`).
pub const MAX_BLOB_BYTES: usize = 1024;

/// Most bytes that a blob may be longer than its plaintext, for every seal, now and later.
pub const MAX_OVERHEAD_BYTES: usize = 96;

/// Most bytes that can be sealed.
pub const MAX_PLAINTEXT_BYTES: usize = MAX_BLOB_BYTES - MAX_OVERHEAD_BYTES;

/// A well-formed sealed blob. That it is authentic is known only once the HSM has opened it.
///
/// Layout v1: `hkms`, version 1, seal code, IV layout code, IV length (one byte each), IV, ciphertext with tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Blob<'a> {
    form: SealForm,
    iv: &'a [u8],
    ciphertext: &'a [u8],
}

impl<'a> Blob<'a> {
    /// A blob of these parts, if they fit the form: IV length, at least one byte beside the tag, 1024 bytes in all.
    pub fn new(form: SealForm, iv: &'a [u8], ciphertext: &'a [u8]) -> Result<Self, BlobError> {
        if !form.is_consistent() {
            return Err(BlobError::IvLength { found: form.iv_length.into() });
        }
        if iv.len() != usize::from(form.iv_length) {
            return Err(BlobError::IvLength { found: iv.len() });
        }
        if ciphertext.len() < form.shortest_ciphertext() {
            return Err(BlobError::Truncated { bytes: HEADER_BYTES + iv.len() + ciphertext.len() });
        }
        let bytes = HEADER_BYTES.saturating_add(iv.len()).saturating_add(ciphertext.len());
        if bytes > MAX_BLOB_BYTES {
            return Err(BlobError::TooLong { bytes });
        }
        Ok(Self { form, iv, ciphertext })
    }

    /// Reads a blob strictly: every byte has exactly one meaning, and [`Blob::encode`] gives the same bytes back.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        if bytes.len() > MAX_BLOB_BYTES {
            return Err(BlobError::TooLong { bytes: bytes.len() });
        }
        let truncated = BlobError::Truncated { bytes: bytes.len() };
        let Some((&[m0, m1, m2, m3, version, seal, iv_layout, iv_length], rest)) = bytes.split_first_chunk() else {
            return Err(truncated);
        };
        if [m0, m1, m2, m3] != MAGIC {
            return Err(BlobError::NotOurs);
        }
        if version != VERSION {
            return Err(BlobError::Version { version });
        }
        let form = SealForm {
            seal: Seal::from_code(seal).ok_or(BlobError::Seal { code: seal })?,
            iv_layout: IvLayout::from_code(iv_layout).ok_or(BlobError::IvLayout { code: iv_layout })?,
            iv_length,
        };
        if !form.is_consistent() {
            return Err(BlobError::IvLength { found: iv_length.into() });
        }
        let (iv, ciphertext) = rest.split_at_checked(iv_length.into()).ok_or(truncated)?;
        Self::new(form, iv, ciphertext)
    }

    /// The bytes that Encrypt returns.
    pub fn encode(&self) -> Vec<u8> {
        [&header(self.form), self.iv, self.ciphertext].concat()
    }

    /// How it was sealed.
    pub fn form(&self) -> SealForm {
        self.form
    }

    /// The IV.
    pub fn iv(&self) -> &'a [u8] {
        self.iv
    }

    /// The ciphertext, with the tag at its end.
    pub fn ciphertext(&self) -> &'a [u8] {
        self.ciphertext
    }
}

/// A sealed blob that keeps its own bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OwnedBlob {
    form: SealForm,
    iv: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl OwnedBlob {
    /// The blob.
    pub fn as_blob(&self) -> Blob<'_> {
        Blob { form: self.form, iv: &self.iv, ciphertext: &self.ciphertext }
    }
}

impl From<Blob<'_>> for OwnedBlob {
    fn from(blob: Blob<'_>) -> Self {
        Self { form: blob.form, iv: blob.iv.to_vec(), ciphertext: blob.ciphertext.to_vec() }
    }
}

/// Why bytes are not a sealed blob that this release can open. Shows sizes and public codes only.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BlobError {
    /// The IV length is not what the seal and IV layout allow.
    #[error("sealed blob has an IV of {found} bytes, which its seal and IV layout do not take")]
    IvLength {
        /// Bytes, as the blob says or has them.
        found: usize,
    },
    /// The IV layout code is unknown to this release.
    #[error("sealed blob has IV layout {code}, which this release does not know")]
    IvLayout {
        /// The code.
        code: u8,
    },
    /// The first four bytes are not those of a sealed blob.
    #[error("ciphertext is not a sealed blob of hsm-kms")]
    NotOurs,
    /// The seal code is unknown to this release.
    #[error("sealed blob has seal {code}, which this release does not know")]
    Seal {
        /// The code.
        code: u8,
    },
    /// Longer than any blob.
    #[error("ciphertext has {bytes} bytes, a sealed blob at most {MAX_BLOB_BYTES}")]
    TooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// Shorter than its own header, IV, tag and one byte of ciphertext.
    #[error("sealed blob is cut short: {bytes} bytes are too few")]
    Truncated {
        /// Bytes found.
        bytes: usize,
    },
    /// The layout version is unknown to this release.
    #[error("sealed blob has version {version}, which this release does not know")]
    Version {
        /// The version.
        version: u8,
    },
}

impl BlobError {
    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NotOurs => "it was made by another provider, or damaged: check which provider wrote it",
            Self::IvLayout { .. } | Self::Seal { .. } | Self::Version { .. } => {
                "it was made by a later release, or damaged: use the release that made it, or a later one"
            }
            Self::IvLength { .. } | Self::TooLong { .. } | Self::Truncated { .. } => {
                "it was damaged after it was made: restore it from a backup"
            }
        }
    }
}

/// The first eight bytes of a blob of this form. They are part of the context, so none of them can be changed.
pub(super) fn header(form: SealForm) -> [u8; HEADER_BYTES] {
    let [m0, m1, m2, m3] = MAGIC;
    [m0, m1, m2, m3, VERSION, form.seal.code(), form.iv_layout.code(), form.iv_length]
}

const MAGIC: [u8; 4] = *b"hkms";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(ciphertext_bytes: usize) -> Vec<u8> {
        [&header(SealForm::AES_GCM_SENT)[..], &[0xaa; 12], &vec![0xbb; ciphertext_bytes]].concat()
    }

    fn changed(position: usize, value: u8) -> Vec<u8> {
        let mut bytes = blob(48);
        bytes[position] = value;
        bytes
    }

    #[test]
    fn every_fault_has_its_own_error() {
        for (bytes, error) in [
            (vec![], BlobError::Truncated { bytes: 0 }),
            (vec![b'h'; 7], BlobError::Truncated { bytes: 7 }),
            (vec![0; 8], BlobError::NotOurs),
            (blob(0)[..19].to_vec(), BlobError::Truncated { bytes: 19 }),
            (blob(0), BlobError::Truncated { bytes: 20 }),
            (blob(16), BlobError::Truncated { bytes: 36 }),
            (blob(1005), BlobError::TooLong { bytes: 1025 }),
            (changed(0, b'H'), BlobError::NotOurs),
            (changed(4, 0), BlobError::Version { version: 0 }),
            (changed(4, 2), BlobError::Version { version: 2 }),
            (changed(5, 0), BlobError::Seal { code: 0 }),
            (changed(5, 5), BlobError::Seal { code: 5 }),
            // CBC takes 16 bytes, key wrap takes no IV, and GCM never has it inside.
            (changed(5, 4), BlobError::IvLength { found: 12 }),
            (changed(5, 2), BlobError::IvLength { found: 12 }),
            (changed(6, 5), BlobError::IvLength { found: 12 }),
            (changed(6, 0), BlobError::IvLayout { code: 0 }),
            (changed(6, 6), BlobError::IvLayout { code: 6 }),
            (changed(7, 11), BlobError::IvLength { found: 11 }),
            (changed(7, 255), BlobError::IvLength { found: 255 }),
        ] {
            assert_eq!(Blob::parse(&bytes), Err(error));
            assert!(!error.hint().is_empty());
        }
        assert!(Blob::parse(&blob(17)).is_ok());
        assert!(Blob::parse(&blob(1004)).is_ok());
    }

    #[test]
    fn parts_that_do_not_fit_make_no_blob() {
        let form = SealForm::AES_GCM_SENT;
        let wrong_form = SealForm { iv_length: 13, ..form };
        assert_eq!(Blob::new(form, &[0; 11], &[0; 17]), Err(BlobError::IvLength { found: 11 }));
        assert_eq!(Blob::new(wrong_form, &[0; 13], &[0; 17]), Err(BlobError::IvLength { found: 13 }));
        assert_eq!(Blob::new(wrong_form, &[0; 12], &[0; 17]), Err(BlobError::IvLength { found: 13 }));
        assert_eq!(Blob::new(form, &[0; 12], &[0; 16]), Err(BlobError::Truncated { bytes: 36 }));
        assert_eq!(Blob::new(form, &[0; 12], &[0; 1005]), Err(BlobError::TooLong { bytes: 1025 }));
    }

    #[test]
    fn the_longest_plaintext_fits_every_overhead() {
        assert_eq!(MAX_PLAINTEXT_BYTES, 928);
        for form in forms() {
            let overhead = HEADER_BYTES + usize::from(form.iv_length) + form.shortest_ciphertext() - 1;
            assert!(overhead <= MAX_OVERHEAD_BYTES, "{form:?}: {overhead}");
        }
    }

    /// Every consistent form.
    fn forms() -> Vec<SealForm> {
        let mut forms = Vec::new();
        for seal in Seal::ALL {
            for iv_layout in IvLayout::ALL {
                forms.extend((0..=255).map(|iv_length| SealForm { seal, iv_layout, iv_length }));
            }
        }
        forms.retain(|form| form.is_consistent());
        forms
    }

    #[test]
    fn there_are_as_many_forms_as_documented() {
        // GCM: four layouts with 12 or 16 bytes, and inside; key wrap; CCM; CBC.
        assert_eq!(forms().len(), 4 * 2 + 1 + 1 + 1 + 1);
    }

    proptest! {
        #[test]
        fn parts_come_back(
            form in prop::sample::select(forms()),
            iv: [u8; 16],
            ciphertext in prop::collection::vec(any::<u8>(), 63..=1000),
        ) {
            let iv = &iv[..form.iv_length.into()];
            let blob = Blob::new(form, iv, &ciphertext).unwrap();
            let bytes = blob.encode();
            prop_assert_eq!(Blob::parse(&bytes), Ok(blob));
            prop_assert_eq!(bytes.len(), 8 + iv.len() + ciphertext.len());
        }

        #[test]
        fn no_bytes_panic_and_what_parses_encodes_to_itself(
            valid_start in 0_usize..=8,
            tail in prop::collection::vec(any::<u8>(), 0..1100),
        ) {
            let bytes = [&header(SealForm::AES_GCM_SENT)[..valid_start], &tail].concat();
            if let Ok(blob) = Blob::parse(&bytes) {
                prop_assert_eq!(blob.encode(), bytes);
            }
        }
    }
}
