//! What a thief copies, and a search through it.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};

use super::stage::system;
use crate::cli::CliError;

/// Copies in one folder.
pub(super) struct Copies {
    folder: PathBuf,
    names: Vec<String>,
    bytes: u64,
}

/// Largest file that is copied and searched: an etcd with its backups stays where it is.
const MOST_BYTES: u64 = 64 << 20;

impl Copies {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, names: Vec::new(), bytes: 0 }
    }

    /// Copies a file. `Err`: it is not there, or it cannot be read, or it is too large.
    pub(super) fn take(&mut self, path: &Path) -> Result<PathBuf, String> {
        let why = |error: std::io::Error| format!("{}: {error}", path.display());
        let found = fs::metadata(path).map_err(why)?;
        if !found.is_file() || found.len() > MOST_BYTES {
            return Err(format!("{}: no plain file of at most {} MiB", path.display(), MOST_BYTES >> 20));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let copy = self.folder.join(format!("{}-{name}", self.names.len()));
        self.bytes += fs::copy(path, &copy).map_err(why)?;
        self.names.push(name.into_owned());
        Ok(copy)
    }

    /// In words.
    pub(super) fn in_words(&self) -> String {
        format!("{} files, {} bytes: {}", self.names.len(), self.bytes, self.names.join(", "))
    }

    /// Names of the copies in which the secret stands, as it is, in hex, or in base64 at any place.
    pub(super) fn search(&self, secret: &[u8]) -> Result<Vec<String>, CliError> {
        let forms = forms(secret);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|error| system(&error))? {
            let entry = entry.map_err(|error| system(&error))?;
            let content = fs::read(entry.path()).map_err(|error| system(&error))?;
            if forms.iter().any(|form| content.windows(form.len()).any(|part| part == form)) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// As files may hold it.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec(), HEXLOWER.encode(secret).into(), HEXUPPER.encode(secret).into()];
    for encoding in [&BASE64, &BASE64URL] {
        for shift in 0..3 {
            let text = encoding.encode(&[vec![0; shift], secret.to_vec()].concat());
            // Without the characters that neighbours would change: 2 or 3 in front, padding and up to 1 at the end.
            let end = text.trim_end_matches('=').len() - usize::from(text.ends_with('='));
            forms.push(text.as_bytes().get((shift * 4).div_ceil(3)..end).unwrap_or_default().to_vec());
        }
    }
    forms.retain(|form| form.len() >= LEAST);
    forms
}

/// Shorter would be found by chance.
const LEAST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_each_form() {
        let secret: Vec<u8> = (100..132).collect();
        let directory = tempfile::tempdir().unwrap();
        let copies = Copies::new(directory.path().to_owned());
        let around = |shift: usize| [vec![7; shift], secret.clone(), vec![9; 5]].concat();
        let mut files = vec![secret.clone(), HEXLOWER.encode(&secret).into(), HEXUPPER.encode(&secret).into()];
        for shift in 0..7 {
            files.push(around(shift));
            files.push(BASE64.encode(&around(shift)).into());
            files.push(BASE64URL.encode(&around(shift)).into());
        }
        for (number, content) in files.iter().enumerate() {
            fs::write(directory.path().join("file"), content).unwrap();
            assert_eq!(copies.search(&secret).unwrap(), ["file"], "{number}");
        }
        fs::write(directory.path().join("file"), &secret[..31]).unwrap();
        assert!(copies.search(&secret).unwrap().is_empty());
    }
}
