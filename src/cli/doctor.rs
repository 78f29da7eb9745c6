//! `hsm-kms doctor`: whether all is well, at a glance.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use super::keyring::nodes;
use super::serve::keks;
use super::{CliError, print};
use crate::config::{Config, EndpointAddress, KekSource};
use crate::doctor::{self, Keks, Problem, Subject, Terminal};
use crate::exit::ExitCode;
use crate::keyring::NodeReport;
use crate::kubernetes::KubernetesVersion;

/// See at a glance whether all is well; changes nothing, and nobody logs in to the HSM
///
/// Looks at files, module, token, KEK, the running plugin, the machine, and what the API servers are told. Ends with 0 if nothing failed, with 1 if
/// something did; a warning is no failure (docs/doctor.md).
#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Configuration file of `serve` (docs/configuration.md)
    #[arg(long, value_name = "FILE", default_value = "/etc/hsm-kms/config.yaml")]
    config: PathBuf,
    /// File of kube-apiserver's `--encryption-provider-config`; give those of all nodes to have them compared
    #[arg(long, value_name = "FILE", num_args = 1..)]
    encryption_configuration: Vec<PathBuf>,
    /// Version of the API servers, such as 1.31; the oldest, if they differ
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<KubernetesVersion>,
    /// The plugin's socket, if it is not the one of the configuration
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: DoctorArgs) -> Result<ExitCode, CliError> {
    let config = Config::load(&args.config);
    let config = config.map_err(|error| Problem { why: error.to_string(), hint: error.hint() });
    let problem = |error: CliError| Problem { why: error.why, hint: error.hint };
    let keks = config.as_ref().ok().map(|config| {
        let loaded = keks::load(config).map_err(problem);
        loaded.map(|(keks, keyring)| Keks { keks, keyring })
    });
    let subject = Subject {
        node: config.as_ref().ok().and_then(node),
        config_path: &args.config,
        config,
        keks,
        socket: args.socket,
        encryption: &args.encryption_configuration,
        version: args.kubernetes_version,
    };
    let report = doctor::examine(&subject);
    let text = if args.json { report.to_json() } else { doctor::text(&report, terminal()) };
    print(&text)?;
    Ok(if report.holds() { ExitCode::Done } else { ExitCode::DoesNotHold })
}

/// What this node's plugin says of its keyring.
fn node(config: &Config) -> Option<Result<NodeReport, String>> {
    let address = match (&config.kek.source, config.endpoints.as_ref()?) {
        (KekSource::Record(_), _) => return None,
        (_, EndpointAddress::Tcp(address)) => address.to_string(),
        (_, EndpointAddress::Unix(path)) => path.display().to_string(),
    };
    let reports = nodes::reports(&[address]).map_err(|error| error.why);
    Some(reports.and_then(|reports| reports.into_iter().next().ok_or_else(|| "no answer".to_owned())))
}

/// What standard output can show.
fn terminal() -> Terminal {
    // locale(7): the first of these that is set and not empty.
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
    Terminal {
        colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        unicode: locale.contains("utf-8") || locale.contains("utf8"),
    }
}
