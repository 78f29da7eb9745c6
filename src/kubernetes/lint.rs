//! The rules for an `EncryptionConfiguration`. Sources: kube-apiserver's own validation (`apis/apiserver/validation`), the Kubernetes
//! documentation of KMS providers, and what was measured with this plugin.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::checks::{
    CACHE, CHECKS, ENDPOINT, FILE, IDENTITY, KIND, NAME, OLD, ORDER, PROVIDER, RESOURCES, SAME, SECRETS, SOCKET_NAME,
    TIMEOUT, VERSION,
};
use super::encryption_configuration::{EncryptionConfiguration, Entry, File, Kms, Provider};
use super::version::KubernetesVersion;
use super::{duration, resources};
use crate::finding::Finding;
use crate::strict::FileError;

/// What the file must fit, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'a> {
    /// The plugin's socket.
    pub socket: Option<&'a Path>,
    /// The plugin's longest time for one request.
    pub deadline: Option<Duration>,
    /// The API servers' version: the oldest, if they differ.
    pub version: Option<KubernetesVersion>,
}

/// Every rule but [`SAME`], of a file that can be read.
pub fn lint(configuration: &EncryptionConfiguration, around: &Surroundings) -> Vec<Finding> {
    let file = &configuration.file;
    let none = || "there is no KMS v2 provider".to_owned();
    let mut findings = vec![
        Finding::ok(&FILE, format!("well-formed; SHA-256 of its content {}", configuration.digest())),
        kind(file),
        provider(file),
    ];
    let own = own(file, around.socket);
    match own {
        Some(kms) => findings.extend([cache(file), name(file), timeout(kms, around), endpoint(kms, around)]),
        None => findings.extend(
            [cache(file), name(file)]
                .into_iter()
                .chain([&TIMEOUT, &ENDPOINT].map(|check| Finding::not_checked(check, none()))),
        ),
    }
    findings.push(socket_name(own, around));
    findings.extend([
        order(file, own),
        identity(file),
        old(file, own),
        secrets(file),
        resource_names(file),
        version(around),
    ]);
    findings
}

/// The same of a file that cannot be read.
pub fn unread(error: &FileError) -> Vec<Finding> {
    let rest = CHECKS.into_iter().filter(|check| ![&FILE, &SAME].contains(check));
    let rest = rest.map(|check| Finding::not_checked(check, "the file cannot be read"));
    std::iter::once(Finding::failed(&FILE, error.to_string(), error.hint())).chain(rest).collect()
}

fn kind(file: &File) -> Finding {
    let found = format!("{} {}", file.api_version, file.kind);
    if file.api_version == API_VERSION && file.kind == KIND_WORD {
        Finding::ok(&KIND, found)
    } else {
        Finding::failed(&KIND, found, format!("write `apiVersion: {API_VERSION}` and `kind: {KIND_WORD}`"))
    }
}

const API_VERSION: &str = "apiserver.config.k8s.io/v1";
const KIND_WORD: &str = "EncryptionConfiguration";

fn providers(file: &File) -> impl Iterator<Item = &Provider> {
    file.resources.iter().flat_map(|entry| &entry.providers)
}

fn all_kms(file: &File) -> impl Iterator<Item = &Kms> {
    providers(file).filter_map(|provider| provider.kms.as_ref())
}

/// The provider that is this plugin: the one with its socket, or else the first.
fn own<'a>(file: &'a File, socket: Option<&Path>) -> Option<&'a Kms> {
    let v2 = || all_kms(file).filter(|kms| kms.is_v2());
    let with_socket = |kms: &&Kms| socket.is_some() && kms.path().ok().map(Path::new) == socket;
    v2().find(with_socket).or_else(|| v2().next())
}

fn provider(file: &File) -> Finding {
    if let Some(entry) = file.resources.iter().find(|entry| entry.providers.is_empty()) {
        let found = format!("the entry of {} has no provider", listed(&entry.resources));
        return Finding::failed(&PROVIDER, found, "list the kms provider first");
    }
    if providers(file).any(|provider| provider.word().is_none()) {
        let found = "a provider is none, or more than one, of kms, aescbc, aesgcm, secretbox, identity";
        return Finding::failed(&PROVIDER, found, "put a dash in front of each provider, and indent what is below it");
    }
    let without = all_kms(file).filter(|kms| kms.api_version.is_none()).count();
    let v2 = all_kms(file).filter(|kms| kms.is_v2()).count();
    let advice = "write `apiVersion: v2` in the kms provider of this plugin";
    if without > 0 {
        let found = format!("{without} kms provider(s) have no `apiVersion`, which means v1");
        Finding::failed(&PROVIDER, found, advice)
    } else if let Some(kms) = all_kms(file).find(|kms| !matches!(kms.api_version.as_deref(), Some("v1" | "v2"))) {
        Finding::failed(&PROVIDER, format!("{:?} has an `apiVersion` that is neither v1 nor v2", kms.name), advice)
    } else if v2 == 0 {
        Finding::failed(&PROVIDER, "no kms provider has `apiVersion: v2`", advice)
    } else {
        Finding::ok(&PROVIDER, format!("{v2} kms provider(s) with apiVersion v2"))
    }
}

