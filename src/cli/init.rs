//! `hsm-kms init`: from a few answers to the files of a cluster.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::{CliError, print};
use crate::ceremony::{Console, ConsoleError};
use crate::cluster::Cluster;
use crate::exit::ExitCode;
use crate::init::{self, Answers, Image, InitError, NewFile, PlainPath, Platform, SocketPath, TokenLabel, Variable};
use crate::profile::Profile;

/// Write the files of a cluster: configuration, `EncryptionConfiguration`, units or pod, checklist
///
/// Asks on a terminal for what the flags do not say. Writes into a new folder, all or nothing, and changes nothing else (docs/init.md).
#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// The cluster's name: it is bound to every sealed seed and never changes
    #[arg(long, value_name = "NAME")]
    cluster: Option<Cluster>,
    /// How plugin and API server are run
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// The vendor profile, as `hsm-kms profiles list` names it, or the path of a profile file
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// The vendor's PKCS#11 library on the nodes [default: where the profile says]
    #[arg(long, value_name = "PATH")]
    module: Option<PlainPath>,
    /// The label of the token that has the KEK, or will have it
    #[arg(long, value_name = "LABEL")]
    token_label: Option<TokenLabel>,
    /// A variable that the module needs, such as its configuration file; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    environment: Vec<Variable>,
    /// The Unix socket that the API server calls [default: that of the platform]
    #[arg(long, value_name = "PATH")]
    socket: Option<SocketPath>,
    /// The image, where the plugin is a pod
    #[arg(long, value_name = "IMAGE", default_value = "localhost/hsm-kms:latest")]
    image: Image,
    /// The folder to write; it must not exist, or be empty [default: hsm-kms-CLUSTER]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: InitArgs) -> Result<(), CliError> {
    let output = args.output.clone();
    let answers = answers(args)?;
    let output = output.unwrap_or_else(|| PathBuf::from(format!("hsm-kms-{}", answers.cluster)));
    let files = init::files(&answers).map_err(|error| refused(&error))?;
    init::write(&output, &files).map_err(|error| refused(&error))?;
    print(&summary(&output, &files))
}

fn summary(output: &Path, files: &[NewFile]) -> String {
    let names: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    format!("{} is written:\n  {}\nBegin with CHECKLIST.md.\n", output.display(), names.join("\n  "))
}

/// What the flags say, and what is asked for where they do not.
fn answers(args: InitArgs) -> Result<Answers, CliError> {
    let missing: Vec<_> = [
        ("--cluster", args.cluster.is_none()),
        ("--platform", args.platform.is_none()),
        ("--profile", args.profile.is_none()),
        ("--token-label", args.token_label.is_none()),
    ]
    .into_iter()
    .filter_map(|(flag, is_missing)| is_missing.then_some(flag))
    .collect();
    let mut asked = if missing.is_empty() { None } else { Some(console(&missing)?) };
    let cluster = match (args.cluster, &mut asked) {
        (None, Some(console)) => ask(console, "cluster", "Name of the cluster", None)?,
        (cluster, _) => cluster.ok_or_else(|| unanswered(&missing))?,
    };
    let platform = match (args.platform, &mut asked) {
        (None, Some(console)) => {
            console.say(&platforms());
            ask::<PlatformWord>(console, "platform", "Platform", Some("kubeadm"))?.0
        }
        (platform, _) => platform.ok_or_else(|| unanswered(&missing))?,
    };
    let (profile_name, profile) = match (args.profile, &mut asked) {
        (None, Some(console)) => {
            console.tell("`hsm-kms profiles list` shows the profiles: which HSMs, what is proved of each.");
            let NamedProfile(name, profile) = ask(console, "profile", "Profile of the HSM", Some("softhsm2"))?;
            (name, profile)
        }
        (named, _) => {
            let named = named.ok_or_else(|| unanswered(&missing))?;
            let NamedProfile(name, profile) = named.parse().map_err(|why: String| bad_answer("--profile", &why))?;
            (name, profile)
        }
    };
    let usual = init::default_module(&profile);
    let module = match (args.module, &mut asked, usual) {
        (Some(module), _, _) => module,
        (None, Some(console), usual) => {
            ask(console, "module", "Path of the PKCS#11 library", usual.as_ref().map(PlainPath::as_str))?
        }
        (None, None, Some(usual)) => usual,
        (None, None, None) => {
            return Err(bad_answer("--module", "it is missing, and the profile knows no path"));
        }
    };
    let token_label = match (args.token_label, &mut asked) {
        (None, Some(console)) => ask(console, "token-label", "Label of the token", None)?,
        (label, _) => label.ok_or_else(|| unanswered(&missing))?,
    };
    let mut environment = args.environment;
    if let Some(console) = &mut asked
        && environment.is_empty()
    {
        for name in &profile.module.environment {
            let text = format!("{name} of the module, if it needs it");
            let Optional(variable) = ask(console, name, &text, Some(""))?;
            environment.extend(variable.map(|value| Variable { name: name.clone(), value }));
        }
    }
    let usual = platform.socket();
    let socket = match (args.socket, &mut asked) {
        (Some(socket), _) => socket,
        (None, Some(console)) => ask(console, "socket", "Socket of the plugin", Some(usual.as_str()))?,
        (None, None) => usual,
    };
    let image = args.image;
    Ok(Answers { cluster, profile_name, profile, module, token_label, environment, socket, platform, image })
}

