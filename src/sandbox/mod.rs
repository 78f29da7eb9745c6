//! What a process may do, limited to what it needs: no new privileges, Landlock for files and TCP ports, seccomp for system
//! calls. Each part is set by itself, so that one that the kernel lacks takes no other along.
//!
//! The front has no library to load, no program to start, nobody to connect to and no PIN to read. The launcher starts this
//! program and no other. A worker has its module's files and ports. What cannot be undone is done by the thread that is the
//! only one of its process; later threads inherit it.

mod calls;
mod files;
mod paths;

use std::fmt;
use std::path::PathBuf;

use landlock::{ABI, CompatLevel, Compatible, LandlockStatus, RestrictSelf};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

pub use self::paths::{RulePath, Sources};

/// Whether a process must be limited as it should be.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As far as this kernel can.
    #[default]
    BestEffort,
    /// Wholly, or it does not start.
    Require,
    /// Not at all.
    Off,
}

impl Mode {
    /// The value with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::BestEffort, Self::Require, Self::Off].into_iter().find(|mode| *mode as u32 == number)
    }
}

/// What the front needs after its start. A file that is replaced by another of its name is another file to Landlock, so
/// these are folders.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FrontRules {
    /// Whose files it reads.
    pub read: Vec<PathBuf>,
    /// In which it makes, reads and writes files.
    pub write: Vec<PathBuf>,
    /// From which it removes its sockets.
    pub remove: Vec<PathBuf>,
}

/// What a module needs, beside its own folder, the system's libraries and what the resolver reads.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WorkerRules {
    /// Files, and folders with all in them.
    pub read: Vec<PathBuf>,
    /// The same, to be written, made and removed, too.
    pub write: Vec<PathBuf>,
    /// Where it connects to by TCP.
    pub connect: Connect,
}

/// TCP ports that may be connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Connect {
    /// All.
    Any,
    /// These, on any host. None: no network at all.
    Ports(Vec<u16>),
}

impl Connect {
    /// Both together.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Ports(mut ports), Self::Ports(more)) => {
                ports.extend(more);
                Self::Ports(ports)
            }
            _ => Self::Any,
        }
    }
}

impl Default for Connect {
    fn default() -> Self {
        Self::Ports(Vec::new())
    }
}

/// What holds in a process, for the log.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// The parts that hold.
    pub held: Vec<&'static str>,
    /// What does not, and why.
    pub missing: Vec<String>,
}

impl fmt::Display for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = if self.held.is_empty() { "nothing".to_owned() } else { self.held.join(", ") };
        formatter.write_str(&held)?;
        if self.missing.is_empty() { Ok(()) } else { write!(formatter, "; missing: {}", self.missing.join("; ")) }
    }
}

/// A process that must be limited and is not.
#[derive(Debug, Error)]
#[error("the sandbox does not hold: {0}")]
pub struct Unheld(String);

/// What this kernel can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Support {
    landlock: LandlockStatus,
    seccomp: bool,
}

/// Asks the kernel, and changes nothing.
pub fn support() -> Support {
    let status = RestrictSelf::default().set_compatibility(CompatLevel::BestEffort).no_new_privs(false).apply();
    Support {
        landlock: status.map_or(LandlockStatus::NotImplemented, |status| status.landlock),
        seccomp: std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
            .is_ok_and(|actions| actions.split_whitespace().any(|action| action == "errno")),
    }
}

impl Support {
    /// What a sandbox needs and this kernel lacks, with the version that has it. Empty: nothing.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = match self.landlock {
            LandlockStatus::NotEnabled => {
                vec!["Landlock (it is in the kernel; add landlock to its lsm= parameter)".to_owned()]
            }
            LandlockStatus::NotImplemented => vec!["Landlock (Linux 5.13, with CONFIG_SECURITY_LANDLOCK)".to_owned()],
            LandlockStatus::Available { effective_abi, .. } => {
                let lacks = |(abi, what): &(ABI, &str)| (effective_abi < *abi).then(|| format!("Landlock for {what}"));
                LANDLOCK.iter().filter_map(lacks).collect()
            }
        };
        if !self.seccomp {
            missing.push("seccomp (CONFIG_SECCOMP_FILTER)".to_owned());
        }
        missing
    }
}

/// What came into Landlock after its first version.
const LANDLOCK: [(ABI, &str); 5] = [
    (ABI::V2, "files that are moved (Linux 5.19)"),
    (ABI::V3, "truncation (Linux 6.2)"),
    (ABI::V4, "TCP ports (Linux 6.7)"),
    (ABI::V5, "devices' controls (Linux 6.10)"),
    (ABI::V6, "abstract sockets (Linux 6.12)"),
];

