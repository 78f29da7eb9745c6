//! `hsm-kms drill hsm-loss`: the HSM goes while the plugin serves, and comes back.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::report::Report;
use super::stage::{self, CLUSTER, Folder, PAUSE, Plugin, Token, out_of_reach};
use super::{Output, load};
use crate::cli::CliError;
use crate::cli::keyring::nodes;
use crate::config::{Config, EndpointAddress};
use crate::doctor;
use crate::kms::status::{COAST, HealthPolicy};

/// Take the HSM away while the plugin serves, and give it back
#[derive(Args, Debug)]
pub(super) struct HsmLossArgs {
    /// Look at the running plugin of this configuration, and take nothing away
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl HsmLossArgs {
    pub(super) fn output(&self) -> &Output {
        &self.output
    }
}

pub(super) fn run(args: &HsmLossArgs) -> Result<Report, CliError> {
    match &args.config {
        Some(path) => real(path),
        None => throw_away(&Folder::new()?),
    }
}

const TITLE: &str = "The HSM cannot be reached";

/// The plugin knows within 5 s (docs/resilience.md).
const TOLD: Duration = Duration::from_secs(10);
const BACK: Duration = Duration::from_mins(1);
const SEED: &[u8; 32] = b"a seed of a drill, known to all.";

fn throw_away(folder: &Folder) -> Result<Report, CliError> {
    let mut report = Report::new("hsm-loss", TITLE, "a throw-away SoftHSM2 token".to_owned());
    let (hsm, node) = (Token::new(folder.within("hsm")?)?, folder.within("node")?);
    let record = hsm.make_kek(None, &node)?;
    stage::configure(&node, CLUSTER, &hsm.section(), &record)?;
    let mut plugin = Plugin::serving(&node)?;
    let socket = plugin.socket.clone();
    let sealed = stage::encrypt(&socket, SEED).map_err(out_of_reach)?;
    stage::opens(&socket, &sealed, SEED).map_err(out_of_reach)?;
    report.step("the plugin serves: Encrypt, Decrypt", "both", Ok("a seed was sealed and opened".to_owned()));

    hsm.take_away()?;
    // A worker that has the token's files open would go on: a device that is pulled leaves none.
    for pid in workers(plugin.pid()) {
        let _ = Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, Signal::KILL));
    }
    let gone = Instant::now();
    let told = wait(TOLD, || stage::status(&socket).ok().filter(|answer| answer.healthz != "ok"));
    let found = told.as_ref().map(|answer| format!("after {} ms: {}", gone.elapsed().as_millis(), answer.healthz));
    report.step("the HSM is taken away; Status", "tells within 10 s", found.ok_or_else(|| "Status says ok".to_owned()));
    let same = told.map_or_else(|| Err("no Status".to_owned()), |answer| same_key(&answer.key_id, &sealed.key_id));
    report.step("its key_id", "stays, so that nobody takes it for a rotation", same);
    let began = Instant::now();
    let refused = match stage::opens(&socket, &sealed, SEED) {
        Ok(()) => Err("it opened without the HSM".to_owned()),
        Err(why) => Ok(format!("{why}; after {} ms", began.elapsed().as_millis())),
    };
    report.step("Decrypt", "is refused, within the API server's 3 s", refused);
    let refused = stage::encrypt(&socket, SEED).err().ok_or_else(|| "it sealed without the HSM".to_owned());
    report.step("Encrypt", "is refused", refused);
    let lives = if plugin.lives() { Ok("it lives, and answers".to_owned()) } else { Err("it ended".to_owned()) };
    report.step("the plugin and its socket", "stay: an API server that meets no socket backs off for minutes", lives);

    hsm.give_back()?;
    let back = Instant::now();
    let opened = wait(BACK, || stage::opens(&socket, &sealed, SEED).ok());
    let found = opened.map(|()| format!("after {} ms", back.elapsed().as_millis()));
    report.step(
        "the HSM is back; what was sealed before",
        "opens within 60 s, by itself",
        found.ok_or_else(|| "it does not open".to_owned()),
    );
    let well = wait(TOLD, || stage::status(&socket).ok().filter(|answer| answer.healthz == "ok"));
    report.step("Status", "ok", well.map(|answer| answer.healthz).ok_or_else(|| "it is not ok".to_owned()));
    report.note(
        "health: strict was set. With coast, the default, Status says ok for the first 120 s (docs/resilience.md).",
    );
    report.note("What the API server does meanwhile stands in docs/runbooks/hsm-unreachable.md.");
    Ok(report)
}

fn same_key(found: &str, expected: &str) -> Result<String, String> {
    if found == expected { Ok(format!("still {found}")) } else { Err(format!("{found}, before {expected}")) }
}

/// The processes below the plugin that have no children: its workers, and not the launcher.
fn workers(front: u32) -> Vec<u32> {
    let children = doctor::children(front);
    let below: Vec<u32> = children.iter().flat_map(|pid| doctor::children(*pid)).collect();
    if below.is_empty() { children } else { below }
}

fn wait<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            None if Instant::now() < deadline => thread::sleep(PAUSE),
            found => return found,
        }
    }
}

fn real(path: &Path) -> Result<Report, CliError> {
    let config = load(path)?;
    let against = format!("the plugin of {}, reading only: nothing was taken away", path.display());
    let mut report = Report::new("hsm-loss", TITLE, against);
    let began = Instant::now();
    let status = stage::status(&config.socket.path).map_err(|why| stage::no_plugin(&config.socket.path, &why))?;
    let seen = format!("{} in {} ms, key_id {}", status.healthz, began.elapsed().as_millis(), status.key_id);
    report.step("Status", "ok", if status.healthz == "ok" { Ok(seen) } else { Err(seen) });
    let count = config.standby.len();
    let standby = match count {
        0 => Err("none: while the one token is out of reach, nothing is sealed and nothing new is opened".to_owned()),
        count => Ok(format!(
            "{count}, of profile {}",
            config.standby.iter().map(|standby| standby.token.profile.full_name()).collect::<Vec<_>>().join(", ")
        )),
    };
    report.step("standby tokens", "at least one", standby);
    tokens(&mut report, &config);
    report.note(match config.health {
        HealthPolicy::Coast => format!("health: coast. Status says ok for the first {} s of a loss.", COAST.as_secs()),
        HealthPolicy::Strict => "health: strict. Status tells of a loss as soon as the plugin knows.".to_owned(),
    });
    report.note("To see a loss with times, run this drill without --config. To see it on this HSM, take it away by hand, in a window that was agreed to (docs/runbooks/hsm-unreachable.md).");
    Ok(report)
}

/// What the metrics say of each token.
fn tokens(report: &mut Report, config: &Config) {
    let address = match &config.endpoints {
        None => {
            report.note("The configuration has no `endpoints`, so that the state of each token is not seen.");
            return;
        }
        Some(EndpointAddress::Tcp(address)) => address.to_string(),
        Some(EndpointAddress::Unix(path)) => path.display().to_string(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string());
    let metrics = runtime.and_then(|runtime| runtime.block_on(nodes::get(&address, "/metrics")));
    let found = metrics.and_then(|bytes| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let up = |line: &&str| line.starts_with("hsm_kms_token_up{");
        let tokens: Vec<&str> = text.lines().filter(up).collect();
        let sound = tokens.iter().filter(|line| line.ends_with(" 1")).count();
        let seen = format!("{sound} of {} serve", tokens.len());
        if sound == tokens.len() && sound > 0 { Ok(seen) } else { Err(seen) }
    });
    report.step("each token, by /metrics", "all of them serve", found);
}
