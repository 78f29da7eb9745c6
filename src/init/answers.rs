//! What is asked, and what an answer looks like. Paths stand in units, YAML and Markdown: only characters that mean nothing there are
//! taken.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

use crate::cluster::Cluster;
use crate::kms::socket::PATH_LIMIT;
use crate::profile::{Profile, UserKind};
use crate::strict::{AbsolutePath, EnvironmentName};

/// Everything that is asked.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The cluster whose seeds are sealed.
    pub cluster: Cluster,
    /// The profile, as in the configuration.
    pub profile_name: String,
    /// The same, read.
    pub profile: Profile,
    /// The vendor's module.
    pub module: PlainPath,
    /// The token's label.
    pub token_label: TokenLabel,
    /// What the module needs in its environment.
    pub environment: Vec<Variable>,
    /// Where the API server calls.
    pub socket: SocketPath,
    /// How plugin and API server are run.
    pub platform: Platform,
    /// The image, where the plugin is a pod.
    pub image: Image,
}

/// How plugin and API server are run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Platform {
    /// The plugin under systemd; the API server is yours to configure
    Systemd,
    /// The plugin as a static pod, with kubeadm's API server
    StaticPod,
    /// The plugin under systemd, with kubeadm's API server
    Kubeadm,
    /// k3s, the plugin under systemd
    K3s,
    /// RKE2, the plugin under systemd
    Rke2,
    /// Talos, the plugin as a static pod
    Talos,
    /// OpenShift with its Technology Preview, the plugin as a static pod
    Openshift,
}

impl Platform {
    /// Whether the plugin is a service of systemd; otherwise it is a pod.
    pub fn has_units(self) -> bool {
        matches!(self, Self::Systemd | Self::Kubeadm | Self::K3s | Self::Rke2)
    }

    /// The socket's path if none is named.
    pub fn socket(self) -> SocketPath {
        // OpenShift finds the plugin there and nowhere else.
        let path = if self == Self::Openshift { "/var/run/kmsplugin/kms.sock" } else { "/run/hsm-kms/hsm@kms.sock" };
        SocketPath(PlainPath(path.to_owned()))
    }

    /// As on the command line.
    pub fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// An absolute path of `A-Z`, `a-z`, `0-9`, `/`, `.`, `_`, `-`, `+` and `@`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlainPath(String);

impl PlainPath {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PlainPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        AbsolutePath::from_str(text)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'+' | b'@');
        if text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected a path of letters, digits and / . _ - + @ alone".to_owned())
        }
    }
}

/// The socket's path: in a folder of its own, since that is mounted into the API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketPath(PlainPath);

impl SocketPath {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The folder that it lies in.
    pub fn folder(&self) -> &str {
        self.as_str().rsplit_once('/').map_or("/", |(folder, _)| folder)
    }
}

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = Self(text.parse()?);
        if text.len() > PATH_LIMIT {
            return Err(format!("the path has {} bytes, a socket's at most {PATH_LIMIT}", text.len()));
        }
        let shared = ["", "/run", "/var/run", "/var", "/var/lib", "/tmp", "/var/tmp", "/etc"];
        if shared.contains(&path.folder()) {
            return Err("expected a socket in a folder of its own, such as /run/hsm-kms/hsm@kms.sock".to_owned());
        }
        Ok(path)
    }
}

/// A token's label: 1 to 32 bytes, without control characters and blanks at the ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenLabel(String);

impl TokenLabel {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenLabel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=32).contains(&text.len()) && text == text.trim() && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned())).ok_or("expected a token label of 1 to 32 bytes, without blanks at the ends")
    }
}

/// A variable of the module's environment, `NAME=VALUE`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value, on one line.
    pub value: String,
}

impl FromStr for Variable {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        let EnvironmentName(name) = name.parse()?;
        if value.is_empty() || value.len() > 4095 || value.chars().any(char::is_control) {
            return Err("expected a value of 1 to 4095 bytes on one line");
        }
        Ok(Self { name, value: value.to_owned() })
    }
}

/// The name of a container image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image(String);

impl Image {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Image {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b':' | b'@');
        let fits = (1..=255).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with(['-', '@', ':']);
        fits.then(|| Self(text.to_owned()))
            .ok_or("expected the name of an image, such as registry.example/hsm-kms:0.1.0")
    }
}

/// The module's path if none is named: where it is installed here, or else where the vendor installs it.
pub fn default_module(profile: &Profile) -> Option<PlainPath> {
    let paths = &profile.module.paths;
    let path: &PathBuf = paths.iter().find(|path| path.is_file()).or_else(|| paths.first())?;
    path.to_str()?.parse().ok()
}

impl Answers {
    /// Whether somebody logs in.
    pub(super) fn logs_in(&self) -> bool {
        self.profile.login.user != UserKind::None
    }
}
