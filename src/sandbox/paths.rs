//! Which files a worker needs: the system's, those that profile and configuration name, and those that the module's own
//! configuration names.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Connect, WorkerRules};
use crate::strict::{self, AbsolutePath, EnvironmentName, MAX_FILE_BYTES};

/// What libraries, the resolver and TLS read. Nothing secret lies there.
pub(super) const SYSTEM: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/ca-trust",
    "/etc/crypto-policies",
    "/etc/pkcs11",
    "/usr/share/p11-kit",
    "/usr/share/ca-certificates",
    "/usr/share/crypto-policies",
    "/usr/share/zoneinfo",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/sys/crypto",
    "/proc/sys/kernel",
    "/proc/sys/vm",
    "/sys/devices/system",
];

/// Devices that everybody may use.
pub(super) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// A path as profiles write it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RulePath {
    /// This one.
    Absolute(PathBuf),
    /// The value of an environment variable of the worker, and what stands behind it.
    Variable {
        /// Its name.
        name: String,
        /// Empty, or begins with a slash.
        rest: String,
    },
    /// What the module's configuration files name.
    Configured,
    /// The folders of those.
    ConfiguredFolders,
}

impl FromStr for RulePath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "configured" => return Ok(Self::Configured),
            "configured/.." => return Ok(Self::ConfiguredFolders),
            _ => {}
        }
        let wrong = "expected an absolute path, one that begins with a variable such as $HOME/x, `configured` or `configured/..`";
        let Some(variable) = text.strip_prefix('$') else {
            return text.parse().map(|AbsolutePath(path)| Self::Absolute(path)).map_err(|_| wrong);
        };
        let (name, rest) = variable.split_at(variable.find('/').unwrap_or(variable.len()));
        let EnvironmentName(name) = name.parse().map_err(|_| wrong)?;
        if !rest.is_empty() {
            rest.parse::<AbsolutePath>().map_err(|_| wrong)?;
        }
        Ok(Self::Variable { name, rest: rest.to_owned() })
    }
}

impl fmt::Display for RulePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(path) => write!(formatter, "{}", path.display()),
            Self::Variable { name, rest } => write!(formatter, "${name}{rest}"),
            Self::Configured => formatter.write_str("configured"),
            Self::ConfiguredFolders => formatter.write_str("configured/.."),
        }
    }
}

impl<'de> Deserialize<'de> for RulePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        strict::from_text(deserializer)
    }
}

impl Serialize for RulePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From where the rules of a worker come.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sources {
    /// The module's configuration files, or folders of them. They are read, and so is what `read` names beside them.
    pub configuration: Vec<RulePath>,
    /// What the module is told at its initialisation: it may name files, too.
    pub told: String,
    /// To be read.
    pub read: Vec<RulePath>,
    /// To be written, too.
    pub write: Vec<RulePath>,
    /// To be connected to, beside the ports in the configuration files.
    pub connect: Connect,
}

impl Sources {
    /// The rules as of now, with this environment.
    pub fn rules(&self, variable: impl Fn(&str) -> Option<OsString>) -> WorkerRules {
        let plain = |path: &RulePath| match path {
            RulePath::Absolute(path) => Some(path.clone()),
            RulePath::Variable { name, rest } => {
                let mut path = variable(name)?;
                path.push(rest);
                Some(PathBuf::from(path)).filter(|path| path.is_absolute())
            }
            RulePath::Configured | RulePath::ConfiguredFolders => None,
        };
        let own: Vec<_> = self.configuration.iter().filter_map(plain).collect();
        let mut named = Named::default();
        named.add(&self.told);
        for file in own.iter().cloned().chain(self.read.iter().filter_map(plain)).flat_map(files) {
            named.add(&text(&file));
        }
        let all = |list: &[RulePath]| -> Vec<PathBuf> {
            let one = |path: &RulePath| match path {
                RulePath::Configured => named.paths.clone(),
                RulePath::ConfiguredFolders => named.folders(),
                other => plain(other).into_iter().collect(),
            };
            list.iter().flat_map(one).collect()
        };
        WorkerRules {
            read: own.iter().cloned().chain(all(&self.read)).collect(),
            write: all(&self.write),
            connect: self.connect.clone().and(&Connect::Ports(named.ports.clone())),
        }
    }
}

/// The file itself, or those in the folder.
fn files(path: PathBuf) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(&path) else { return vec![path] };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).take(MOST_FILES).collect()
}

const MOST_FILES: usize = 64;

