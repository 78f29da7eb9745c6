//! All files or none: written into a folder beside, which then takes the name.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{InitError, NewFile};

/// Writes the files into `folder`, which must not exist, or be empty. On an error nothing is left.
pub fn write(folder: &Path, files: &[NewFile]) -> Result<(), InitError> {
    let (Some(name), Some(parent)) = (folder.file_name(), folder.parent()) else {
        return Err(InitError::NoName(folder.to_owned()));
    };
    must_be_free(folder)?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let beside = parent.join(format!(".{}.{}.new", name.display(), std::process::id()));
    let system = |action, path: &Path| {
        let path = path.to_owned();
        move |source| InitError::System { action, path, source }
    };
    fs::create_dir(&beside).map_err(system("make the folder", folder))?;
    let beside = Unfinished(beside);
    for file in files {
        let path = beside.0.join(&file.path);
        write_one(&path, file.text.as_bytes()).map_err(system("write", &folder.join(&file.path)))?;
    }
    // It may have got files meanwhile: then it stays as it is.
    fs::rename(&beside.0, folder).map_err(system("name the folder", folder))?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(system("write", parent))
}

fn must_be_free(folder: &Path) -> Result<(), InitError> {
    let occupied = |found| Err(InitError::Occupied { path: folder.to_owned(), found });
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(InitError::System { action: "look at", path: folder.to_owned(), source }),
        Ok(found) if !found.is_dir() => occupied(Vec::new()),
        Ok(_) => {
            let read = |source| InitError::System { action: "look into", path: folder.to_owned(), source };
            let mut found = Vec::new();
            for entry in fs::read_dir(folder).map_err(read)? {
                found.push(entry.map_err(read)?.file_name().to_string_lossy().escape_debug().to_string());
            }
            found.sort();
            if found.is_empty() { Ok(()) } else { occupied(found) }
        }
    }
}

fn write_one(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Taken away unless it got its name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
