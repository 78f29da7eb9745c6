//! `hsm-kms recovery split`: the private half in shares, one printable sheet for each.

use std::path::{Path, PathBuf};

use askama::Template;
use clap::Args;
use zeroize::Zeroizing;

use super::{failure, file, print, private_key};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::record::UtcTime;
use crate::recovery::{Fingerprint, Recipient};
use crate::shares::{self, Share, SplitError};

/// Split the private half of a recovery key into shares, a sheet to print for each
#[derive(Args, Debug)]
pub(super) struct SplitArgs {
    /// The file with the private half; `-` reads it from standard input, so that it need not be on a disk
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How many shares give the key back, at least 2
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(2..=16))]
    threshold: u8,
    /// How many shares there are, at most 16
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(2..=16))]
    shares: u8,
    /// The public half: the key must be its
    #[arg(long, value_name = "FILE")]
    recipient: PathBuf,
    /// The directory for the sheets: on a RAM disk, or on a medium that is destroyed after printing
    #[arg(long, value_name = "DIR")]
    sheets: PathBuf,
}

pub(super) fn run(args: &SplitArgs) -> Result<(), CliError> {
    let recipient = super::recipient(&args.recipient)?;
    let key = private_key::read(&args.key)?;
    let found = private_key::recipient_of(&key)?;
    if found != recipient {
        let why = format!("it is {}, the recipient is {}", found.fingerprint(), recipient.fingerprint());
        return Err(failure(ExitCode::DoesNotHold, WHAT, why, "take the two files that one keygen made"));
    }
    let set = shares::split(key.expose(), args.threshold, args.shares, getrandom::fill);
    let set = set.map_err(|error| {
        let code = if matches!(error, SplitError::Counts { .. }) { ExitCode::BadUsage } else { ExitCode::NotReachable };
        failure(code, WHAT, error.to_string(), "choose 2 to 16 shares, and a threshold not above that")
    })?;
    // Each share has its part in this: what is on paper is not found out to be wrong in ten years.
    for run in set.shares.windows(args.threshold.into()) {
        shares::combine(run, |secret| super::is_key_of(secret, &recipient))
            .map_err(|error| failure(ExitCode::DoesNotHold, WHAT, error.to_string(), error.hint()))?;
    }
    let mut written = Vec::new();
    for share in &set.shares {
        let path = args.sheets.join(format!("share-{}-of-{}.html", share.number(), args.shares));
        let sheet = sheet(share, args.shares, &recipient)?;
        if let Err(error) = file::write_new(&path, 0o600, sheet.as_bytes()) {
            for path in &written {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
        written.push(path);
    }
    let list: Vec<_> = written.iter().map(|path| format!("sheet     {}\n", path.display())).collect();
    let set = set.shares.first().map_or_else(String::new, |share| share.set().to_string());
    print(&format!(
        "{}set       {set}\nneeded    {} of {}\nfingerprint\n{}\n\n\
         Print each sheet, hand it to its custodian, then destroy the files. {}\n\
         Try the shares before you destroy the key: hsm-kms recovery combine.\n",
        list.concat(),
        args.threshold,
        args.shares,
        recipient.fingerprint(),
        place(&args.sheets),
    ))
}

/// What is to be said of the place where the sheets lie.
fn place(directory: &Path) -> String {
    let is_memory =
        rustix::fs::statfs(directory).is_ok_and(|found| MEMORY.iter().any(|magic| i128::from(found.f_type) == *magic));
    if is_memory {
        format!("{} is on a RAM disk: they go with it.", directory.display())
    } else {
        format!(
            "WARNING: {} is not on a RAM disk. What was on a disk can be read from it later: destroy the medium.",
            directory.display()
        )
    }
}

/// `tmpfs` and `ramfs` (statfs(2)).
const MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];

fn sheet(share: &Share, count: u8, recipient: &Recipient) -> Result<Zeroizing<String>, CliError> {
    let rows =
        share.to_rows().ok_or_else(|| failure(ExitCode::DoesNotHold, WHAT, "it has not 32 bytes", "report this"))?;
    let mut places = 1..;
    let rows = rows.iter().map(|row| row.words().zip(places.by_ref()).collect()).collect();
    let sheet = Sheet {
        number: share.number(),
        count,
        threshold: share.threshold(),
        set: share.set().to_string(),
        date: UtcTime::now().to_string().chars().take(10).collect(),
        groups: groups(recipient.fingerprint()),
        rows,
        tool: concat!("hsm-kms ", env!("CARGO_PKG_VERSION")),
    };
    // Writing to a `String` does not fail. With room for all of it: a text that grows leaves copies behind.
    let mut html = Zeroizing::new(String::with_capacity(64 * 1024));
    let _ = sheet.render_into(&mut *html);
    Ok(html)
}

/// Hex digits in groups of eight.
fn groups(fingerprint: Fingerprint) -> Vec<String> {
    fingerprint.as_bytes().chunks(4).map(|bytes| data_encoding::HEXLOWER.encode(bytes)).collect()
}

#[derive(Template)]
#[template(path = "sheet.html", config = "src/cli/recovery/askama.toml")]
struct Sheet {
    number: u8,
    count: u8,
    threshold: u8,
    set: String,
    date: String,
    groups: Vec<String>,
    rows: Vec<Vec<(&'static str, usize)>>,
    tool: &'static str,
}

const WHAT: &str = "the recovery key was not split";
