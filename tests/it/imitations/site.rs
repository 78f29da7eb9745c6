//! A token behind the fault module that plays a vendor, and the profile that is meant for it.

use std::fs;

use hsm_kms::profile::{Family, Profile, UserKind};
use serde_json::{Value, json};

use super::vendors::{USER, Vendor};
use super::{SEED, try_encrypt};
use crate::fault_module::FaultModule;
use crate::faults::{faults, until};
use crate::harness::{CLUSTER, LABEL, Plugin, TestToken, run, write_secret};

/// A vendor's module in front of a token of its own.
pub struct Site {
    pub token: TestToken,
    pub fault: FaultModule,
    pub profile: Profile,
    pub section: Value,
    pub imitate: Value,
}

impl Site {
    pub fn new(vendor: &Vendor) -> Self {
        let profile = Profile::by_name(vendor.profile).unwrap();
        let token = if vendor.profile.ends_with("/kwp") { TestToken::kryoptic() } else { TestToken::new() };
        let fault = FaultModule::new(&token, "vendor");
        let imitate = (vendor.imitate)(&token);
        let mut section = token.section();
        section["profile"] = json!(vendor.profile);
        // What its configuration variable names is looked at by the vendor's module only.
        for name in &profile.module.environment {
            section["environment"][name] = json!("/none");
        }
        if profile.module.environment.is_empty() && !profile.module.files.iter().all(|file| file.is_file()) {
            section["profile"] = json!(without_files(&token, &profile));
        }
        if imitate["login"]["name"].is_object() {
            let pin = token.directory().join("named-pin");
            write_secret(&pin, &format!("{USER}:{}", fs::read_to_string(&token.pin).unwrap()));
            section["pin"] = json!({"file": pin});
        }
        if profile.login.user == UserKind::None {
            section.as_object_mut().unwrap().remove("pin");
        }
        fault.stand_in_front(&mut section);
        let site = Self { token, fault, profile, section, imitate };
        site.set(&[]);
        site
    }

    /// The vendor, with these rules besides.
    pub fn set(&self, rules: &[Value]) {
        let manufacturer = self.profile.module.manufacturers.first();
        let name = manufacturer
            .map(|name| json!({"function": "C_GetInfo", "action": {"module_info": {"manufacturer": name}}}));
        let rules: Vec<_> = name.into_iter().chain(rules.iter().cloned()).collect();
        self.fault.set(&json!({"imitate": self.imitate, "rules": rules}));
    }

    /// No KEK is made under a profile that says anything else of the seal, and nothing is left behind.
    pub fn refuses_other_forms(&self) {
        let text = Family::text(&self.profile.name).unwrap();
        let family = Family::parse(text.as_bytes()).unwrap().json();
        let of_profile = |json: &&Value| json["full_name"] == json!(self.profile.full_name());
        let own = family["profiles"].as_array().unwrap().iter().find(of_profile).unwrap().clone();
        let gcm = own["seal"]["mechanism"] == "aes-gcm";
        let ivs = [
            json!({"send": "random", "found": "sent", "bytes": 12}),
            json!({"send": "zeros", "found": "param", "bytes": 12}),
            json!({"send": "none", "found": "suffix", "bytes": 12}),
            json!({"send": "none", "found": "suffix", "bytes": 16}),
            json!({"send": "none", "found": "prefix", "bytes": 12}),
        ];
        let other_ivs = ivs.into_iter().filter(|iv| gcm && *iv != own["seal"]["iv"]);
        let mut seals: Vec<Value> =
            other_ivs.map(|iv| json!({"mechanism": "aes-gcm", "number": own["seal"]["number"], "iv": iv})).collect();
        seals.push(json!({"mechanism": own["seal"]["mechanism"], "number": "0x80000999"}));
        seals.extend(self.imitate["hidden"].is_array().then(|| json!({"mechanism": "aes-kwp"})));
        let path = self.token.directory().join("other.yaml");
        for seal in seals {
            let other = json!({
                "version": 1, "name": "other", "title": "Other", "login": own["login"], "key": own["key"], "seal": seal,
                "evidence": {"default": "unconfirmed"},
            });
            fs::write(&path, other.to_string()).unwrap();
            let mut section = self.section.clone();
            section["profile"] = json!(path);
            let (code, text) = self.ceremony(&section);
            assert_ne!(code, Some(0), "{} seals as {seal}", self.profile.full_name());
            assert!(REASONS.iter().any(|reason| text.contains(reason)), "{seal}: {text}");
            assert!(!self.token.directory().join("kek-record.json").exists());
        }
        // The label is free for the right one, since each of these took its key away again.
    }

    fn ceremony(&self, section: &Value) -> (Option<i32>, String) {
        let plan = json!({
            "version": 1, "kind": "trial", "cluster": CLUSTER, "token": section, "output": self.token.directory(),
            "kek": {"label": LABEL, "permit": ["CKA_ALLOWED_MECHANISMS"]},
        });
        let path = self.token.directory().join("other-plan.yaml");
        fs::write(&path, plan.to_string()).unwrap();
        let output = run(&["ceremony", "run", "--plan", path.to_str().unwrap()], b"");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// The function answers a start with this code; the plugin takes it as the profile says, and serves again afterwards.
    pub async fn reads_a_code(&self, plugin: &Plugin, function: &str, code: u64, class: &str) {
        let before = faults(plugin).len();
        self.set(&[json!({"function": function, "action": {"return": code}})]);
        plugin.hang_up();
        until(&format!("{function} {code:#x}"), async || faults(plugin).len() > before).await;
        let fault = faults(plugin).remove(before);
        assert!(fault.contains(&format!("class=\"{class}\"")), "{function} {code:#x}: {fault}");
        assert!(fault.contains(&format!("{function} returned")), "{fault}");
        let logins = self.fault.calls("C_Login");
        self.set(&[]);
        if class == "pin-or-config" {
            assert_eq!(self.fault.calls("C_Login"), logins, "a login is not tried again by itself");
            plugin.hang_up();
        }
        let mut client = plugin.client().await;
        until("the plugin to serve again", async || try_encrypt(&mut client, SEED).await.is_ok()).await;
    }
}

/// Why a ceremony ends when the module does not seal as the profile says.
const REASONS: [&str; 5] = [
    "CKR_MECHANISM_PARAM_INVALID",
    // It would put an IV beside the ciphertext.
    "CKR_BUFFER_TOO_SMALL",
    "CKR_OK with a wrong length",
    "does not seal as its profile says",
    "which the profile needs",
];

/// The program's own profile without `module.files`: they are its client's own, and no variable sends it to others.
fn without_files(token: &TestToken, profile: &Profile) -> String {
    let text = Family::text(&profile.name).unwrap();
    let kept: Vec<_> = text.lines().filter(|line| !line.starts_with("  files: ")).collect();
    let path = token.directory().join("built-in.yaml");
    fs::write(&path, kept.join("\n")).unwrap();
    let copy = Profile::load(&path).unwrap();
    assert_eq!((&copy.seal, &copy.key, &copy.login), (&profile.seal, &profile.key, &profile.login));
    path.to_str().unwrap().to_owned()
}