fn text(path: &Path) -> String {
    // A device would never end, or do something.
    if !path.is_file() {
        return String::new();
    }
    let bytes = strict::read_most(path, MAX_FILE_BYTES).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// What a configuration file names, whatever its syntax is.
#[derive(Debug, Default)]
struct Named {
    paths: Vec<PathBuf>,
    ports: Vec<u16>,
}

impl Named {
    fn add(&mut self, text: &str) {
        let is_comment = |line: &str| ["#", ";", "//"].iter().any(|mark| line.trim_start().starts_with(mark));
        let between = |it: char| it.is_whitespace() || it.is_control() || "\"'`=,;|(){}<>".contains(it);
        for word in text.lines().filter(|line| !is_comment(line)).flat_map(|line| line.split(between)) {
            if let Some((scheme, address)) = word.split_once("://") {
                if scheme == "file" {
                    self.path(address);
                } else {
                    self.ports.extend(port(scheme, address));
                }
            } else if let Some((before, path)) = word.trim_start_matches('[').split_once('/')
                && (before.is_empty() || before.ends_with(':'))
            {
                self.path(&format!("/{path}"));
            }
        }
    }

    /// Takes a path that is deep enough not to stand for half the system.
    fn path(&mut self, text: &str) {
        if let Ok(AbsolutePath(path)) = text.trim_end_matches(['/', ']']).parse()
            && is_deep(&path)
        {
            self.paths.push(path);
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        self.paths.iter().filter_map(|path| path.parent()).filter(|path| is_deep(path)).map(Path::to_owned).collect()
    }
}

fn is_deep(path: &Path) -> bool {
    path.components().count() > 2
}

/// The port of an address such as `127.0.0.1:12345/path`.
fn port(scheme: &str, address: &str) -> Option<u16> {
    let authority = address.split('/').next().unwrap_or_default();
    match authority.rsplit_once(':') {
        // Not the inside of an IPv6 address.
        Some((_, port)) if !port.contains(']') => port.parse().ok().filter(|port| *port != 0),
        _ => match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> (Vec<String>, Vec<u16>) {
        let mut named = Named::default();
        named.add(text);
        (named.paths.iter().map(|path| path.display().to_string()).collect(), named.ports)
    }

    #[test]
    fn configuration_files_name_paths_and_ports() {
        for (text, paths, ports) in [
            // SoftHSM2, Kryoptic, NSS, Yubico, Luna, JSON.
            ("# comment /not/this\ndirectories.tokendir = /var/lib/x/tokens/\n", &["/var/lib/x/tokens"][..], &[][..]),
            ("dbargs = \"/var/lib/x/kryoptic.sql\"", &["/var/lib/x/kryoptic.sql"], &[]),
            ("configdir='sql:/var/lib/x/nss' certPrefix=''", &["/var/lib/x/nss"], &[]),
            ("connector=http://127.0.0.1:12345\ncacert=/etc/x/ca.pem", &["/etc/x/ca.pem"], &[12345]),
            ("connector = https://hsm.example\n", &[], &[443]),
            ("  ServerCAFile = /usr/x/cert/server/CAFile.pem;", &["/usr/x/cert/server/CAFile.pem"], &[]),
            ("files: [/opt/x/a, /opt/x/b]", &["/opt/x/a", "/opt/x/b"], &[]),
            ("{\"path\": \"/opt/x/etc/ca.crt\", \"url\": \"https://[::1]:8443/v1\"}", &["/opt/x/etc/ca.crt"], &[8443]),
            // Never half the system, nor what is no path.
            ("a = /\nb = /etc\nc = /a/../etc/shadow\nd = and/or\ne = 1/2\nf=x//y", &[], &[]),
        ] {
            let found = named(text);
            assert_eq!(
                (&found.0[..], &found.1[..]),
                (&paths.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()[..], ports)
            );
        }
    }

    #[test]
    fn paths_are_read_as_they_are_written() {
        for text in ["/usr/lib/x", "$HOME", "$HOME/.x/y", "configured", "configured/.."] {
            assert_eq!(text.parse::<RulePath>().unwrap().to_string(), text);
        }
        for text in ["", "x", "x/y", "/x/", "/x/../y", "$", "$/x", "$1/x", "$HOME/", "$HOME/../x", "configured/x"] {
            assert!(text.parse::<RulePath>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_come_from_profile_variables_and_the_modules_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.conf");
        fs::write(&file, "tokens = /var/lib/x/tokens\nconnector = http://h:12345\n").unwrap();
        let path = |text: &str| text.parse::<RulePath>().unwrap();
        let sources = Sources {
            configuration: vec![path("$X_CONF"), path("$UNSET")],
            told: "db=/var/lib/y/z".to_owned(),
            read: vec![path("/etc/x")],
            write: vec![path("configured/.."), path("$NOT_A_PATH"), path("/dev/shm")],
            connect: Connect::Ports(vec![1]),
        };
        let rules = sources.rules(|name| match name {
            "X_CONF" => Some(file.clone().into()),
            "NOT_A_PATH" => Some("yes".into()),
            _ => None,
        });
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(rules.read, [vec![file], paths(&["/etc/x"])].concat());
        assert_eq!(rules.write, paths(&["/var/lib/y", "/var/lib/x", "/dev/shm"]));
        assert_eq!(rules.connect, Connect::Ports(vec![1, 12345]));
    }
}
