//! The checked form of a profile file as JSON, for `profiles show --json`.

use serde_json::{Map, Value, json};

use super::words::{attribute_word, key_type_word, mechanism_word};
use super::{Aad, AttributeSetting, Family, KeyGeneration, Params, Profile, ProfileSeal, code_name};

impl Family {
    /// Name, title, default variant, and every profile with its defaults filled in and evidence for each field.
    pub fn json(&self) -> Value {
        let profiles: Vec<_> = self.profiles.iter().map(Profile::json).collect();
        json!({
            "name": self.name,
            "title": self.title,
            "default_variant": self.default_variant,
            "profiles": profiles,
        })
    }
}

impl Profile {
    fn json(&self) -> Value {
        let Self { name: _, variant, title: _, refuse, module, login, seal, key, sessions, recover, .. } = self;
        let evidence: Map<_, _> =
            self.evidence.iter().map(|(field, evidence)| ((*field).to_owned(), json!(evidence))).collect();
        let add: Map<_, _> = key.add.iter().map(|(name, value)| (attribute_word(*name), setting(*value))).collect();
        let omit: Vec<_> = key.omit.iter().map(|attribute| attribute_word(*attribute)).collect();
        let generate = match key.generate {
            KeyGeneration::Mechanism(mechanism) => mechanism_word(mechanism),
            KeyGeneration::Tool => "tool".to_owned(),
        };
        json!({
            "full_name": self.full_name(),
            "variant": variant,
            "refuse": refuse,
            "usable": self.usable().is_ok(),
            "module": {
                "paths": module.paths,
                "manufacturers": module.manufacturers,
                "environment": module.environment,
                "files": module.files,
                "daemon": module.daemon,
            },
            "login": { "user": login.user, "pin": login.pin },
            "seal": seal.map(seal_json),
            "key": { "type": key_type_word(key.kind), "generate": generate, "add": add, "omit": omit },
            "sessions": { "max": sessions.max, "serial": sessions.serial },
            "recover": {
                "gone": recover.gone,
                "probe_seconds": recover.probe.map(|time| time.as_secs()),
                "call_limit_ms": recover.call_limit.map(|time| time.as_millis()),
            },
            "codes": self.codes_json(),
            "ha": self.ha,
            "key_settle": format!("{}s", self.key_settle.as_secs()),
            "backup": self.backup,
            "sandbox": {
                "read": self.sandbox.read,
                "write": self.sandbox.write,
                "connect": self.sandbox.connect,
            },
            "evidence": evidence,
        })
    }

    fn codes_json(&self) -> Map<String, Value> {
        let entries = self.codes.iter().map(|entry| {
            let code = code_name(entry.code).map_or_else(|| format!("{:#x}", entry.code), str::to_owned);
            let function = entry.function.map(|function| format!("@{function}")).unwrap_or_default();
            (format!("{code}{function}"), Value::from(entry.class.word()))
        });
        entries.collect()
    }
}

fn seal_json(seal: ProfileSeal) -> Value {
    let ProfileSeal { sealing, max_bytes } = seal;
    let form = sealing.form;
    json!({
        "mechanism": form.seal,
        "number": mechanism_word(sealing.mechanism),
        "call": sealing.call,
        "params": Params::of(form.seal),
        "iv": { "send": sealing.send, "found": form.iv_layout, "bytes": form.iv_length },
        "aad": Aad::of(form.seal),
        "max_bytes": max_bytes,
    })
}

fn setting(value: AttributeSetting) -> Value {
    match value {
        AttributeSetting::Flag(flag) => flag.into(),
        AttributeSetting::Number(number) => number.into(),
    }
}
