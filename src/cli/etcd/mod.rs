//! `hsm-kms etcd`: what the store holds, one value of it, and how to rewrite it.

pub(super) mod decrypt;
pub(super) mod inventory;
mod page;
mod rewrite_plan;
pub(super) mod store;
pub(super) mod table;
pub(super) mod walk;

use clap::{Args, Subcommand};

use super::{CliError, print};
use crate::etcd::value::printable;
use crate::exit::ExitCode;

/// Look into the store: which KEK it needs, one value of it, how to rewrite it
#[derive(Args, Debug)]
pub(super) struct EtcdArgs {
    #[command(subcommand)]
    command: EtcdCommand,
}

#[derive(Debug, Subcommand)]
enum EtcdCommand {
    /// Open one value with the KEK of a running plugin
    Decrypt(decrypt::DecryptArgs),
    /// Count what is stored, by resource, provider, KEK and seed; nothing is decrypted (docs/inventory.md)
    Inventory(inventory::InventoryArgs),
    /// Print the commands that rewrite objects, so that the active KEK seals them
    RewritePlan(rewrite_plan::RewritePlanArgs),
}

pub(super) fn run(args: EtcdArgs) -> Result<ExitCode, CliError> {
    match args.command {
        EtcdCommand::Decrypt(args) => decrypt::run(&args).map(|()| ExitCode::Done),
        EtcdCommand::Inventory(args) => inventory::run(&args),
        EtcdCommand::RewritePlan(args) => rewrite_plan::run(&args).map(|()| ExitCode::Done),
    }
}

/// A failure; its texts may quote the store, and go to a terminal.
pub(super) fn failure(code: ExitCode, what: impl AsRef<str>, why: impl AsRef<str>, hint: impl AsRef<str>) -> CliError {
    let clean = |text: &str| -> String {
        text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
    };
    CliError { code, what: clean(what.as_ref()), why: clean(why.as_ref()), hint: clean(hint.as_ref()) }
}

/// A key of the store, for a message.
pub(super) fn shown(key: &[u8]) -> String {
    printable(key)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        failure(ExitCode::NotReachable, "cannot start", error.to_string(), "check limits on open files and memory")
    })
}
