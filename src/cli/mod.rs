//! The command line: one file per command. Uses everything; nothing uses it.

mod audit;
mod call;
mod ceremony;
mod doctor;
mod drill;
mod endpoints;
mod error;
mod etcd;
mod generate;
mod hsm;
mod init;
mod keyring;
mod profiles;
mod recovery;
mod serve;
mod worker;

use std::io::Write;

use clap::{Parser, Subcommand};

pub use self::error::CliError;
use crate::exit::ExitCode;

/// Kubernetes KMS v2 plugin whose key encryption key never leaves a PKCS#11 HSM
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check an audit log
    Audit(audit::AuditArgs),
    /// Call a running plugin the way the API server does
    Call(call::CallArgs),
    /// Make a KEK in an HSM and write its record
    Ceremony(ceremony::CeremonyArgs),
    /// See at a glance whether all is well; changes nothing, and nobody logs in to the HSM
    Doctor(doctor::DoctorArgs),
    /// Play a theft or a loss, and report what came of it
    Drill(drill::DrillArgs),
    /// Look into the store: which KEK it needs, one value of it, how to rewrite it
    Etcd(etcd::EtcdArgs),
    /// Make man pages and shell completions
    Generate(generate::GenerateArgs),
    /// Find out what an HSM really does
    Hsm(hsm::HsmArgs),
    /// Write the files of a cluster: configuration, `EncryptionConfiguration`, units or pod, checklist
    Init(init::InitArgs),
    /// Show and change the KEKs of a cluster: which one seals, which ones open
    Keyring(keyring::KeyringArgs),
    /// The process that tries a module out; started by `hsm probe`, never by hand
    #[command(hide = true)]
    ProbeWorker,
    /// Show and check vendor profiles: what is known of each kind of HSM
    Profiles(profiles::ProfilesArgs),
    /// Prepare for the loss of the KEK, and recover from it
    Recovery(recovery::RecoveryArgs),
    /// Serve KMS v2 on a Unix socket
    Serve(serve::ServeArgs),
    /// The process that loads the vendor module; started by serve, never by hand
    #[command(hide = true)]
    Worker,
    /// The process that starts workers; started by serve, never by hand
    #[command(hide = true)]
    WorkerLauncher,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    match args.command {
        Command::Audit(args) => audit::run(&args).map(|()| ExitCode::Done),
        Command::Call(args) => call::run(args).map(|()| ExitCode::Done),
        Command::Ceremony(args) => ceremony::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Drill(args) => drill::run(&args),
        Command::Etcd(args) => etcd::run(args),
        Command::Generate(args) => generate::run(&args).map(|()| ExitCode::Done),
        Command::Hsm(args) => hsm::run(args),
        Command::Init(args) => init::run(args).map(|()| ExitCode::Done),
        Command::Keyring(args) => keyring::run(args),
        Command::ProbeWorker => hsm::run_worker(),
        Command::Profiles(args) => profiles::run(args).map(|()| ExitCode::Done),
        Command::Recovery(args) => recovery::run(args),
        Command::Serve(args) => serve::run(&args).map(|()| ExitCode::Done),
        Command::Worker => worker::run(),
        Command::WorkerLauncher => worker::run_launcher(),
    }
}

/// Writes to standard output. Whoever reads no further, such as `head`, has seen enough.
fn print<T: AsRef<[u8]> + ?Sized>(bytes: &T) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError {
            code: ExitCode::NotReachable,
            what: "cannot write the output".to_owned(),
            why: error.to_string(),
            hint: "the work itself was done; check standard output".to_owned(),
        }),
        _ => Ok(()),
    }
}
