//! From the raw form to profiles: defaults, variants laid over the file's own settings, and the rules between fields.

use std::time::Duration;

use super::evidence::is_within;
use super::file::{self, Settings};
use super::words::{self, Attribute, Code, Generate, Name};
use super::{
    Aad, AttributeSetting, Backup, CodeOverride, Evidence, FIELDS, Family, Gone, HighAvailability, Key, KeyGeneration,
    Login, Module, Params, PinForm, Profile, ProfileSeal, Recover, Sandbox, Sessions, UserKind, code_name, strict,
};
use crate::sandbox::RulePath;
use crate::seal::{IvLayout, IvSend, Seal, SealCall, SealForm, Sealing};
use crate::strict::Fault;

/// Settings that do not go together.
pub(super) struct Conflict {
    /// Where the variant's own setting would stand, then where the file's would.
    path: Vec<String>,
    variant: Option<String>,
    problem: String,
    hint: String,
}

/// A conflict at `field`.
fn conflict<T>(field: &str, problem: impl Into<String>, hint: impl Into<String>) -> Result<T, Conflict> {
    let path = field.split('.').map(str::to_owned).collect();
    Err(Conflict { path, variant: None, problem: problem.into(), hint: hint.into() })
}

impl Conflict {
    /// The fault, with the place in the file: the variant's own setting, or the file's.
    pub(super) fn fault(self, text: &str) -> Fault {
        let Self { path, variant, problem, hint } = self;
        let prefix = variant.map(|variant| vec!["variants".to_owned(), variant]).unwrap_or_default();
        let own = [prefix.as_slice(), &path].concat();
        let found = |path: &[String]| strict::yaml_place(text, path);
        // A place is the field's own if one name less would be elsewhere.
        let is_own = |path: &[String]| found(path) != found(path.get(..path.len() - 1).unwrap_or_default());
        let at = if prefix.is_empty() || is_own(&own) || !is_own(&path) { own } else { path };
        Fault::Conflict { place: found(&at), field: at.join("."), problem, hint }
    }
}

/// The profiles of a file.
pub(super) fn family(file: file::File) -> Result<Family, Conflict> {
    let settings = file.settings();
    let file::File { name: Name(name), title, default_variant, variants, .. } = file;
    let default_variant = default_variant.map(|Name(variant)| variant);
    if let Some(default) = &default_variant
        && !variants.contains_key(&Name(default.clone()))
    {
        let nearest = strict::nearest(default, variants.keys().map(|Name(variant)| variant.as_str()));
        let hint = nearest.map_or_else(
            || "name one of the variants under `variants`".to_owned(),
            |nearest| format!("did you mean `{nearest}`?"),
        );
        return conflict("default_variant", "there is no such variant", hint);
    }
    let profiles = if variants.is_empty() {
        vec![profile(&name, None, &title.0, settings)?]
    } else {
        let checked = variants.into_iter().map(|(Name(variant), own)| {
            let laid_over = own.over(settings.clone());
            profile(&name, Some(variant.clone()), &title.0, laid_over)
                .map_err(|conflict| Conflict { variant: Some(variant), ..conflict })
        });
        checked.collect::<Result<_, _>>()?
    };
    Ok(Family { name, title: title.0, default_variant, profiles })
}

fn profile(name: &str, variant: Option<String>, title: &str, settings: Settings) -> Result<Profile, Conflict> {
    let Settings {
        refuse,
        module,
        login,
        seal,
        key,
        sessions,
        recover,
        sandbox,
        codes,
        ha,
        key_settle,
        backup,
        evidence,
    } = settings;
    let refuse = refuse.map(|reason| reason.0);
    let recover = Recover {
        gone: recover.gone.unwrap_or(Gone::Reinit),
        probe: recover.probe_seconds.map(|seconds| Duration::from_secs(seconds.0)),
        call_limit: recover.call_limit_ms.map(|limit| Duration::from_millis(limit.0)),
    };
    Ok(Profile {
        name: name.to_owned(),
        variant,
        title: title.to_owned(),
        module: check_module(module)?,
        login: check_login(&login)?,
        seal: check_seal(&seal, refuse.is_some())?,
        refuse,
        key: check_key(key)?,
        sessions: Sessions { max: sessions.max.map(|max| max.0), serial: sessions.serial.unwrap_or(false) },
        recover,
        codes: check_codes(codes)?,
        ha: ha.unwrap_or(HighAvailability::None),
        key_settle: key_settle.map_or(Duration::ZERO, |settle| settle.0),
        backup: backup.unwrap_or(Backup::Unknown),
        sandbox: Sandbox {
            read: sandbox.read.unwrap_or_default(),
            write: sandbox.write.unwrap_or_else(|| vec![RulePath::Configured]),
            connect: sandbox.connect.unwrap_or_default(),
        },
        evidence: check_evidence(&evidence)?,
    })
}