fn console(missing: &[&str]) -> Result<Console, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(unanswered(missing));
    }
    Console::new(None).map_err(|error| closed(&error))
}

/// Asks until there is an answer that can be used. An empty one is the default.
fn ask<T: FromStr<Err: Display>>(
    console: &mut Console,
    question: &str,
    text: &str,
    usual: Option<&str>,
) -> Result<T, CliError> {
    let shown = match usual {
        None | Some("") => text.to_owned(),
        Some(usual) => format!("{text} [{usual}]"),
    };
    loop {
        let answer = console.ask(question, &shown).map_err(|error| closed(&error))?;
        let answer = if answer.is_empty() { usual.unwrap_or_default() } else { &answer };
        match answer.parse() {
            Ok(value) => return Ok(value),
            Err(why) => console.tell(&why.to_string()),
        }
    }
}

/// A profile that can be served with, and its name.
struct NamedProfile(String, Profile);

impl FromStr for NamedProfile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') {
            // It stands in the configuration and in the checklist.
            text.parse::<PlainPath>()?;
        }
        let profile = Profile::named(text).map_err(|error| format!("{error}; {}", error.hint()))?;
        profile.usable().map_err(|why| format!("{why}; {}", why.hint()))?;
        Ok(Self(text.to_owned(), profile))
    }
}

struct PlatformWord(Platform);

impl FromStr for PlatformWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let platform = Platform::from_str(text, false).map(Self);
        platform.map_err(|_| format!("expected one of {}", words().join(", ")))
    }
}

/// The value of a variable, or none.
struct Optional(Option<String>);

impl FromStr for Optional {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        // Its value is judged as on the command line.
        format!("X={text}").parse::<Variable>().map(|variable| Self(Some(variable.value)))
    }
}

fn words() -> Vec<String> {
    Platform::value_variants().iter().map(|platform| platform.word()).collect()
}

fn platforms() -> String {
    let values = Platform::value_variants().iter().filter_map(Platform::to_possible_value);
    let lines = values.map(|value| {
        let help = value.get_help().map(ToString::to_string).unwrap_or_default();
        format!("   {:<12}{help}", value.get_name())
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn unanswered(missing: &[&str]) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "nothing was written".to_owned(),
        why: format!("there is no terminal to ask on, and no {}", missing.join(", ")),
        hint: "give these flags, or run it on a terminal; `hsm-kms init --help` says what they mean".to_owned(),
    }
}

fn bad_answer(flag: &str, why: &str) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "nothing was written".to_owned(),
        why: format!("{flag}: {why}"),
        hint: "`hsm-kms init --help` says what is expected".to_owned(),
    }
}

fn closed(error: &ConsoleError) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "nothing was written".to_owned(),
        why: error.to_string(),
        hint: "start again, or give the answers as flags".to_owned(),
    }
}

fn refused(error: &InitError) -> CliError {
    CliError {
        code: ExitCode::BadUsage,
        what: "nothing was written".to_owned(),
        why: error.to_string(),
        hint: error.hint(),
    }
}
