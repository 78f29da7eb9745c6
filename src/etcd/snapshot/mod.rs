//! A snapshot of etcd as `etcdctl snapshot save` writes it, or the file `member/snap/db` of a stopped etcd: read without etcd.
//!
//! No crate that reads bbolt fits a hostile file: those that exist are ports of the whole database, which map the file into memory by
//! unsafe code and panic where a page is wrong. This reads one bucket, by offset, and nothing else.

mod page;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use prost::Message;
use prost::bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use self::page::{Content, HEADER_BYTES, Meta, Root};
use self::tree::{Fault, Step, Tree};
use super::Entry;
use super::kv::KeyValue;

/// An opened file.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    path: PathBuf,
    /// Bytes in the file.
    file_size: u64,
    /// Bytes of the database in it.
    size: u64,
    meta: Meta,
}

/// What became of the SHA-256 that `etcdctl snapshot save` appends.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Digest {
    /// There is none: the file is no snapshot but the database itself.
    Absent,
    /// The file is not what was saved.
    Differs,
    /// The file is what was saved.
    Matches,
}

/// A file that cannot be used at all.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A running etcd writes to it.
    #[error("a running etcd has {} open, and changes it while it is read", .0.display())]
    InUse(PathBuf),
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is no database, or both its beginnings are damaged.
    #[error("{} is no etcd snapshot, or its first two pages are damaged", .0.display())]
    NoDatabase(PathBuf),
}

/// What a walk through the store met.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Walked {
    /// The store's revision: the newest that was met.
    pub revision: u64,
    /// What could not be read. Empty: everything was.
    pub faults: Vec<String>,
    /// How many faults were not kept.
    pub faults_left_off: u64,
}

/// More are counted, but not kept.
const FAULT_LIMIT: usize = 100;

const DIGEST_BYTES: u64 = 32;

impl Snapshot {
    /// Opens the file and reads its meta record.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let io = |cause| SnapshotError::Io { path: path.to_owned(), cause };
        // Before it is opened: a pipe would hang.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
        }
        let file = File::open(path).map_err(io)?;
        // bbolt holds a lock on its file while it is open. Ours is let go at once: it must not keep an etcd from starting.
        if flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK) {
            return Err(SnapshotError::InUse(path.to_owned()));
        }
        let _ = flock(&file, FlockOperation::Unlock);
        let file_size = file.metadata().map_err(io)?.len();
        // As etcdctl tells them apart: pages are multiples of 512 bytes.
        let has_digest = file_size % 512 == DIGEST_BYTES;
        let size = if has_digest { file_size - DIGEST_BYTES } else { file_size };
        let meta = newest_meta(&file).ok_or_else(|| SnapshotError::NoDatabase(path.to_owned()))?;
        Ok(Self { file, path: path.to_owned(), file_size, size, meta })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size in bytes.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Reads the whole file once and compares it with the SHA-256 at its end. `watch` is told of every byte that was read.
    pub fn check_digest(&self, watch: &mut dyn FnMut(u64)) -> Result<Digest, SnapshotError> {
        if self.size == self.file_size {
            return Ok(Digest::Absent);
        }
        let io = |cause| SnapshotError::Io { path: self.path.clone(), cause };
        let mut hash = Sha256::new();
        let mut block = vec![0; 1 << 18];
        let mut at = 0;
        while at < self.size {
            let length = usize::try_from(self.size - at).unwrap_or(usize::MAX).min(block.len());
            let part = block.get_mut(..length).unwrap_or_default();
            self.file.read_exact_at(part, at).map_err(io)?;
            hash.update(&*part);
            at += length as u64;
            watch(length as u64);
        }
        let mut expected = [0; 32];
        self.file.read_exact_at(&mut expected, self.size).map_err(io)?;
        Ok(if hash.finalize()[..] == expected { Digest::Matches } else { Digest::Differs })
    }

    /// Bytes of pages in use: how far [`Self::newest`] has to go.
    pub fn used(&self) -> u64 {
        self.meta.pages.saturating_mul(self.meta.page_size.into()).min(self.size)
    }

    /// Calls `each` for every key that exists, with its newest value; deleted keys are left out. The order is that of the last
    /// writes, newest first, so the first value of a key is the newest. `watch` is told of bytes that were read,
    /// about.
    ///
    /// Memory: 16 bytes and a little for each key, and one page.
    pub fn newest(&self, watch: &mut dyn FnMut(u64), each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Walked {
        let mut walked = Walked::default();
        let mut tree = Tree::new(&self.file, self.size, self.meta.page_size, self.meta.pages);
        let used = self.meta.pages.saturating_mul(self.meta.page_size.into());
        if used > self.size {
            let missing = (used - self.size).div_ceil(self.meta.page_size.into());
            walked.fault(format!("the file is cut off: of {} pages, {missing} are missing", self.meta.pages));
        }
        let Some(bucket) = find_bucket(&mut tree, self.meta.root, &mut walked) else { return walked };
        let mut seen = HashSet::new();
        let _ = walk_revisions(&mut tree, &bucket, &mut walked, watch, &mut |revision, kv| {
            // A key that is cut to 16 bytes of its hash: nobody can make two that meet.
            let name: [u8; 32] = Sha256::digest(&kv.key).into();
            let is_newest = seen.insert(name.first_chunk::<16>().copied());
            if is_newest && !revision.is_deletion {
                return each(Entry { key: kv.key, value: kv.value, mod_revision: revision.main });
            }
            ControlFlow::Continue(())
        });
        if walked.faults.is_empty() {
            // The revision of a store in which nothing was written yet.
            walked.revision = walked.revision.max(1);
        }
        walked
    }
}

