//! What keeps a process's memory to itself: no core dump, no look from outside, no swap.
//!
//! What is freed is wiped by the allocator (`src/main.rs`).

use std::fs;

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Whether this process's pages may be written to swap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Paging {
    /// Never.
    Locked,
    /// `RLIMIT_MEMLOCK` does not allow to lock them.
    Unlocked,
}

/// For a process that holds seeds or a PIN: no core dump of it, `/proc/PID/mem` and ptrace for root only, and no page of it in swap
/// where `RLIMIT_MEMLOCK` is unlimited or `CAP_IPC_LOCK` is there. Not inherited over exec, but for the core limit.
pub fn protect() -> Result<Paging, Errno> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Under a limit the lock would hold at first, and later allocations would fail, also those of a vendor's module.
    let is_allowed = getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    // On fault: what is never touched takes no memory.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Ok(if is_allowed && mlockall(flags).is_ok() { Paging::Locked } else { Paging::Unlocked })
}

/// Whether the machine swaps at all. If it cannot be told, it does.
pub fn machine_swaps() -> bool {
    // proc(5): a heading, then one line per area.
    fs::read_to_string("/proc/swaps").map_or(true, |areas| areas.lines().count() > 1)
}
