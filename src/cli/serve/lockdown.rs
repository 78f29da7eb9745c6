//! What front and workers may do (`src/sandbox`): the rules that follow from the configuration, and the word at the start.

use std::path::{Path, PathBuf};

use crate::audit::{self, Destination};
use crate::cli::CliError;
use crate::config::{self, Config, EndpointAddress, KekSource};
use crate::exit::ExitCode;
use crate::pin::PinSource;
use crate::sandbox::{self, Connect, FrontRules, Mode};
use crate::wire::link;

/// Refuses a kernel that cannot do what is required; says what it lacks where that is not required.
pub(super) fn check(config: &Config) -> Result<(), CliError> {
    if config.sandbox == Mode::Off {
        tracing::warn!("sandbox: off; front and worker may do whatever their user may");
        return Ok(());
    }
    let missing = sandbox::support().missing().join(", ");
    if missing.is_empty() {
        return Ok(());
    }
    if config.sandbox == Mode::Require {
        return Err(refused(format!("sandbox: require, and this kernel lacks {missing}")));
    }
    tracing::warn!("the sandbox is not whole: this kernel lacks {missing}");
    Ok(())
}

/// Limits this process for good. What it needs after its start must be bound, open or running by now, or stand in the rules.
pub(super) fn front(config: &Config) -> Result<(), CliError> {
    let rules = front_rules(config);
    let held = sandbox::front(&rules, config.sandbox).map_err(|error| refused(error.to_string()))?;
    if config.sandbox != Mode::Off {
        for pin in pins(config).filter(|pin| is_within(pin, &rules)) {
            tracing::warn!(
                "the PIN file {} lies in a folder that the front must read: put it into a folder of its own",
                pin.display()
            );
        }
        tracing::info!(front = %held, "sandbox set; each worker tells of its own");
    }
    Ok(())
}

/// **Here is the place for files that the front opens after its start.** Name the folder: a file that is replaced by another of its
/// name, by a rotation of logs for one, is another file to the kernel.
fn front_rules(config: &Config) -> FrontRules {
    let mut rules = FrontRules::default();
    // Followed while it serves, with the records beside it. A lone record is read once.
    if let KekSource::Keyring(path) = &config.kek.source {
        rules.read.extend(folder(path));
    }
    // Read again for each answer of /metrics.
    rules.read.extend(config.kek.recovery_drill.as_deref().and_then(folder));
    // Opened soon, and again after a rotation of logs.
    if let Some(audit::Settings { to: Destination::File(path), .. }) = &config.audit {
        rules.write.extend(folder(path));
    }
    rules.remove.extend(folder(&config.socket.path));
    if let Some(EndpointAddress::Unix(path)) = &config.endpoints {
        rules.remove.extend(folder(path));
    }
    rules
}

/// What the worker of this token is told.
pub(super) fn worker(mode: Mode, token: &config::Token) -> link::Sandbox {
    let profile = &token.profile;
    // The operator sets variables for nothing but the module: what they name is meant for it.
    let variables = token.environment.iter().filter(|(_, value)| Path::new(value).is_absolute());
    let mut configuration: Vec<_> = variables.map(|(name, _)| format!("${name}")).collect();
    if configuration.is_empty() {
        configuration.extend(profile.module.files.iter().map(|path| path.display().to_string()));
    }
    let all = |of_profile: &[sandbox::RulePath], of_token: &[PathBuf]| {
        let of_token = of_token.iter().map(|path| path.display().to_string());
        of_profile.iter().map(ToString::to_string).chain(of_token).collect()
    };
    let connect = profile.sandbox.connect.clone().and(&token.sandbox.connect);
    link::Sandbox {
        mode: mode as u32,
        configuration,
        read: all(&profile.sandbox.read, &token.sandbox.read),
        write: all(&profile.sandbox.write, &token.sandbox.write),
        connect_any: connect == Connect::Any,
        connect: match connect {
            Connect::Any => Vec::new(),
            Connect::Ports(ports) => ports.into_iter().map(u32::from).collect(),
        },
    }
}

/// The files with PINs.
fn pins(config: &Config) -> impl Iterator<Item = PathBuf> {
    config.tokens().filter_map(|token| match &token.pin {
        Some(PinSource::File(path)) => path.canonicalize().ok(),
        _ => None,
    })
}

fn is_within(file: &Path, rules: &FrontRules) -> bool {
    let mut folders = rules.read.iter().chain(&rules.write).filter_map(|folder| folder.canonicalize().ok());
    folders.any(|folder| file.starts_with(folder))
}

fn folder(path: &Path) -> Option<PathBuf> {
    path.parent().map(Path::to_owned)
}

fn refused(why: String) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "the sandbox cannot be set".to_owned(),
        why,
        hint: "use a newer kernel, or set sandbox: best-effort".to_owned(),
    }
}
