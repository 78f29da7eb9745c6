//! Texts that only `init` writes: configuration, plan, checklist.

use std::fmt::Write;

use askama::Template;
use serde_json::json;

use super::{Answers, Platform};

/// The configuration of `serve`.
pub(super) fn configuration(answers: &Answers) -> String {
    let Answers { cluster, profile_name, socket, platform, .. } = answers;
    let (mode, peers) = if *platform == Platform::Talos {
        // Its API server is not root.
        ("0660", "  # root, and the user of Talos's API server: look for runAsUser in its pod.\n  peers: [0, 65534]\n")
    } else {
        ("0600", "")
    };
    let place = if platform.has_units() { "root:hsm-kms, mode 0640" } else { "root:root, mode 0600" };
    let pin = match (answers.logs_in(), platform.has_units()) {
        (false, _) => "",
        (true, true) => {
            "  # Of systemd: LoadCredential= in the unit reads /etc/hsm-kms/pin.\n  pin: { credential: pin }\n"
        }
        (true, false) => "  pin: { file: /etc/hsm-kms/pin }\n",
    };
    format!(
        "# Configuration of `hsm-kms serve` on every control-plane node:\n\
         # /etc/hsm-kms/config.yaml, {place}. docs/configuration.md describes each key.\n\
         version: 1\n\
         cluster: {}\n\
         socket:\n  path: {}\n  mode: \"{mode}\"\n{peers}\
         {}{pin}\
         kek:\n  record: /etc/hsm-kms/kek-record.json\n\
         # /livez, /readyz and /metrics, for this machine alone.\n\
         endpoints: 127.0.0.1:9465\n",
        json!(cluster),
        json!(socket.as_str()),
        token(answers, profile_name),
    )
}

/// The section `token`, without a PIN.
fn token(answers: &Answers, profile: &str) -> String {
    let mut text = format!(
        "token:\n  profile: {}\n  module: {}\n  label: {}\n",
        json!(profile),
        json!(answers.module.as_str()),
        json!(answers.token_label.as_str())
    );
    if !answers.environment.is_empty() {
        text.push_str("  environment:\n");
    }
    for variable in &answers.environment {
        let _ = writeln!(text, "    {}: {}", variable.name, json!(variable.value));
    }
    text
}

/// The plan of the ceremony, with what is known of it.
pub(super) fn plan(answers: &Answers) -> String {
    PLAN.replacen("cluster: FILL-IN\n", &format!("cluster: {}\n", json!(answers.cluster)), 1).replacen(
        PLAN_TOKEN,
        &token(answers, &answers.profile_name),
        1,
    )
}

const PLAN: &str = include_str!("../cli/ceremony/plan.yaml");
const PLAN_TOKEN: &str = "token:\n  profile: softhsm2\n  label: FILL IN\n";

/// What to do, in order.
pub(super) fn checklist(answers: &Answers) -> String {
    let checklist = Checklist {
        answers,
        platform: answers.platform.word(),
        units: answers.platform.has_units(),
        profile_command: if answers.profile_name.starts_with('/') {
            format!("lint {}", answers.profile_name)
        } else {
            format!("show {}", answers.profile.name)
        },
        configuration: if answers.platform == Platform::Talos {
            "/var/lib/hsm-kms-configuration"
        } else {
            "/etc/hsm-kms"
        },
        kubeadm: matches!(answers.platform, Platform::Kubeadm | Platform::StaticPod),
        version: env!("CARGO_PKG_VERSION"),
    };
    // Writing into a String does not fail.
    checklist.render().unwrap_or_default() + "\n"
}

#[derive(Template)]
#[template(path = "checklist.md", config = "src/init/askama.toml")]
struct Checklist<'a> {
    answers: &'a Answers,
    platform: String,
    units: bool,
    profile_command: String,
    configuration: &'static str,
    kubeadm: bool,
    version: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_has_what_is_replaced() {
        assert!(PLAN.contains("\ncluster: FILL-IN\n") && PLAN.contains(PLAN_TOKEN));
    }
}