/// The meta record with the newest transaction, of the two that bbolt writes in turn.
fn newest_meta(file: &File) -> Option<Meta> {
    let at = |offset: u64| {
        let mut bytes = [0; HEADER_BYTES + 64];
        file.read_exact_at(&mut bytes, offset).ok().and_then(|()| Meta::parse(&bytes))
    };
    let first = at(0);
    // The second stands one page further; where the first does not say how long that is, each size is tried.
    let second = match first {
        Some(meta) => at(meta.page_size.into()),
        None => (9..=16).find_map(|power| at(1 << power).filter(|meta| meta.page_size == 1 << power)),
    };
    [first, second].into_iter().flatten().max_by_key(|meta| meta.transaction)
}

/// The bucket in which etcd keeps its revisions.
const BUCKET: &[u8] = b"key";

fn find_bucket(tree: &mut Tree<'_>, root: u64, walked: &mut Walked) -> Option<Root> {
    let mut found = None;
    let mut faults = Vec::new();
    let _ = tree.walk(&Root::Page(root), &mut |step| {
        match step {
            Step::Element(key, Content::Bucket(root)) if key == BUCKET => {
                found = Some(root.clone());
                return ControlFlow::Break(());
            }
            Step::Element(..) | Step::Page(_) => {}
            Step::Fault(fault) => faults.push(fault),
        }
        ControlFlow::Continue(())
    });
    for fault in &faults {
        walked.fault(format!("page {} of the list of buckets: {}", fault.page, fault.why));
    }
    if found.is_none() {
        walked.fault("there is no bucket `key`: nothing is readable".to_owned());
    }
    found
}

/// The key of a value in the bucket (etcd, `server/storage/mvcc/revision.go`).
struct Revision {
    main: u64,
    is_deletion: bool,
}

impl Revision {
    /// 8 bytes of revision, `_`, 8 bytes of operation in it; and `t` after that for a deletion.
    fn parse(key: &[u8]) -> Option<Self> {
        let (numbers, mark) = key.split_at_checked(17)?;
        let main = u64::from_be_bytes(numbers.first_chunk().copied()?);
        let is_deletion = match mark {
            b"" => false,
            b"t" => true,
            _ => return None,
        };
        (numbers.get(8) == Some(&b'_')).then_some(Self { main, is_deletion })
    }
}

fn walk_revisions(
    tree: &mut Tree<'_>,
    bucket: &Root,
    walked: &mut Walked,
    watch: &mut dyn FnMut(u64),
    each: &mut dyn FnMut(Revision, KeyValue) -> ControlFlow<()>,
) -> ControlFlow<()> {
    tree.walk(bucket, &mut |step| {
        let (key, content) = match step {
            Step::Element(key, content) => (key, content),
            Step::Page(size) => {
                watch(size);
                return ControlFlow::Continue(());
            }
            Step::Fault(fault) => {
                walked.fault(lost(&fault));
                return ControlFlow::Continue(());
            }
        };
        match read(key, content) {
            Ok((revision, kv)) => {
                walked.revision = walked.revision.max(revision.main);
                each(revision, kv)
            }
            Err(why) => {
                let revision = Revision::parse(key).map_or("unknown".to_owned(), |revision| revision.main.to_string());
                walked.fault(format!("revision {revision}: {why}"));
                ControlFlow::Continue(())
            }
        }
    })
}

fn read(key: &Bytes, content: &Content) -> Result<(Revision, KeyValue), &'static str> {
    let revision = Revision::parse(key).ok_or("its key is no revision")?;
    let Content::Value(value) = content else { return Err("a bucket stands in its place") };
    let kv = KeyValue::decode(value.clone()).map_err(|_| "its value is no KeyValue message")?;
    if kv.key.is_empty() {
        return Err("its value names no key");
    }
    // The value of a deletion has the key only.
    if !revision.is_deletion && u64::try_from(kv.mod_revision) != Ok(revision.main) {
        return Err("its value belongs to another revision");
    }
    Ok((revision, kv))
}

fn lost(fault: &Fault) -> String {
    let revision = |key: &Option<Bytes>| key.as_deref().and_then(Revision::parse).map(|revision| revision.main);
    let range = match (revision(&fault.from), revision(&fault.to)) {
        (Some(from), Some(to)) => format!("what was written at revisions {from} to {to}"),
        (Some(from), None) => format!("what was written from revision {from} on"),
        (None, Some(to)) => format!("what was written up to revision {to}"),
        (None, None) => "all".to_owned(),
    };
    format!("page {}: {}; {range} is not readable", fault.page, fault.why)
}

impl Walked {
    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULT_LIMIT {
            self.faults.push(text);
        } else {
            self.faults_left_off += 1;
        }
    }
}
