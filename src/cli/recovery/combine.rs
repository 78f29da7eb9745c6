//! `hsm-kms recovery combine`: the private half again, from shares that people type or that lie in files.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::{failure, file, is_key_of, keygen, print};
use crate::ceremony::{Console, ConsoleError};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::recovery::HybridKey;
use crate::shares::{self, CombineError, Row, Share, WordError};

/// Bring shares together: asks for their words on the terminal, or reads them from files
#[derive(Args, Debug)]
pub(super) struct CombineArgs {
    /// The public half: nothing but its key is given out
    #[arg(long, value_name = "FILE")]
    recipient: PathBuf,
    /// A file with the words of one share, in place of the terminal; for each share again
    #[arg(long, value_name = "FILE")]
    share: Vec<PathBuf>,
    /// Where the private half goes, readable by this user alone; must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

pub(super) fn run(args: &CombineArgs) -> Result<(), CliError> {
    let recipient = super::recipient(&args.recipient)?;
    if args.key.is_none() && std::io::stdout().is_terminal() {
        let hint = "pipe it to where it is used: | hsm-kms recovery rewrap --key - ...; or name a file: --key FILE";
        return Err(failure(ExitCode::BadUsage, WHAT, "the key would be shown on the terminal", hint));
    }
    let shares = if args.share.is_empty() {
        typed()?
    } else {
        args.share.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?
    };
    let secret = shares::combine(&shares, |secret| is_key_of(secret, &recipient));
    let secret = secret.map_err(|error| match error {
        CombineError::NotTheSecret => {
            let why = format!("the shares fit together, but the key they give is not {}", recipient.fingerprint());
            let hint = "the fingerprint stands on every share: take the recipient with that one, or the other shares of the set";
            failure(ExitCode::DoesNotHold, WHAT, why, hint)
        }
        error => failure(ExitCode::DoesNotHold, WHAT, error.to_string(), error.hint()),
    })?;
    drop(shares);
    let bytes = Zeroizing::new(<[u8; HybridKey::BYTES]>::try_from(secret.as_slice()).unwrap_or_default());
    let text = keygen::key_file(&HybridKey::from_bytes(&bytes), &recipient);
    match &args.key {
        None => print(text.as_str()),
        Some(path) => {
            file::write_new(path, 0o600, text.as_bytes())?;
            print(&format!("private   {}\nfingerprint\n{}\n", path.display(), recipient.fingerprint()))
        }
    }
}

/// A share from a file.
fn read(path: &Path) -> Result<Share, CliError> {
    let what = || format!("the share {} cannot be used", path.display());
    let mut text = Zeroizing::new(String::with_capacity(MOST_BYTES));
    let limit = MOST_BYTES as u64;
    let read = std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
    read.map_err(|error| {
        failure(ExitCode::BadUsage, what(), error.to_string(), "check the path, and that it is text")
    })?;
    Share::parse_words(&text).map_err(|error| failure(ExitCode::DoesNotHold, what(), error.to_string(), error.hint()))
}

/// Shares that people type, one after the other, until there are as many as the first one asks for. What does not fit is typed again.
fn typed() -> Result<Vec<Share>, CliError> {
    let mut console = Console::new(None).map_err(unasked)?;
    let mut shares: Vec<Share> = Vec::new();
    while shares.first().is_none_or(|first| shares.len() < first.threshold().into()) {
        let title = format!("Share {}", shares.len() + 1);
        let needed = shares.first().map_or_else(String::new, |first| format!("of {}", first.threshold()));
        console.heading(
            &title,
            &needed,
            &[("", "Type the words of one sheet, row by row: six words, a blank between them.")],
        );
        let share = match ask(&mut console) {
            Ok(share) => share,
            Err(Failure::Words(error)) => {
                console.tell(&format!("Not right: {error}. Please {}.", error.hint()));
                continue;
            }
            Err(Failure::Console(error)) => return Err(unasked(error)),
        };
        console.clear();
        let (set, number) = (share.set(), share.number());
        shares.push(share);
        if let Err(error) = shares::check_fit(&shares) {
            shares.pop();
            console.tell(&format!("Not taken: {error}. Please {}.", error.hint()));
        } else {
            console.tell(&format!("Share {number} of set {set} is taken. Put its sheet back into its envelope."));
        }
    }
    Ok(shares)
}

enum Failure {
    Console(ConsoleError),
    Words(WordError),
}

/// One share. A wrong row is asked for again; only rows that are right by themselves, and are not of one share, begin anew.
fn ask(console: &mut Console) -> Result<Share, Failure> {
    let mut rows = Vec::with_capacity(Row::COUNT);
    for number in 1..=Row::COUNT {
        rows.push(loop {
            let (first, last) = ((number - 1) * Row::WORDS + 1, number * Row::WORDS);
            let text = format!("row {number}, words {first} to {last}");
            let typed = Zeroizing::new(console.ask("row", &text).map_err(Failure::Console)?);
            match Row::parse(number, &typed) {
                Ok(row) => break row,
                Err(error) => console.tell(&format!("Not right: {error}. Please {}.", error.hint())),
            }
        });
    }
    let rows = rows.try_into().map_err(|_| Failure::Words(WordError::Unknown))?;
    Share::from_rows(&rows).map_err(Failure::Words)
}

fn unasked(error: ConsoleError) -> CliError {
    let why = match error {
        ConsoleError::NoTerminal => "standard input is no terminal to type shares on".to_owned(),
        other => other.to_string(),
    };
    failure(ExitCode::BadUsage, WHAT, why, "run it on a terminal, or name a file for each share: --share FILE")
}

/// Most bytes of a file with the words of a share.
const MOST_BYTES: usize = 4096;
const WHAT: &str = "the recovery key was not put together";
