//! The files that a ceremony leaves.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::CeremonyError;

/// Name of the record file in the plan's output directory.
pub(super) const RECORD_FILE: &str = "kek-record.json";

/// Where the record goes, if the directory is there and has none.
pub(super) fn check_output(directory: &Path) -> Result<PathBuf, CeremonyError> {
    let refuse = |path: &Path, reason: &str| CeremonyError::Output { path: path.to_owned(), reason: reason.to_owned() };
    if !directory.is_dir() {
        return Err(refuse(directory, "is no directory"));
    }
    let path = directory.join(RECORD_FILE);
    if path.symlink_metadata().is_ok() {
        return Err(refuse(&path, "is there already"));
    }
    Ok(path)
}

/// The directory of a ceremony's evidence is there and empty.
pub(super) fn check_empty(directory: &Path) -> Result<(), CeremonyError> {
    let refuse = |reason: String| CeremonyError::Output { path: directory.to_owned(), reason };
    let mut entries = std::fs::read_dir(directory).map_err(|error| refuse(error.to_string()))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(refuse("is not empty".to_owned())),
    }
}

/// Writes a file that must not exist yet, and makes sure that it is on the disk.
pub(super) fn write_new(path: &Path, content: &[u8]) -> Result<(), CeremonyError> {
    let output = |error: std::io::Error| CeremonyError::Output { path: path.to_owned(), reason: error.to_string() };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map_err(output)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let synced = written.and_then(|()| path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all()));
    synced.map_err(|error| {
        // A record that is not whole must not be taken for one.
        let _ = std::fs::remove_file(path);
        output(error)
    })
}

/// The same in place of what an interrupted run may have left, which nobody has signed.
pub(super) fn write_anew(path: &Path, content: &[u8]) -> Result<(), CeremonyError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(CeremonyError::System { what: "what an interrupted run left cannot be removed", source })
        }
        _ => write_new(path, content),
    }
}