fn cache(file: &File) -> Finding {
    match all_kms(file).find(|kms| kms.is_v2() && kms.cachesize.is_some()) {
        Some(kms) => Finding::failed(&CACHE, format!("{:?} has one", kms.name), "remove the line `cachesize`"),
        None => Finding::ok(&CACHE, "no v2 provider has one"),
    }
}

fn name(file: &File) -> Finding {
    let mut seen = BTreeSet::new();
    for Kms { name, .. } in all_kms(file) {
        if name.is_empty() {
            return Finding::failed(&NAME, "a kms provider has an empty name", "name it, and never change it");
        }
        if name.contains(':') {
            let advice = "choose a name without a colon: it ends the name where it is stored";
            return Finding::failed(&NAME, format!("{name:?} has a colon"), advice);
        }
        if !seen.insert(name) {
            let advice = "give each kms provider a name of its own, also in different entries";
            return Finding::failed(&NAME, format!("{name:?} stands twice"), advice);
        }
    }
    if seen.is_empty() {
        return Finding::not_checked(&NAME, "there is no kms provider");
    }
    Finding::ok(&NAME, seen.into_iter().cloned().collect::<Vec<_>>().join(", "))
}

fn timeout(kms: &Kms, around: &Surroundings) -> Finding {
    let text = kms.timeout.as_deref().unwrap_or(DEFAULT_TIMEOUT);
    let told = if kms.timeout.is_some() { "" } else { ", the default" };
    let Some(limit) = duration::parse(text).filter(|limit| !limit.is_zero()) else {
        let advice = "write it as Go does: `3s`, `2500ms`, more than 0";
        return Finding::failed(&TIMEOUT, format!("{text:?} is no duration above 0"), advice);
    };
    match around.deadline {
        Some(deadline) if limit < deadline + TRANSFER => Finding::warning(
            &TIMEOUT,
            format!("{text}{told}; the plugin takes up to {} ms for an answer", deadline.as_millis()),
            format!("set it to {} ms or more, or lower limits.deadline_ms", (deadline + TRANSFER).as_millis()),
        ),
        _ if limit > LONG => Finding::warning(
            &TIMEOUT,
            format!("{text}{told}: a plugin that is away stops each request for so long"),
            "set it to 3s; 10s at most",
        ),
        _ => Finding::ok(&TIMEOUT, format!("{text}{told}")),
    }
}

const DEFAULT_TIMEOUT: &str = "3s";
const LONG: Duration = Duration::from_secs(10);
/// From the plugin's last word to the API server's ear.
const TRANSFER: Duration = Duration::from_millis(100);

fn endpoint(kms: &Kms, around: &Surroundings) -> Finding {
    let wanted = around.socket.map_or("/run/hsm-kms/hsm@kms.sock".to_owned(), |socket| socket.display().to_string());
    let advice = format!("write `endpoint: unix://{wanted}`");
    match (kms.path(), around.socket) {
        (Err(why), _) => Finding::failed(&ENDPOINT, format!("{:?}: {why}", kms.endpoint), advice),
        (Ok(path), Some(socket)) if Path::new(path) != socket => {
            Finding::failed(&ENDPOINT, format!("it is {path}, the plugin's socket {wanted}"), advice)
        }
        (Ok(path), Some(_)) => Finding::ok(&ENDPOINT, path),
        (Ok(path), None) => {
            Finding::not_checked(&ENDPOINT, format!("the plugin's socket is not known; the file says {path}"))
        }
    }
}

fn socket_name(kms: Option<&Kms>, around: &Surroundings) -> Finding {
    let path = kms.and_then(|kms| kms.path().ok()).map(Path::new).or(around.socket);
    let Some(name) = path.and_then(Path::file_name).and_then(|name| name.to_str()) else {
        return Finding::not_checked(&SOCKET_NAME, "no socket is known");
    };
    let advice = "name the socket hsm@kms.sock in socket.path and in the endpoint";
    match around.version {
        _ if name.contains('@') => Finding::ok(&SOCKET_NAME, format!("{name} has an @")),
        Some(version) if version >= KubernetesVersion::ANY_SOCKET_NAME => {
            Finding::ok(&SOCKET_NAME, format!("{name}; Kubernetes {version} takes any name"))
        }
        Some(version) => {
            Finding::failed(&SOCKET_NAME, format!("{name} has no @, and Kubernetes {version} needs it"), advice)
        }
        None => {
            let advice = format!("{advice}; or tell --kubernetes-version if it is 1.32 or later");
            Finding::warning(&SOCKET_NAME, format!("{name} has no @"), advice)
        }
    }
}

fn names_secrets(entry: &Entry) -> bool {
    entry.resources.iter().any(|resource| resources::covers(resource, "secrets"))
}

