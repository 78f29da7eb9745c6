//! The files of a ceremony's directory, read once: what is checked is what was hashed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::{EvidenceError, SIGNATURES, SUMS_FILE, write_new};
use crate::ceremony::transcript;
use crate::record::Sha256Digest;

/// Most files of a ceremony's directory, and most signatures.
pub(super) const MAX_FILES: usize = 256;

/// Most bytes of one file.
const MAX_FILE_BYTES: usize = transcript::MAX_TRANSCRIPT_BYTES;

/// What lies in a ceremony's directory.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    /// Files by name.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Files of `signatures`, by name.
    pub(super) signatures: BTreeMap<String, Vec<u8>>,
    /// What no ceremony leaves there, in words.
    pub(super) strangers: Vec<String>,
}

impl Bundle {
    /// Reads the directory. That a file is missing is no error here.
    pub(super) fn read(directory: &Path) -> Result<Self, EvidenceError> {
        let mut bundle = Self::default();
        bundle.files = bundle.read_files(directory, "")?;
        let signatures = directory.join(SIGNATURES);
        if signatures.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            bundle.signatures = bundle.read_files(&signatures, "signatures/")?;
        }
        Ok(bundle)
    }

    fn read_files(&mut self, directory: &Path, within: &str) -> Result<BTreeMap<String, Vec<u8>>, EvidenceError> {
        let mut files = BTreeMap::new();
        for (count, entry) in fs::read_dir(directory).map_err(EvidenceError::file(directory))?.enumerate() {
            if count >= MAX_FILES {
                return Err(EvidenceError::TooManyFiles { path: directory.to_owned() });
            }
            let entry = entry.map_err(EvidenceError::file(directory))?;
            let (path, name) = (entry.path(), entry.file_name());
            // Others would need quotes in SHA256SUMS, and could look like a second line of it.
            let plain = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'));
            let is_file = entry.file_type().map_err(EvidenceError::file(&path))?.is_file();
            match plain {
                Some(SIGNATURES) if within.is_empty() && path.symlink_metadata().is_ok_and(|found| found.is_dir()) => {}
                Some(name) if is_file => match read_limited(&path)? {
                    Some(bytes) => drop(files.insert(name.to_owned(), bytes)),
                    None => self.strangers.push(format!("{within}{name} has more than {MAX_FILE_BYTES} bytes")),
                },
                Some(name) => self.strangers.push(format!("{within}{name} is no plain file")),
                None => self.strangers.push(format!("{within}{} has a name that no file here has", name.display())),
            }
        }
        Ok(files)
    }

    /// `SHA256SUMS` as it must be.
    pub(super) fn sums(&self) -> String {
        let listed = self.files.iter().filter(|(name, _)| *name != SUMS_FILE);
        let lines: Vec<_> = listed.map(|(name, bytes)| format!("{}  {name}\n", Sha256Digest::of(bytes))).collect();
        lines.concat()
    }
}

/// Writes `SHA256SUMS`, the last file of a ceremony's directory, which must not have one yet.
pub fn write_sums(directory: &Path) -> Result<(), EvidenceError> {
    let bundle = Bundle::read(directory)?;
    write_new(&directory.join(SUMS_FILE), bundle.sums().as_bytes())
}

/// SHA-256 of a file.
pub fn file_digest(path: &Path) -> Result<Sha256Digest, EvidenceError> {
    fs::read(path).map(|bytes| Sha256Digest::of(&bytes)).map_err(EvidenceError::file(path))
}

/// The file; `None` if it is too long.
pub(super) fn read_limited(path: &Path) -> Result<Option<Vec<u8>>, EvidenceError> {
    let (mut bytes, limit) = (Vec::new(), u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX));
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(EvidenceError::file(path))?;
    Ok((bytes.len() <= MAX_FILE_BYTES).then_some(bytes))
}
