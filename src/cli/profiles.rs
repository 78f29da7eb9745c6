//! `hsm-kms profiles`: what is known of each kind of HSM, and whether a profile file can be used.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};

use super::{CliError, print};
use crate::exit::ExitCode;
use crate::profile::{Evidence, Family, Profile, ProfileError};

/// Show and check vendor profiles: what is known of each kind of HSM
#[derive(Debug, Args)]
pub(super) struct ProfilesArgs {
    #[command(subcommand)]
    command: ProfilesCommand,
}

#[derive(Debug, Subcommand)]
enum ProfilesCommand {
    /// List the profiles that the program brings along
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print one of them: the file with its comments
    Show {
        /// As `list` names it, without the variant
        name: String,
        /// Print JSON instead: every variant, with all defaults and the evidence of each field
        #[arg(long)]
        json: bool,
    },
    /// Check a profile file of your own (docs/profiles.md)
    Lint {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(args: ProfilesArgs) -> Result<(), CliError> {
    match args.command {
        ProfilesCommand::List { json } => list(json),
        ProfilesCommand::Show { name, json } => show(&name, json),
        ProfilesCommand::Lint { file } => lint(&file),
    }
}

fn list(json: bool) -> Result<(), CliError> {
    let families = Profile::names().map(Family::by_name).collect::<Result<Vec<_>, _>>();
    let families = families.map_err(|error| unusable("a built-in profile cannot be read", &error))?;
    if json {
        let list: Vec<_> = families.iter().map(Family::json).collect();
        return print(&format!("{:#}\n", serde_json::Value::from(list)));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["NAME", "PRODUCT", "SEAL", "KNOWN FROM"]);
    for family in families {
        let mut profiles = family.profiles.iter();
        if let [only] = family.profiles.as_slice() {
            table.add_row([&family.name, &family.title, &seal(only), known_from(only)]);
            profiles.next();
        } else {
            table.add_row([family.name.as_str(), &family.title, "", ""]);
        }
        for profile in profiles {
            let variant = profile.variant.clone().unwrap_or_default();
            let default = if profile.variant == family.default_variant { "the default" } else { "" };
            table.add_row([&format!("  /{variant}"), default, &seal(profile), known_from(profile)]);
        }
    }
    let text: String = table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect();
    print(&format!(
        "{text}\nKNOWN FROM: the weakest evidence of what the profile says about sealing.\n\
         `*`: this release cannot serve with it yet.\n\
         `hsm-kms profiles show NAME` has the rest.\n"
    ))
}

const WIDTH: u16 = 80;

fn seal(profile: &Profile) -> String {
    match (&profile.refuse, profile.seal) {
        (Some(_), _) => "refused".to_owned(),
        (None, None) => "none".to_owned(),
        (None, Some(seal)) => {
            let word = serde_json::to_value(seal.sealing.form.seal).ok();
            let word = word.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
            format!("{word}{}", if profile.usable().is_ok() { "" } else { " *" })
        }
    }
}

fn known_from(profile: &Profile) -> &'static str {
    let of_seal = profile.evidence.iter().filter(|(field, _)| field.starts_with("seal."));
    of_seal.map(|(_, evidence)| *evidence).max().map_or("", Evidence::word)
}

fn show(name: &str, json: bool) -> Result<(), CliError> {
    let family = Family::by_name(name).map_err(|error| unusable(&format!("there is no profile {name:?}"), &error))?;
    if json {
        return print(&format!("{:#}\n", family.json()));
    }
    print(Family::text(name).unwrap_or_default())
}

fn lint(file: &Path) -> Result<(), CliError> {
    let family = Family::load(file)
        .map_err(|error| unusable(&format!("{} is no profile", file.display()), &ProfileError::from(error)))?;
    let report = |profile: &Profile| {
        let use_now = profile.usable().map_or_else(|why| why.to_string(), |_| "this release can use it".to_owned());
        let unproved = match profile.unproved().as_slice() {
            [] => "nothing".to_owned(),
            names => names.join(", "),
        };
        format!("{}: the file is right; {use_now}\n  not proved: {unproved}\n", profile.full_name())
    };
    print(&family.profiles.iter().map(report).collect::<String>())
}

fn unusable(what: &str, error: &ProfileError) -> CliError {
    CliError { code: ExitCode::BadUsage, what: what.to_owned(), why: error.to_string(), hint: error.hint() }
}