fn check_module(module: file::Module) -> Result<Module, Conflict> {
    let file::Module { paths, manufacturers, environment, files, daemon } = module;
    let manufacturers: Vec<String> = manufacturers.unwrap_or_default().into_iter().map(|line| line.0).collect();
    if manufacturers.iter().any(|text| text.len() > 32 || text.ends_with(' ')) {
        return conflict(
            "module.manufacturers",
            "C_GetInfo has room for 32 bytes, and the blanks at the end do not count",
            "write what `pkcs11-tool --module PATH --show-info` shows",
        );
    }
    Ok(Module {
        paths: paths.unwrap_or_default().into_iter().map(|path| path.0).collect(),
        manufacturers,
        environment: environment.unwrap_or_default().into_iter().map(|name| name.0).collect(),
        files: files.unwrap_or_default().into_iter().map(|path| path.0).collect(),
        daemon: daemon.map(|daemon| daemon.0),
    })
}

fn check_login(login: &file::Login) -> Result<Login, Conflict> {
    let user = login.user.unwrap_or(UserKind::User);
    let pin = login.pin.unwrap_or(PinForm::Opaque);
    if user == UserKind::None && pin != PinForm::Opaque {
        return conflict("login.pin", "nobody logs in, so no PIN has a form", "remove `pin`, or name a user");
    }
    Ok(Login { user, pin })
}

fn check_seal(section: &file::SealSection, refuses: bool) -> Result<Option<ProfileSeal>, Conflict> {
    let file::SealSection { mechanism, number, call, params, aad, max_bytes, iv } = section;
    let Some(seal) = *mechanism else {
        let is_empty = number.is_none() && call.is_none() && params.is_none() && aad.is_none() && max_bytes.is_none();
        if refuses && is_empty && iv.send.is_none() && iv.found.is_none() && iv.bytes.is_none() {
            return Ok(None);
        }
        let hint = "name a seal, or say with `refuse` why no KEK can be kept there";
        return conflict("seal.mechanism", "no mechanism is named", hint);
    };
    if params.is_some_and(|params| params != Params::of(seal)) {
        return conflict("seal.params", "the mechanism takes other parameters", "remove `params`");
    }
    if aad.is_some_and(|aad| aad != Aad::of(seal)) {
        let problem = match Aad::of(seal) {
            Aad::Param => "the mechanism takes the context as AAD in its parameter",
            Aad::Plaintext => "the mechanism has no AAD: the context must stand in the plaintext",
            Aad::Mac => "the context goes into the MAC",
        };
        return conflict("seal.aad", problem, "remove `aad`");
    }
    let call = call.unwrap_or(SealCall::Encrypt);
    let mut sealing = Sealing { call, ..check_iv(seal, iv)? };
    if let Some(number) = number {
        sealing.mechanism = number.0;
    }
    let found = sealing.form.iv_layout;
    match call {
        SealCall::Wrap if seal != Seal::AesKwp => {
            conflict("seal.call", "only aes-kwp can wrap instead of encrypting", "remove `call`")
        }
        SealCall::Message if seal != Seal::AesGcm || found != IvLayout::Param => conflict(
            "seal.call",
            "message encryption is for aes-gcm, and the module makes the IV and writes it into the parameter",
            "remove `call`, or set iv to { send: zeros, found: param }",
        ),
        _ => Ok(Some(ProfileSeal { sealing, max_bytes: max_bytes.map(|count| count.0) })),
    }
}

/// The IV of a seal, as a sealing whose mechanism and call are still the defaults.
fn check_iv(seal: Seal, iv: &file::Iv) -> Result<Sealing, Conflict> {
    let default = default_sealing(seal);
    let is_set = iv.send.is_some() || iv.found.is_some() || iv.bytes.is_some();
    let send = iv.send.unwrap_or(default.send);
    let found = iv.found.unwrap_or(default.form.iv_layout);
    let length = if found == IvLayout::Inside { 0 } else { default.form.iv_length };
    let bytes = iv.bytes.map_or(length, |bytes| u8::try_from(bytes.0).unwrap_or(u8::MAX));
    match (seal, send, found, bytes) {
        (Seal::AesGcm, IvSend::Null, IvLayout::Inside, 0) => {}
        (Seal::AesGcm, _, IvLayout::Inside, _) => {
            let problem = "an IV that stays in the ciphertext is neither sent nor known";
            return conflict("seal.iv", problem, "set it to { send: none, found: inside }, without bytes");
        }
        (Seal::AesGcm, IvSend::Zeros | IvSend::Null, IvLayout::Sent, _) => {
            let problem = "the IV that was sent is kept, so it must be random: the same IV twice breaks AES-GCM";
            return conflict(
                "seal.iv.found",
                problem,
                "set iv.send to random, or iv.found to where the module's own IV is",
            );
        }
        (Seal::AesGcm, IvSend::Null, IvLayout::Param, _) => {
            let problem = "the module cannot write its IV into a parameter that has no room for it";
            return conflict("seal.iv.send", problem, "set it to zeros");
        }
        (Seal::AesGcm, _, _, bytes) if !matches!(bytes, 12 | 16) => {
            return conflict("seal.iv.bytes", "an IV of aes-gcm has 12 or 16 bytes here", "set it to 12 or 16");
        }
        (Seal::AesCbcHmac, send, found, bytes) if (send, found, bytes) != (IvSend::Random, IvLayout::Sent, 16) => {
            return conflict("seal.iv", "aes-cbc-hmac sends 16 random bytes and keeps them", "remove `iv`");
        }
        (Seal::AesKwp | Seal::YubicoCcm, send, found, bytes)
            if is_set && (send, found, bytes) != (IvSend::Null, IvLayout::Inside, 0) =>
        {
            return conflict("seal.iv", "the mechanism takes no IV and shows none", "remove `iv`");
        }
        _ => {}
    }
    let form = SealForm { seal, iv_layout: found, iv_length: bytes };
    Ok(Sealing { form, send, ..default })
}

