//! `hsm-kms etcd inventory`: reads a whole store and reports what it needs.

use std::path::PathBuf;

use clap::Args;

use super::store::{Store, StoreArgs};
use super::walk::walk;
use super::{failure, page, print, table};
use crate::cli::CliError;
use crate::etcd::inventory::{Counter, Inventory};
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
    let inventory = count(&args.store.store(), args.prefix.as_bytes(), args.rate)?;
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

/// Goes through the store once.
pub(in crate::cli) fn count(store: &Store, prefix: &[u8], rate: Option<u32>) -> Result<Inventory, CliError> {
    let mut counter = Counter::new(prefix);
    let walked = walk(store, prefix, rate, &mut |entry| counter.add(&entry))?;
    for fault in walked.faults {
        counter.fault(fault);
    }
    counter.more_faults(walked.faults_left_off);
    Ok(counter.finish(UtcTime::now().to_string(), walked.source, walked.revision))
}

fn json(inventory: &Inventory) -> Result<String, CliError> {
    serde_json::to_string_pretty(inventory).map(|json| json + "\n").map_err(|error| {
        failure(ExitCode::DoesNotHold, "the report cannot be written as JSON", error.to_string(), "report this")
    })
}
