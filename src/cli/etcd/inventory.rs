//! `hsm-kms etcd inventory`: reads a whole store and reports what it needs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::store::{Store, StoreArgs};
use super::{failure, page, print, runtime, store, table};
use crate::cli::CliError;
use crate::etcd::client::Target;
use crate::etcd::inventory::{Counter, Inventory, Source};
use crate::etcd::snapshot::Digest;
use crate::exit::ExitCode;
use crate::record::UtcTime;

/// Count what is stored, by resource, provider, KEK and seed; nothing is decrypted
#[derive(Args, Debug)]
#[command(mut_arg("cert_key", |argument| argument.alias("key")))]
pub(super) struct InventoryArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// What the API server's keys begin with (its --etcd-prefix); OpenShift's is `/kubernetes.io/`
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// Most objects per second to ask etcd for [default: as fast as it answers, one page at a time]
    #[arg(long, value_name = "N", conflicts_with = "snapshot", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write an HTML page with charts: one file, nothing is loaded from elsewhere
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: &InventoryArgs) -> Result<ExitCode, CliError> {
    let prefix = args.prefix.as_bytes();
    let inventory = match args.store.store() {
        Store::Live(target) => count_live(&target, prefix, args.rate)?,
        Store::Snapshot(file) => count_snapshot(&file, prefix)?,
    };
    if let Some(file) = &args.html {
        let page = page::render(&inventory).map_err(|error| {
            failure(ExitCode::DoesNotHold, "the page cannot be made", error.to_string(), "report this")
        })?;
        std::fs::write(file, page).map_err(|error| {
            let what = format!("{} cannot be written", file.display());
            failure(ExitCode::BadUsage, what, error.to_string(), "check the path, and that this user may write there")
        })?;
    }
    let text = if args.json { json(&inventory)? } else { table::text(&inventory) };
    print(text.as_bytes())?;
    if inventory.complete {
        return Ok(ExitCode::Done);
    }
    let faults = inventory.faults.len() as u64 + inventory.faults_left_off;
    Err(failure(
        ExitCode::DoesNotHold,
        "not all of the store could be read",
        format!("{faults} faults; the first: {}", inventory.faults.first().map_or("", String::as_str)),
        "take every count for a lower bound, and read another copy of the store before you retire a KEK",
    ))
}

fn json(inventory: &Inventory) -> Result<String, CliError> {
    serde_json::to_string_pretty(inventory).map(|json| json + "\n").map_err(|error| {
        failure(ExitCode::DoesNotHold, "the report cannot be written as JSON", error.to_string(), "report this")
    })
}

fn count_live(target: &Target, prefix: &[u8], rate: Option<u32>) -> Result<Inventory, CliError> {
    let mut counter = Counter::new(prefix);
    let bar = bar("{bar:30} {human_pos} of {human_len} objects, {eta} left");
    let scan = runtime()?.block_on(async {
        let mut client = store::connect(target).await?;
        let mut each = |entry, total| {
            if counter.objects().is_multiple_of(STEP) {
                bar.set_length(total);
                bar.set_position(counter.objects());
            }
            counter.add(&entry);
        };
        client.scan(prefix, rate, &mut each).await.map_err(|error| store::not_read(target, &error))
    });
    bar.finish_and_clear();
    let scan = scan?;
    let cluster_id = format!("{:x}", scan.cluster_id);
    let source = Source::Etcd { endpoint: target.endpoint.clone(), cluster_id };
    Ok(counter.finish(UtcTime::now().to_string(), source, scan.revision))
}

/// Objects between two looks at the progress bar.
const STEP: u64 = 256;

fn count_snapshot(file: &Path, prefix: &[u8]) -> Result<Inventory, CliError> {
    let snapshot = store::open(file)?;
    let mut counter = Counter::new(prefix);
    let bar = bar("{bar:30} {bytes} of {total_bytes}, {eta} left");
    // Once for the digest, once for the content.
    bar.set_length(snapshot.file_size() + snapshot.used());
    let mut watch = |bytes| bar.inc(bytes);
    let digest = snapshot.check_digest(&mut watch).map_err(|error| store::no_snapshot(&error))?;
    if digest == Digest::Differs {
        counter.fault("the file is not what was saved: its SHA-256 differs from the one at its end".to_owned());
    }
    let walked = snapshot.newest(&mut watch, &mut |entry| {
        if entry.key.starts_with(prefix) {
            counter.add(&entry);
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    for fault in walked.faults {
        counter.fault(fault);
    }
    counter.more_faults(walked.faults_left_off);
    let source = Source::Snapshot { file: file.display().to_string(), size: snapshot.file_size(), digest };
    Ok(counter.finish(UtcTime::now().to_string(), source, walked.revision))
}

/// Shown on standard error if that is a terminal.
fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("##."))
}
