//! The scripts that set a token up, as a user runs them, and what of them must go on beside the token.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A script that has set a token up. One that runs daemons goes on until its standard input ends, even if this process is killed.
pub struct Script {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Script {
    /// Runs it until the token is there. Returns the section `token` that it prints.
    pub fn run(name: &str, arguments: &[&str]) -> (Self, Value) {
        let mut errors = tempfile::tempfile().unwrap();
        let mut script = Self::spawn(name, arguments, errors.try_clone().unwrap());
        let mut section = String::new();
        for line in BufReader::new(script.child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // It is complete, and the script goes on.
            if line.starts_with('#') {
                break;
            }
            section += &(line + "\n");
        }
        let printed: Option<Value> = serde_yaml::from_str(&section).ok();
        let Some(section) = printed.as_ref().and_then(|printed| printed.get("token")) else {
            let status = script.end();
            let mut text = String::new();
            errors.rewind().and_then(|()| errors.read_to_string(&mut text)).unwrap();
            panic!("{name} {arguments:?} made no token: {status:?}\n{section}\n{text}");
        };
        (script, section.clone())
    }

    fn spawn(name: &str, arguments: &[&str], errors: File) -> Self {
        let mut command = Command::new(path(name));
        let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    /// Lets it end, and waits until what it ran has ended too. Returns its exit code.
    pub fn end(&mut self) -> Option<i32> {
        self.stdin = None;
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.end();
    }
}

/// A script is killed when it takes longer to end.

const LIMIT: Duration = Duration::from_secs(20);

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}
