//! The file of the audit log: opened safely, appended to, and left as it was if a line does not fit.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::event::LineHash;
use super::verify::LONGEST_LINE;

/// A file that only this process appends to.
#[derive(Debug)]
pub(super) struct AuditFile {
    file: File,
    device: u64,
    inode: u64,
}

/// How a file ends.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct End {
    /// The last whole line.
    pub(super) head: Option<LineHash>,
    /// What stands behind it without an end.
    pub(super) torn: Vec<u8>,
}

/// Bytes that were not appended.
pub(super) struct Unwritten {
    pub(super) error: io::Error,
    /// Some of them were, and could not be taken back: the file may let nobody shorten it.
    pub(super) is_torn: bool,
}

/// Why the audit log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("it is a symbolic link")]
    Link,
    #[error("it is not a file")]
    NotAFile,
    #[error("it belongs to uid {0}, not to this process")]
    Foreign(u32),
    #[error("it is open to others: mode {0:04o}")]
    Open(u32),
    #[error("its folder is open to others: mode {0:04o}")]
    OpenFolder(u32),
    #[error("another process writes it")]
    Locked,
    #[error("its last line has more than {LONGEST_LINE} bytes")]
    Endless,
    #[error("it has lines already")]
    NotEmpty,
    #[error(transparent)]
    System(#[from] io::Error),
}

impl OpenError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let folder = self.path.parent().unwrap_or(Path::new("/")).display();
        match &self.reason {
            Reason::Link | Reason::NotAFile => "name a file; the plugin makes it".to_owned(),
            Reason::Foreign(_) => "give the file to the plugin's user, or move it away".to_owned(),
            Reason::Open(_) => format!("chmod go-w,o-rwx {}", self.path.display()),
            Reason::OpenFolder(_) => format!("chmod go-w {folder}"),
            Reason::Locked => "give each plugin an audit log of its own".to_owned(),
            Reason::NotEmpty => "move it away".to_owned(),
            Reason::Endless => "it is no audit log: move it away".to_owned(),
            Reason::System(_) => format!("give the plugin's user a folder to write in: {folder}"),
        }
    }
}

impl AuditFile {
    /// Opens the file to append to it, or makes it, with mode 0600. Nobody else may be able to write it, or to put another in its place.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        open(path).map_err(|reason| OpenError { path: path.to_owned(), reason })
    }

    /// How it ends.
    pub(super) fn end(&self, path: &Path) -> Result<End, OpenError> {
        end(&self.file).map_err(|reason| OpenError { path: path.to_owned(), reason })
    }

    /// Refuses a file that has lines.
    pub(super) fn must_be_empty(&self, path: &Path) -> Result<(), OpenError> {
        let reason = match self.file.metadata() {
            Ok(found) if found.len() == 0 => return Ok(()),
            Ok(_) => Reason::NotEmpty,
            Err(error) => Reason::System(error),
        };
        Err(OpenError { path: path.to_owned(), reason })
    }

    /// Appends the bytes: all of them, or none.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Unwritten> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(count @ 1..) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => {
                    let error = outcome.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    return Err(Unwritten { error, is_torn: self.take_back(written).is_err() });
                }
            }
        }
        Ok(())
    }

    fn take_back(&self, written: usize) -> io::Result<()> {
        if written > 0 {
            let length = self.file.metadata()?.len();
            self.file.set_len(length.saturating_sub(written as u64))?;
        }
        Ok(())
    }

    /// Whether this file still stands under the path.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }

    /// Has the kernel write it to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn open(path: &Path) -> Result<AuditFile, Reason> {
    if let Some(folder) = path.parent() {
        let mode = folder.metadata()?.mode() & 0o7777;
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return Err(Reason::OpenFolder(mode));
        }
    }
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
    // A pipe without a reader must not hold us up.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(opened.map_err(|error| match error {
        rustix::io::Errno::LOOP => Reason::Link,
        rustix::io::Errno::ISDIR => Reason::NotAFile,
        error => Reason::System(error.into()),
    })?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Reason::NotAFile);
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Reason::Foreign(found.uid()));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o027 != 0 {
        return Err(Reason::Open(mode));
    }
    lock(&file)?;
    Ok(AuditFile { file, device: found.dev(), inode: found.ino() })
}

/// Held until the descriptor closes. A child of a killed instance may hold it until its exec, so not given up at once.
fn lock(file: &File) -> Result<(), Reason> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_LIMIT => thread::sleep(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Reason::Locked),
            Err(error) => return Err(Reason::System(error.into())),
        }
    }
}

const LOCK_LIMIT: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

fn end(file: &File) -> Result<End, Reason> {
    let length = file.metadata()?.len();
    // Room for a torn line, and for the whole one before it.
    let room = length.min(2 * LONGEST_LINE as u64 + 1);
    let mut bytes = vec![0; usize::try_from(room).unwrap_or(0)];
    file.read_exact_at(&mut bytes, length - room)?;
    let (whole, torn) = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(position) => (bytes.get(..position), bytes.get(position + 1..).unwrap_or_default()),
        None => (None, &bytes[..]),
    };
    let line = whole.and_then(|whole| whole.rsplit(|byte| *byte == b'\n').next());
    if torn.len() > LONGEST_LINE || line.is_some_and(|line| line.len() > LONGEST_LINE) {
        return Err(Reason::Endless);
    }
    Ok(End { head: line.map(LineHash::of), torn: torn.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_is_no_safe_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let why = || AuditFile::open(&path).unwrap_err().to_string();

        symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(why().ends_with("it is a symbolic link"));
        assert!(!folder.path().join("elsewhere").exists());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(why().ends_with("it is not a file"));
        fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(why().ends_with("it is not a file"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o622)).unwrap();
        assert!(why().ends_with("it is open to others: mode 0622"));
        fs::remove_file(&path).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(why().ends_with("its folder is open to others: mode 0777"));
        assert!(!path.exists());
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();

        let first = AuditFile::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(why().ends_with("another process writes it"));
        drop(first);
        AuditFile::open(&path).unwrap();
    }

    #[test]
    fn the_end_of_a_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let hash = |line: &str| Some(LineHash::of(line.as_bytes()));
        let long = "x".repeat(LONGEST_LINE);
        for (content, head, torn) in [
            (String::new(), None, ""),
            ("a\n".to_owned(), hash("a"), ""),
            ("a\nb\n".to_owned(), hash("b"), ""),
            ("a\nb".to_owned(), hash("a"), "b"),
            ("b".to_owned(), None, "b"),
            ("\n".to_owned(), hash(""), ""),
            (format!("{long}\n{long}\n{long}"), hash(&long), &long),
        ] {
            fs::write(&path, &content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let found = AuditFile::open(&path).unwrap().end(&path).unwrap();
            assert_eq!(found, End { head, torn: torn.as_bytes().to_vec() }, "{} bytes", content.len());
        }
        fs::write(&path, format!("{long}x")).unwrap();
        assert!(AuditFile::open(&path).unwrap().end(&path).is_err());
    }
}
