//! Files that these commands write.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::failure;
use crate::cli::CliError;
use crate::exit::ExitCode;

/// Writes a file that must not exist yet. One that is not whole does not stay.
pub(in crate::cli) fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), CliError> {
    let mut file = open_new(path, mode).map_err(|error| unwritten(path, &error))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = std::fs::remove_file(path);
        unwritten(path, &error)
    })
}

/// Whether such a file could be written: before something is made that would lack it.
pub(super) fn check_new(path: &Path) -> Result<(), CliError> {
    open_new(path, 0o600).and_then(|_| std::fs::remove_file(path)).map_err(|error| unwritten(path, &error))
}

/// Writes a public file in place of the one that is there, whole or not at all.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), CliError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let _ = std::fs::remove_file(&new);
    write_new(&new, 0o644, content)?;
    std::fs::rename(&new, path).map_err(|error| unwritten(path, &error))
}

fn open_new(path: &Path, mode: u32) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

fn unwritten(path: &Path, error: &std::io::Error) -> CliError {
    let hint = "choose a path in a directory that is there, where nothing is yet";
    failure(ExitCode::BadUsage, format!("cannot write {}", path.display()), error.to_string(), hint)
}
