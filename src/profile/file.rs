//! Version 1 of a profile file: its raw form. Every setting is optional here, so that a variant can leave it to the file.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::words::{Attribute, Code, Count, KeyType, Line, Mechanism, Name, Setting, Settle};
use super::{Aad, Backup, Evidence, Gone, HighAvailability, Params, PinForm, UserKind, words};
use crate::sandbox::{Connect, RulePath};
use crate::seal::{IvLayout, IvSend, Seal, SealCall};
use crate::strict::{AbsolutePath, EnvironmentName};

pub(super) const VERSION: u64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(rename = "version")]
    _version: u64,
    pub(super) name: Name,
    pub(super) title: Line,
    #[serde(default, deserialize_with = "present")]
    pub(super) default_variant: Option<Name>,
    #[serde(default)]
    pub(super) variants: BTreeMap<Name, Settings>,
    // `Settings` once more, since `flatten` would lose unknown keys.
    #[serde(default, deserialize_with = "present")]
    refuse: Option<Line>,
    #[serde(default)]
    module: Module,
    #[serde(default)]
    login: Login,
    #[serde(default)]
    seal: SealSection,
    #[serde(default)]
    key: Key,
    #[serde(default)]
    sessions: Sessions,
    #[serde(default)]
    recover: Recover,
    #[serde(default)]
    codes: BTreeMap<Code, words::ClassWord>,
    #[serde(default, deserialize_with = "present")]
    ha: Option<HighAvailability>,
    #[serde(default, deserialize_with = "present")]
    key_settle: Option<Settle>,
    #[serde(default, deserialize_with = "present")]
    backup: Option<Backup>,
    #[serde(default)]
    sandbox: Sandbox,
    #[serde(default)]
    evidence: BTreeMap<String, Evidence>,
}

impl File {
    /// The settings that hold for every variant.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            refuse: self.refuse.clone(),
            module: self.module.clone(),
            login: self.login.clone(),
            seal: self.seal.clone(),
            key: self.key.clone(),
            sessions: self.sessions.clone(),
            recover: self.recover.clone(),
            codes: self.codes.clone(),
            ha: self.ha,
            key_settle: self.key_settle,
            backup: self.backup,
            sandbox: self.sandbox.clone(),
            evidence: self.evidence.clone(),
        }
    }
}

/// A mapping whose keys may all be left out, laid over another one: settings, then sections, then mappings of the
/// file's own names.
macro_rules! partial {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($(#[$on_field:meta])* $field:ident: $type:ty,)*
            $(; sections $($section:ident: $section_type:ty,)*)?
            $(; maps $($map:ident: $map_key:ty => $map_value:ty,)*)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $($(#[$on_field])* #[serde(deserialize_with = "present")] pub(super) $field: Option<$type>,)*
            $($(pub(super) $section: $section_type,)*)?
            $($(pub(super) $map: BTreeMap<$map_key, $map_value>,)*)?
        }

        impl $name {
            /// These settings, and those of `base` where there are none.
            pub(super) fn over(self, base: Self) -> Self {
                Self {
                    $($field: self.$field.or(base.$field),)*
                    $($($section: self.$section.over(base.$section),)*)?
                    $($($map: base.$map.into_iter().chain(self.$map).collect(),)*)?
                }
            }
        }
    };
}

partial! {
    /// What a profile says, or what a variant of it says otherwise.
    Settings {
        refuse: Line,
        ha: HighAvailability,
        key_settle: Settle,
        backup: Backup,
        ; sections
        module: Module,
        login: Login,
        seal: SealSection,
        key: Key,
        sessions: Sessions,
        recover: Recover,
        sandbox: Sandbox,
        ; maps
        codes: Code => words::ClassWord,
        evidence: String => Evidence,
    }
}

partial! {
    Module {
        paths: Vec<AbsolutePath>,
        manufacturers: Vec<Line>,
        environment: Vec<EnvironmentName>,
        files: Vec<AbsolutePath>,
        daemon: Line,
    }
}

partial! {
    Login {
        user: UserKind,
        pin: PinForm,
    }
}

partial! {
    SealSection {
        mechanism: Seal,
        number: Mechanism,
        call: SealCall,
        params: Params,
        aad: Aad,
        max_bytes: Count<32, 1_048_576>,
        ; sections
        iv: Iv,
    }
}

partial! {
    Iv {
        send: IvSend,
        found: IvLayout,
        bytes: Count<0, 16>,
    }
}

partial! {
    Key {
        #[serde(rename = "type")]
        kind: KeyType,
        generate: words::Generate,
        omit: Vec<Attribute>,
        ; maps
        add: Attribute => Setting,
    }
}

partial! {
    Sessions {
        max: Count<2, 65_536>,
        serial: bool,
    }
}

partial! {
    Sandbox {
        read: Vec<RulePath>,
        write: Vec<RulePath>,
        connect: Connect,
    }
}

partial! {
    Recover {
        gone: Gone,
        probe_seconds: Count<1, 3600>,
        call_limit_ms: Count<100, 120_000>,
    }
}

/// A value that stands in the file. YAML's `null` is none: it would be an unset key that looks set.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