/// For the front, when its sockets are bound and its launcher runs.
pub fn front(rules: &FrontRules, mode: Mode) -> Result<Held, Unheld> {
    restrict(mode, || files::front(rules), calls::Process::Front)
}

/// For the launcher, at its start.
pub fn launcher(mode: Mode) -> Result<Held, Unheld> {
    restrict(mode, files::launcher, calls::Process::Launcher)
}

/// For a worker that has read its PIN and loads its module next, which lies at this path.
pub fn worker(rules: &WorkerRules, module: &std::path::Path, mode: Mode) -> Result<Held, Unheld> {
    let has_network = rules.connect != Connect::default();
    restrict(mode, || files::worker(rules, module), calls::Process::Worker { has_network })
}

fn restrict(
    mode: Mode,
    files: impl FnOnce() -> Result<LandlockStatus, String>,
    process: calls::Process,
) -> Result<Held, Unheld> {
    let mut all = Held::default();
    if mode == Mode::Off {
        return Ok(all);
    }
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => all.held.push("no_new_privs"),
        Err(error) => all.missing.push(format!("no_new_privs: {error}")),
    }
    match files() {
        Ok(landlock) => {
            let lacks = Support { landlock, seccomp: true }.missing();
            if matches!(landlock, LandlockStatus::Available { .. }) {
                all.held.push("Landlock");
            }
            all.missing.extend(lacks);
        }
        Err(error) => all.missing.push(format!("Landlock: {error}")),
    }
    match calls::restrict(process) {
        Ok(()) => all.held.push("seccomp"),
        Err(error) => all.missing.push(format!("seccomp: {error}")),
    }
    if mode == Mode::Require && !all.missing.is_empty() { Err(Unheld(all.missing.join("; "))) } else { Ok(all) }
}

impl<'de> Deserialize<'de> for Connect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ports;
        impl<'de> Visitor<'de> for Ports {
            type Value = Connect;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("`any` or a list of ports")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Connect, E> {
                if text == "any" { Ok(Connect::Any) } else { Err(E::custom("expected `any` or a list of ports")) }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Connect, A::Error> {
                let mut ports = Vec::new();
                while let Some(port) = list.next_element::<u16>()? {
                    if port == 0 || ports.len() >= MOST_PORTS {
                        let problem = format!("expected at most {MOST_PORTS} ports from 1 to 65535");
                        return Err(A::Error::custom(problem));
                    }
                    ports.push(port);
                }
                Ok(Connect::Ports(ports))
            }
        }
        deserializer.deserialize_any(Ports)
    }
}

const MOST_PORTS: usize = 64;

impl Serialize for Connect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::Ports(ports) => ports.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(effective_abi: ABI) -> Support {
        Support { landlock: LandlockStatus::Available { effective_abi, kernel_abi: None }, seccomp: true }
    }

    #[test]
    fn what_an_old_kernel_lacks_is_named() {
        assert_eq!(available(ABI::V6).missing(), [""; 0]);
        assert_eq!(available(ABI::V5).missing(), ["Landlock for abstract sockets (Linux 6.12)"]);
        // Debian 12's.
        assert_eq!(available(ABI::V2).missing().len(), 4);
        let none = Support { landlock: LandlockStatus::NotImplemented, seccomp: false }.missing();
        assert_eq!(none.len(), 2, "{none:?}");
        let off = Support { landlock: LandlockStatus::NotEnabled, seccomp: true }.missing();
        assert!(off.len() == 1 && off[0].contains("lsm="), "{off:?}");
    }

    #[test]
    fn ports_add_up_and_any_is_more() {
        let some = Connect::Ports(vec![1792]);
        assert_eq!(some.clone().and(&Connect::Ports(vec![9004])), Connect::Ports(vec![1792, 9004]));
        assert_eq!(some.clone().and(&Connect::Any), Connect::Any);
        assert_eq!(Connect::Any.and(&some), Connect::Any);
    }

    #[test]
    fn one_part_that_fails_takes_no_other_along() {
        // Tests run in threads of one process, so nothing is tried here that limits it.
        let held = Held { held: vec!["seccomp"], missing: vec!["Landlock: because".to_owned()] };
        assert_eq!(held.to_string(), "seccomp; missing: Landlock: because");
        assert_eq!(
            restrict(Mode::Off, || Err("not asked".to_owned()), calls::Process::Front).unwrap(),
            Held::default()
        );
    }
}