fn order(file: &File, own: Option<&Kms>) -> Finding {
    let Some(entry) = file.resources.iter().find(|entry| names_secrets(entry)) else {
        return Finding::not_checked(&ORDER, "no entry names secrets");
    };
    let Some(first) = entry.providers.first() else { return Finding::not_checked(&ORDER, "the entry has no provider") };
    let word = match &first.kms {
        Some(kms) if is_own(kms, own) => return Finding::ok(&ORDER, "kms is first in the entry of secrets"),
        Some(kms) => format!("kms {}", kms.name),
        None => first.word().unwrap_or("nothing").to_owned(),
    };
    if first.identity.is_some() {
        Finding::failed(
            &ORDER,
            "identity is first in the entry of secrets: they are written in clear text",
            "once every API server lists the kms provider, put it first, and rewrite all Secrets",
        )
    } else {
        Finding::failed(
            &ORDER,
            format!("{word} is first in the entry of secrets: this plugin seals nothing new"),
            "once every API server lists the kms provider of this plugin, put it first, and rewrite all Secrets",
        )
    }
}

/// Whether it leads to the same socket as this plugin's own entry: each entry has a provider with a name of its own.
fn is_own(kms: &Kms, own: Option<&Kms>) -> bool {
    own.is_some_and(|own| kms.is_v2() && kms.endpoint == own.endpoint)
}

fn identity(file: &File) -> Finding {
    let listed_in = |entry: &&Entry| entry.providers.iter().any(|provider| provider.identity.is_some());
    let is_clear = |entry: &&Entry| entry.providers.first().is_some_and(|provider| provider.identity.is_some());
    let entries: Vec<_> = file.resources.iter().filter(listed_in).collect();
    if let Some(entry) = entries.iter().copied().find(is_clear) {
        let found = format!("{} are written in clear text: identity is first", listed(&entry.resources));
        return Finding::warning(&IDENTITY, found, "put the kms provider first, unless this is what you want");
    }
    match entries.first() {
        Some(entry) => Finding::warning(
            &IDENTITY,
            format!("still listed for {}: the first phase", listed(&entry.resources)),
            "rewrite all values, see that none is in clear text (`hsm-kms etcd inventory`), and remove it",
        ),
        None => Finding::ok(&IDENTITY, "not listed"),
    }
}

fn old(file: &File, own: Option<&Kms>) -> Finding {
    let words = providers(file).filter_map(|provider| match &provider.kms {
        _ if provider.identity.is_some() => None,
        Some(kms) if is_own(kms, own) => None,
        Some(kms) => Some(format!("kms {}", kms.name)),
        None => Some(provider.word().unwrap_or("unknown").to_owned()),
    });
    let words: BTreeSet<_> = words.collect();
    if words.is_empty() {
        return Finding::ok(&OLD, "none is left");
    }
    let found = format!("still listed: {}", words.into_iter().collect::<Vec<_>>().join(", "));
    let advice = "rewrite all values, see that none is left under it (`hsm-kms etcd inventory`), and remove it";
    Finding::warning(&OLD, found, advice)
}

fn secrets(file: &File) -> Finding {
    match file.resources.iter().find(|entry| names_secrets(entry)) {
        Some(entry) => Finding::ok(&SECRETS, format!("in the entry of {}", listed(&entry.resources))),
        None => Finding::failed(&SECRETS, "no entry names them", "add `secrets` under `resources`"),
    }
}

fn resource_names(file: &File) -> Finding {
    let mut before: Vec<&str> = Vec::new();
    let mut masked = Vec::new();
    for Entry { resources, .. } in &file.resources {
        if resources.is_empty() {
            return Finding::failed(&RESOURCES, "an entry names none", "add `secrets` under `resources`");
        }
        for (position, resource) in resources.iter().enumerate() {
            if let Some(why) = resources::refusal(resource) {
                return Finding::failed(&RESOURCES, format!("{resource:?}: {why}"), "correct the name");
            }
            let overlaps = |other: &&String| resources::covers(other, resource) || resources::covers(resource, other);
            if let Some(other) = resources.iter().take(position).find(overlaps) {
                let found = format!("{other:?} and {resource:?} in one entry overlap: the file is refused");
                return Finding::failed(&RESOURCES, found, "keep one of the two, or put one into an entry before");
            }
            if before.iter().any(|other| resources::covers(other, resource)) {
                masked.push(resource.clone());
            }
        }
        before.extend(resources.iter().map(String::as_str));
    }
    if masked.is_empty() {
        return Finding::ok(&RESOURCES, format!("{} named, none twice", before.len()));
    }
    let found = format!("{}: an entry above decides for them already", listed(&masked));
    Finding::warning(&RESOURCES, found, "put the narrower entry first, or remove it")
}

fn version(around: &Surroundings) -> Finding {
    match around.version {
        None => Finding::not_checked(&VERSION, "--kubernetes-version was not given"),
        Some(version) if version < KubernetesVersion::STABLE => Finding::failed(
            &VERSION,
            format!("{version}: KMS v2 is not stable there, and this plugin is refused"),
            "upgrade the cluster to 1.29 or later first",
        ),
        Some(version) => Finding::ok(&VERSION, version.to_string()),
    }
}

/// A few names, and how many more there are.
fn listed(names: &[String]) -> String {
    let (shown, rest) = names.split_at(names.len().min(3));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    format!("{}{more}", shown.join(", "))
}
