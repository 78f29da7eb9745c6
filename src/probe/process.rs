//! The parent's side of the probing process: asks for a step, waits no longer than the limit, and knows how it died.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::outcome::{Outcome, Verdict};
use super::steps::{Answer, Step};

/// A process that probes.
pub(super) struct Process {
    child: std::process::Child,
    control: BufReader<UnixStream>,
}

impl Process {
    /// Starts this program once more, as the hidden command that probes.
    pub(super) fn spawn() -> std::io::Result<Self> {
        Self::start(Command::new("/proc/self/exe"))
    }

    /// The same with these variables and no others.
    pub(super) fn spawn_with(environment: &BTreeMap<String, String>) -> std::io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.env_clear().envs(environment);
        Self::start(command)
    }

    fn start(mut command: Command) -> std::io::Result<Self> {
        let (control, remote) = UnixStream::pair()?;
        command.arg0("hsm-kms").arg("probe-worker");
        // Ctrl-C in a terminal goes to the whole group: this process must live on to destroy the keys that it made.
        command.process_group(0);
        command.stdin(Stdio::from(OwnedFd::from(remote))).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(Self { child: command.spawn()?, control: BufReader::new(control) })
    }

    /// Has it do a step. `Err`: how it was lost; it is dead then.
    pub(super) fn ask(&mut self, step: &Step, limit: Duration) -> Result<Answer, Outcome> {
        let line = self.exchange(step, limit);
        match line.and_then(|line| serde_json::from_str(&line).map_err(std::io::Error::other)) {
            Ok(answer) => Ok(answer),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.end(Duration::ZERO);
                Err(Outcome { verdict: Verdict::Hung, detail: format!("no answer in {} s", limit.as_secs()) })
            }
            Err(_) => Err(died(self.end(END_LIMIT))),
        }
    }

    fn exchange(&mut self, step: &Step, limit: Duration) -> std::io::Result<String> {
        let line = format!("{}\n", serde_json::to_string(step)?);
        self.control.get_mut().write_all(line.as_bytes())?;
        self.control.get_ref().set_read_timeout(Some(limit))?;
        let mut answer = String::new();
        match self.control.read_line(&mut answer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer),
        }
    }

    /// Waits for its end, at most so long, and then ends it.
    fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

/// How long a process that has nothing to do may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.control.get_ref().shutdown(std::net::Shutdown::Both);
        self.end(END_LIMIT);
    }
}

fn died(status: Option<ExitStatus>) -> Outcome {
    let detail = match status.map(|status| (status.signal(), status.code())) {
        Some((Some(signal), _)) => format!("signal {signal}"),
        Some((None, Some(code))) => format!("exit code {code}"),
        _ => "no more is known".to_owned(),
    };
    Outcome { verdict: Verdict::Crashed, detail }
}
