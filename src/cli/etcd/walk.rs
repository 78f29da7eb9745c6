//! Goes through a whole store once, live or a snapshot, and shows how far it is.

use std::ops::ControlFlow;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use super::runtime;
use super::store::{self, Store};
use crate::cli::CliError;
use crate::etcd::Entry;
use crate::etcd::client::Target;
use crate::etcd::inventory::Source;
use crate::etcd::snapshot::Digest;

/// What was read.
pub(in crate::cli) struct Walk {
    pub source: Source,
    pub revision: u64,
    /// What could not be read, the first of it. Empty: everything was.
    pub faults: Vec<String>,
    /// How many more faults there are.
    pub faults_left_off: u64,
}

/// Calls `each` for every key that begins with `prefix`. `rate` bounds the objects per second that a running etcd is asked for.
pub(in crate::cli) fn walk(
    store: &Store,
    prefix: &[u8],
    rate: Option<u32>,
    each: &mut dyn FnMut(Entry),
) -> Result<Walk, CliError> {
    match store {
        Store::Live(target) => walk_live(target, prefix, rate, each),
        Store::Snapshot(file) => walk_snapshot(file, prefix, each),
    }
}

fn walk_live(target: &Target, prefix: &[u8], rate: Option<u32>, each: &mut dyn FnMut(Entry)) -> Result<Walk, CliError> {
    let bar = bar("{bar:30} {human_pos} of {human_len} objects, {eta} left");
    let scan = runtime()?.block_on(async {
        let mut client = store::connect(target).await?;
        let mut objects = 0_u64;
        let mut each = |entry, total| {
            if objects.is_multiple_of(STEP) {
                bar.set_length(total);
                bar.set_position(objects);
            }
            objects += 1;
            each(entry);
        };
        client.scan(prefix, rate, &mut each).await.map_err(|error| store::not_read(target, &error))
    });
    bar.finish_and_clear();
    let scan = scan?;
    let source = Source::Etcd { endpoint: target.endpoint.clone(), cluster_id: format!("{:x}", scan.cluster_id) };
    Ok(Walk { source, revision: scan.revision, faults: Vec::new(), faults_left_off: 0 })
}

/// Objects between two looks at the progress bar.
const STEP: u64 = 256;

fn walk_snapshot(file: &Path, prefix: &[u8], each: &mut dyn FnMut(Entry)) -> Result<Walk, CliError> {
    let snapshot = store::open(file)?;
    let bar = bar("{bar:30} {bytes} of {total_bytes}, {eta} left");
    // Once for the digest, once for the content.
    bar.set_length(snapshot.file_size() + snapshot.used());
    let mut watch = |bytes| bar.inc(bytes);
    let digest = snapshot.check_digest(&mut watch).map_err(|error| store::no_snapshot(&error))?;
    let mut walked = snapshot.newest(&mut watch, &mut |entry| {
        if entry.key.starts_with(prefix) {
            each(entry);
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    if digest == Digest::Differs {
        let fault = "the file is not what was saved: its SHA-256 differs from the one at its end";
        walked.faults.insert(0, fault.to_owned());
    }
    let source = Source::Snapshot { file: file.display().to_string(), size: snapshot.file_size(), digest };
    let (revision, faults, faults_left_off) = (walked.revision, walked.faults, walked.faults_left_off);
    Ok(Walk { source, revision, faults, faults_left_off })
}

/// Shown on standard error if that is a terminal.
pub(in crate::cli) fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("##."))
}
