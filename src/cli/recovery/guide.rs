//! `hsm-kms recovery guide`: the recovery of a cluster from a backup of etcd, step by step. It changes nothing and keeps nothing: each call
//! finds out anew what is done.

mod facts;
mod steps;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use self::facts::Facts;
use super::print;
use crate::cli::CliError;
use crate::cli::etcd::table;
use crate::exit::ExitCode;

/// Walk through the recovery of a cluster: what is done, what was found, and the next command
#[derive(Args, Debug)]
pub(super) struct GuideArgs {
    /// The backup: a file that `etcdctl snapshot save` wrote, or the `member/snap/db` of a stopped etcd
    #[arg(long, value_name = "FILE")]
    snapshot: PathBuf,
    /// What the API server's keys begin with (its --etcd-prefix)
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// The file with the private half; `-` reads it from standard input
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The record of the new KEK
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// The socket of the plugin that has the new KEK
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The rewrap table
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// The restored etcd: `https://HOST:PORT`, or `http://HOST:PORT` without TLS
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// The authority of etcd's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    cacert: Option<PathBuf>,
    /// The client certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The client certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
    /// Go on though the backup is damaged, or not every seed can be recovered
    #[arg(long)]
    partial: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The report.
#[derive(Serialize)]
struct Guide {
    version: u32,
    /// Whether every step is done.
    done: bool,
    steps: Vec<Step>,
}

/// One step.
#[derive(Serialize)]
struct Step {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do; there while the step is open.
    next: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Done,
    Open,
}

pub(super) fn run(args: &GuideArgs) -> Result<ExitCode, CliError> {
    let steps = match Facts::gather(args) {
        Ok(facts) => steps::all(args, &facts),
        Err(error) => vec![steps::no_backup(&error)],
    };
    let done = steps.iter().all(|step| step.state == State::Done);
    let guide = Guide { version: 1, done, steps };
    print(&if args.json { super::json(&guide)? } else { guide.text() })?;
    Ok(if done { ExitCode::Done } else { ExitCode::DoesNotHold })
}

impl Guide {
    fn text(&self) -> String {
        let mut rows = table::table(&["step", "state", "what was found"], 9);
        for (number, step) in (1..).zip(&self.steps) {
            let state = if step.state == State::Done { "done" } else { "OPEN" };
            rows.add_row([format!("{number}. {}", step.name), state.to_owned(), step.found.clone()]);
        }
        let open = (1..).zip(&self.steps).find(|(_, step)| step.state == State::Open);
        let next = match open {
            Some((number, Step { next, .. })) => {
                format!("Next, for step {number}: {}", next.as_deref().unwrap_or_default())
            }
            None => "Recovered. Destroy what is left of the private half outside its safe.".to_owned(),
        };
        format!("{rows}\n\n{next}\n")
    }
}
