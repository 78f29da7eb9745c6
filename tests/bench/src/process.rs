//! The plugin under measurement: started, timed to its first Encrypt, and read from /proc.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::site::Site;

/// A running plugin: the front and its worker.
pub struct Plugin {
    front: Child,
    /// From exec to the answer of the first Encrypt.
    pub first_encrypt: Duration,
}

impl Plugin {
    /// Starts the plugin with this many sessions and waits for its first Encrypt.
    pub fn start(program: &Path, site: &Site, sessions: usize) -> Self {
        let configuration = site.configuration(sessions);
        let began = Instant::now();
        let front = Command::new(program)
            .args(["serve", "--config"])
            .arg(configuration)
            .stderr(Stdio::null())
            .spawn()
            .expect("plugin");
        Load::first_encrypt(&site.socket());
        Self { front, first_encrypt: began.elapsed() }
    }

    /// Processor time of front and worker so far, in seconds.
    pub fn processor_seconds(&self) -> (f64, f64) {
        let seconds = |pid| {
            fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
                .filter_map(|text| text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()))
                .sum::<f64>()
                / 1e9
        };
        (seconds(self.front.id()), self.workers().into_iter().map(seconds).sum())
    }

    /// Resident memory of front and worker, in KiB.
    pub fn resident_kib(&self) -> (u64, u64) {
        let resident = |pid| {
            fs::read_to_string(format!("/proc/{pid}/status"))
                .ok()
                .and_then(|text| text.lines().find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned)))
                .and_then(|rest| rest.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()))
                .unwrap_or(0)
        };
        (resident(self.front.id()), self.workers().into_iter().map(resident).sum())
    }

    /// The front's one child is the launcher, and its children are the workers.
    fn workers(&self) -> Vec<u32> {
        children(self.front.id()).into_iter().flat_map(children).collect()
    }
}

fn children(id: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{id}/task/{id}/children"))
        .map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
        .unwrap_or_default()
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.front.id().to_string()).status();
        let _ = self.front.wait();
    }
}
