//! The processes of a plugin, seen from outside: which worker it has, what they hold open, and how they are stopped.

use std::fs;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Plugin, wait_for};

/// The worker of this plugin, if it has one now.
pub fn worker(plugin: &Plugin) -> Option<Pid> {
    child_of(launcher(plugin)?)
}

/// The workers of this plugin.
pub fn workers(plugin: &Plugin) -> Vec<Pid> {
    launcher(plugin).map(children_of).unwrap_or_default()
}

/// The process that starts the workers of this plugin. It is there as long as the plugin.
pub fn launcher(plugin: &Plugin) -> Option<Pid> {
    child_of(plugin.pid())
}

/// The one child that the main thread of this process has, if it has one now.
pub fn child_of(parent: Pid) -> Option<Pid> {
    let children = children_of(parent);
    assert!(children.len() < 2, "it has one child");
    children.first().copied()
}

/// The children that the main thread of this process has now.
pub fn children_of(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

/// Another worker than this one, once it is there.
pub fn wait_for_worker_after(plugin: &Plugin, before: Pid) -> Pid {
    wait_for("another worker", || worker(plugin).filter(|found| *found != before))
}

/// Whether the process runs; a zombie does not.
pub fn is_alive(process: Pid) -> bool {
    state(&format!("/proc/{}", process.as_raw_nonzero())).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Stops it (SIGSTOP), and waits until each of its threads stands: the signal alone returns before that.
pub fn stop(process: Pid) {
    signal(process, Signal::STOP);
    let threads = format!("/proc/{}/task", process.as_raw_nonzero());
    wait_for("all threads to stand", || {
        let mut threads = fs::read_dir(&threads).unwrap().map(|thread| thread.unwrap().path());
        threads.all(|thread| state(&thread.display().to_string()) == Some('T')).then_some(())
    });
}

/// The state of a process or thread with this folder.
fn state(folder: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("{folder}/stat")).ok()?;
    // pid (name) state ...: the name may hold anything, also parentheses.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Sends the signal and says when.
pub fn signal(process: Pid, signal: Signal) -> Instant {
    kill_process(process, signal).unwrap();
    Instant::now()
}

/// How many descriptors it has open, and how many threads.
pub fn descriptors_and_threads(process: Pid) -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(format!("/proc/{}/{folder}", process.as_raw_nonzero())).unwrap().count();
    (count("fd"), count("task"))
}
