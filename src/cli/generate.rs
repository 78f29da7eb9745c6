//! `hsm-kms generate`: man pages and shell completions, made from the command line itself, so that they cannot say anything else.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, Subcommand};
use clap_complete::Shell;

use super::{CliError, print};
use crate::exit::ExitCode;

/// Make man pages and shell completions
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    #[command(subcommand)]
    command: GenerateCommand,
}

#[derive(Debug, Subcommand)]
enum GenerateCommand {
    /// Write a man page of every command into a directory
    Man {
        /// The directory; it is made if it is not there, and pages in it are replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

pub(super) fn run(args: &GenerateArgs) -> Result<(), CliError> {
    let command = super::Args::command();
    match &args.command {
        GenerateCommand::Man { out } => man(&command, out),
        GenerateCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut shown(&command), NAME, &mut script);
            // github.com/clap-rs/clap/issues/6421: the hyphen in the program's name is written in two ways, so that bash offers nothing
            // behind a command.
            print(&String::from_utf8_lossy(&script).replace("hsm__subcmd__kms__", "hsm__kms__"))
        }
    }
}

/// Of the program.
const NAME: &str = "hsm-kms";

fn man(command: &Command, out: &Path) -> Result<(), CliError> {
    let written = fs::create_dir_all(out).and_then(|()| clap_mangen::generate_to(shown(command), out));
    written.map_err(|error| CliError {
        code: ExitCode::BadUsage,
        what: format!("the man pages were not written into {}", out.display()),
        why: error.to_string(),
        hint: "name a directory that you may write to".to_owned(),
    })
}

/// The command without what is hidden: completions would offer it.
fn shown(command: &Command) -> Command {
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).map(shown);
    let mut copy = Command::new(command.get_name().to_owned()).args(command.get_arguments()).subcommands(commands);
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    if let Some(about) = command.get_long_about() {
        copy = copy.long_about(about.clone());
    }
    if let Some(version) = command.get_version() {
        copy = copy.version(version.to_owned());
    }
    copy
}
