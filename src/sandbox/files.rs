//! Landlock: which files may be read, written and run, and which TCP ports may be used.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, make_bitflags, path_beneath_rules,
};

use super::paths::{DEVICES, SYSTEM};
use super::{Connect, FrontRules, WorkerRules};

/// The version whose rights were looked at one by one. Later ones may forbid what is needed.
const VERSION: ABI = ABI::V6;

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// Beside reading. No devices are made, and nothing is run.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | MakeSym | MakeFifo | MakeSock | RemoveFile | RemoveDir
    | Refer | IoctlDev
});

type Rules<'a> = &'a [(&'a [PathBuf], BitFlags<AccessFs>)];

pub(super) fn front(rules: &FrontRules) -> Result<LandlockStatus, String> {
    // Other threads would go on without these rules.
    if fs::read_dir("/proc/self/task").map_or(1, Iterator::count) != 1 {
        return Err("this process has other threads already".to_owned());
    }
    let write = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg});
    let remove = make_bitflags!(AccessFs::{RemoveFile});
    let rules: Rules<'_> = &[(&rules.read, READ), (&rules.write, write), (&rules.remove, remove)];
    apply(rules, Some(&Connect::default())).map_err(|error| error.to_string())
}

pub(super) fn worker(rules: &WorkerRules, module: &Path) -> Result<LandlockStatus, String> {
    let read = [system(), beside(module), rules.read.clone()].concat();
    let devices: Vec<_> = DEVICES.iter().map(PathBuf::from).collect();
    let rules: (Rules<'_>, _) = (&[(&read, READ), (&devices, WRITE), (&rules.write, WRITE)], &rules.connect);
    apply(rules.0, Some(rules.1)).map_err(|error| error.to_string())
}

/// It may run this program, and the loader that the kernel starts with it. All else is left to its workers, who set their own rules
/// when they start: they may find other files in the place of those that are there now.
pub(super) fn launcher() -> Result<LandlockStatus, String> {
    let program = PathBuf::from("/proc/self/exe");
    let own = fs::read_link(&program).map_err(|error| error.to_string())?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| error.to_string())?;
    // proc(5): range, access, offset, device, inode, path. A library that an upgrade replaces is in the same folder.
    let libraries = maps.lines().filter_map(|line| line.find('/').and_then(|start| line.get(start..)).map(Path::new));
    let folders = libraries.filter(|library| *library != own).filter_map(Path::parent).map(Path::to_owned);
    let mut runs: Vec<_> = folders.chain([program]).collect();
    runs.sort();
    runs.dedup();
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::Execute)
        .and_then(Ruleset::create)
        .and_then(|created| created.add_rules(path_beneath_rules(&runs, AccessFs::Execute)))
        .and_then(landlock::RulesetCreated::restrict_self);
    ruleset.map(|status| status.landlock).map_err(|error| error.to_string())
}

/// Sets rules for all rights that [`VERSION`] knows. Paths that are not there are left out. `connect`: see [`Connect`].
fn apply(rules: Rules<'_>, connect: Option<&Connect>) -> Result<LandlockStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket)?;
    if connect != Some(&Connect::Any) {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut created = ruleset.create()?;
    for (paths, access) in rules {
        created = created.add_rules(path_beneath_rules(*paths, *access))?;
    }
    match connect {
        Some(Connect::Ports(ports)) => {
            for port in ports {
                created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
            }
        }
        // Some clients bind before they connect, to whatever port is free.
        Some(Connect::Any) => created = created.add_rule(NetPort::new(0, AccessNet::BindTcp))?,
        None => {}
    }
    Ok(created.restrict_self()?.landlock)
}

fn system() -> Vec<PathBuf> {
    let more = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let more = std::env::split_paths(&more).filter(|path| path.is_absolute());
    SYSTEM.iter().map(PathBuf::from).chain(more).collect()
}

/// The module's folder, by both names if its path is a link.
fn beside(module: &Path) -> Vec<PathBuf> {
    let real = fs::canonicalize(module).ok();
    [Some(module), real.as_deref()].into_iter().flatten().filter_map(Path::parent).map(Path::to_owned).collect()
}