/// How a profile seals that names the seal and nothing else.
pub(super) fn default_sealing(seal: Seal) -> Sealing {
    let (send, iv_layout, iv_length, mechanism) = match seal {
        Seal::AesGcm => (IvSend::Random, IvLayout::Sent, 12, cryptoki_sys::CKM_AES_GCM),
        Seal::AesKwp => (IvSend::Null, IvLayout::Inside, 0, cryptoki_sys::CKM_AES_KEY_WRAP_KWP),
        // CKM_YUBICO_AES_CCM_WRAP.
        Seal::YubicoCcm => (IvSend::Null, IvLayout::Inside, 0, 0xD955_4204),
        Seal::AesCbcHmac => (IvSend::Random, IvLayout::Sent, 16, cryptoki_sys::CKM_AES_CBC),
    };
    Sealing { form: SealForm { seal, iv_layout, iv_length }, send, mechanism, call: SealCall::Encrypt }
}

fn check_key(key: file::Key) -> Result<Key, Conflict> {
    let file::Key { kind, generate, omit, add } = key;
    let standard = Key::default();
    let generate = generate.map_or(standard.generate, |Generate(generate)| generate);
    let omit: Vec<u64> = omit.unwrap_or_default().into_iter().map(|Attribute(attribute)| attribute).collect();
    let add: Vec<_> = add.into_iter().map(|(Attribute(attribute), setting)| (attribute, setting.0)).collect();
    if generate == KeyGeneration::Tool && !(omit.is_empty() && add.is_empty()) {
        let hint = "remove `add` and `omit`, or name a mechanism";
        return conflict("key.generate", "the vendor's tool takes no template", hint);
    }
    for (attribute, setting) in &add {
        let name = words::attribute_word(*attribute);
        if words::is_fixed(*attribute) {
            return conflict("key.add", format!("{name} is always the same in a KEK"), "remove it");
        }
        if words::is_needless_right(*attribute) && *setting != AttributeSetting::Flag(false) {
            return conflict(
                "key.add",
                format!("{name} is a right that no KEK may have"),
                "remove it, or set it to false",
            );
        }
        if omit.contains(attribute) {
            return conflict("key.add", format!("{name} is under `omit`, too"), "keep one of the two");
        }
    }
    Ok(Key { kind: kind.map_or(standard.kind, |kind| kind.0), generate, add, omit })
}

/// A code may be written by name and by number: it must still stand only once.
fn check_codes(codes: std::collections::BTreeMap<Code, words::ClassWord>) -> Result<Vec<CodeOverride>, Conflict> {
    let mut checked: Vec<CodeOverride> = Vec::new();
    for (Code { number: code, function, .. }, class) in codes {
        if checked.iter().any(|other| (other.code, other.function) == (code, function)) {
            let name = code_name(code).map_or_else(|| format!("{code:#x}"), str::to_owned);
            let function = function.map(|function| format!("@{function}")).unwrap_or_default();
            let problem = format!("{name}{function} stands twice, by name and by number");
            return conflict("codes", problem, "keep one of the two");
        }
        checked.push(CodeOverride { code, function, class: class.into() });
    }
    // One function's code before the same code of any function: the first that fits counts.
    checked.sort_by_key(|entry| entry.function.is_none());
    Ok(checked)
}

fn check_evidence(
    evidence: &std::collections::BTreeMap<String, Evidence>,
) -> Result<Vec<(&'static str, Evidence)>, Conflict> {
    for path in evidence.keys().filter(|path| *path != DEFAULT) {
        if !FIELDS.iter().any(|field| is_within(field, path)) {
            let sections = FIELDS.iter().filter_map(|field| Some(field.split_once('.')?.0));
            let hint = match strict::nearest(path, FIELDS.into_iter().chain(sections)) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => "name a field or a section of a profile, or `default`".to_owned(),
            };
            let path = vec!["evidence".to_owned(), path.clone()];
            return Err(Conflict { path, variant: None, problem: "there is no such field".to_owned(), hint });
        }
    }
    let Some(default) = evidence.get(DEFAULT) else {
        let hint = "say how the fields are known that stand under no other name";
        return conflict("evidence.default", "it is missing", hint);
    };
    let known = |field: &str| {
        let nearest = evidence.iter().filter(|(path, _)| is_within(field, path)).max_by_key(|(path, _)| path.len());
        nearest.map_or(*default, |(_, evidence)| *evidence)
    };
    Ok(FIELDS.into_iter().map(|field| (field, known(field))).collect())
}

const DEFAULT: &str = "default";
