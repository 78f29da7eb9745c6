//! The plugin's processes, as /proc shows them to everybody (proc(5)).

use std::fs;
use std::path::Path;

use super::checks::{CORE, MEMORY, SANDBOX};
use crate::finding::Finding;
use crate::memory;

/// The plugin and its workers. `listener` is the process that listens, which is systemd where it made the socket.
pub(super) fn plugin(listener: Option<u32>, config: &Path) -> Result<Vec<u32>, String> {
    let front = match listener {
        Some(pid) if is_plugin(pid) => pid,
        _ => serving(config)?,
    };
    let mut processes = vec![front];
    // The launcher, and the workers below it.
    for generation in [&[front][..], &children(front)] {
        processes.extend(generation.iter().flat_map(|pid| children(*pid)));
    }
    Ok(processes)
}

/// The processes that this one started, as far as they can be seen.
pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The one `hsm-kms serve` with this configuration.
fn serving(config: &Path) -> Result<u32, String> {
    let processes = fs::read_dir("/proc").map_err(|error| format!("/proc cannot be read: {error}"))?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let wanted = config.as_os_str().as_encoded_bytes();
    let serves = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        is_plugin(*pid) && words.any(|word| word == wanted || word.strip_prefix(b"--config=") == Some(wanted))
    };
    let found: Vec<u32> = pids.filter(serves).collect();
    match found.as_slice() {
        [pid] => Ok(*pid),
        [] => Err("the plugin's process is not seen from here".to_owned()),
        _ => Err("more than one process serves with this configuration".to_owned()),
    }
}

fn is_plugin(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        let mut words = line.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        program.ends_with(b"hsm-kms") && words.any(|word| word == b"serve")
    })
}

/// Its effective user.
pub(super) fn uid(pid: u32) -> Option<u32> {
    field(pid, "status", "Uid:")?.split_whitespace().nth(1)?.parse().ok()
}

/// What stands behind this name in a file of the process.
fn field(pid: u32, file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

/// What is seen of each process. A worker may be gone by now; if the front is not seen, nothing is.
fn of_each<T>(pids: &[u32], look: impl Fn(u32) -> Option<T>) -> Option<Vec<T>> {
    let (front, others) = pids.split_first()?;
    let front = look(*front)?;
    Some(std::iter::once(front).chain(others.iter().filter_map(|pid| look(*pid))).collect())
}

pub(super) fn memory(pids: &[u32]) -> Finding {
    let locked = |pid| field(pid, "status", "VmLck:")?.split_whitespace().next()?.parse::<u64>().ok();
    let locked = of_each(pids, locked);
    let swaps = memory::machine_swaps();
    match locked {
        None => Finding::not_checked(&MEMORY, "the plugin's process is not seen from here"),
        Some(locked) if locked.iter().all(|size| *size > 0) => Finding::ok(
            &MEMORY,
            format!("{} kB of {} process(es) are locked", locked.iter().sum::<u64>(), locked.len()),
        ),
        Some(_) if !swaps => Finding::ok(&MEMORY, "not locked, and this machine does not swap"),
        Some(_) => Finding::warning(
            &MEMORY,
            "not locked, and this machine swaps",
            "set LimitMEMLOCK=infinity in the unit, give CAP_IPC_LOCK, or switch swap off",
        ),
    }
}

pub(super) fn core(pids: &[u32]) -> Finding {
    let limit = |pid| Some(field(pid, "limits", "Max core file size")?.split_whitespace().next()?.to_owned());
    let limits = of_each(pids, limit);
    match limits {
        None => Finding::not_checked(&CORE, "the plugin's process is not seen from here"),
        Some(limits) if limits.iter().all(|limit| limit == "0") => {
            Finding::ok(&CORE, format!("off in {} process(es)", limits.len()))
        }
        Some(_) => {
            Finding::failed(&CORE, "a process of the plugin may leave one", "see that it is hsm-kms, and restart it")
        }
    }
}

pub(super) fn sandbox(pids: &[u32]) -> Finding {
    // proc(5): no new privileges by exec, and a filter for system calls (2).
    let is_limited = |pid| {
        let (privileges, filter) = (field(pid, "status", "NoNewPrivs:")?, field(pid, "status", "Seccomp:")?);
        Some(privileges == "1" && filter == "2")
    };
    let limited = of_each(pids, is_limited);
    match limited {
        None => Finding::not_checked(&SANDBOX, "the plugin's process is not seen from here"),
        Some(limited) if limited.iter().all(|is_limited| *is_limited) => {
            Finding::ok(&SANDBOX, format!("system calls are filtered in {} process(es)", limited.len()))
        }
        Some(limited) => Finding::warning(
            &SANDBOX,
            format!(
                "{} of {} process(es) may do whatever their user may",
                limited.iter().filter(|it| !**it).count(),
                limited.len()
            ),
            "remove `sandbox: off`; docs/security.md says what to do if the module fails without it",
        ),
    }
}
