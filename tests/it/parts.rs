//! The real parts (tests/parts/README.md): how a test runs their programs, and what it leaves as evidence that they ran.
//!
//! A part that is not there fails the test. It never skips it.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A program among the parts.
#[derive(Clone, Copy)]
pub struct Part {
    program: &'static str,
    /// What it is, as [`record_run`] writes it.
    component: &'static str,
}

pub const API_SERVER_STACK: Part = Part { program: "apiserver-stack", component: "kube-apiserver encryption stack" };
pub const GRPC_GO: Part = Part { program: "grpc-go", component: "grpc-go" };
pub const KMS_CLIENT: Part = Part { program: "kms-client", component: "grpcio" };
pub const AUTHORITY: Part = Part { program: "authority", component: "h2" };
pub const YUBIHSM_SIMULATOR: Part = Part { program: "yubihsm-simulator", component: "simulated YubiHSM 2" };
pub const YUBIHSM_CHECK: Part = Part { program: "yubihsm-check", component: "yubihsm-pkcs11" };

/// The folder with the parts: `HSM_KMS_TEST_PARTS`, or where `scripts/test-parts` puts them by itself.
pub fn folder() -> PathBuf {
    let named = env::var_os("HSM_KMS_TEST_PARTS").filter(|folder| !folder.is_empty());
    named.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-parts"), PathBuf::from)
}

/// The file, which must be there.
pub fn installed(path: PathBuf) -> PathBuf {
    assert!(
        path.is_file(),
        "{} is not there: run scripts/test-parts, and set HSM_KMS_TEST_PARTS if it built into another folder than {}",
        path.display(),
        folder().display()
    );
    path
}

/// Evidence that a real component did its work in this test run: a line in the file that `HSM_KMS_TEST_RAN` names.
pub fn record_run(component: &str) {
    if let Some(path) = env::var_os("HSM_KMS_TEST_RAN") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        // One write: tests run at once.
        file.write_all(format!("{component}\n").as_bytes()).unwrap();
    }
}

impl Part {
    /// Runs it to its end; all that it checks must hold. Returns its steps.
    pub fn holds(self, scenario: &[&str], socket: &Path) -> Vec<Value> {
        self.start(scenario, socket).holds()
    }

    /// Starts it on a plugin's socket. `scenario` is the first argument, where it takes one, and flags.
    pub fn start(self, scenario: &[&str], socket: &Path) -> Running {
        self.spawn(|command| command.args(scenario).arg("--socket").arg(socket))
    }

    /// Starts it with the arguments and variables that `prepare` gives it.
    pub fn spawn(self, prepare: impl FnOnce(&mut Command) -> &mut Command) -> Running {
        let mut command = Command::new(installed(folder().join("bin").join(self.program)));
        prepare(&mut command);
        let errors = tempfile::tempfile().unwrap();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running {
            part: self,
            command: format!("{command:?}"),
            child,
            stdin,
            lines,
            errors,
            steps: Vec::new(),
            limit: LIMIT,
        }
    }
}

/// A running part. Killed when it goes; what it wrote is printed if the test failed.
pub struct Running {
    part: Part,
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: File,
    steps: Vec<Value>,
    limit: Duration,
}

impl Running {
    /// Lets it be silent for so much longer.
    pub fn allow(&mut self, longer: Duration) {
        self.limit += longer;
    }

    /// The next step, whatever it is; `None` after the last.
    pub fn next(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(self.limit) {
            Ok(line) => {
                let step: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
                self.steps.push(step.clone());
                Some(step)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} wrote nothing for {:?}", self.command, self.limit),
        }
    }

    /// Whether it writes nothing for so long. What it writes all the same is lost.
    pub fn is_silent_for(&mut self, duration: Duration) -> bool {
        self.lines.recv_timeout(duration) == Err(mpsc::RecvTimeoutError::Timeout)
    }

    /// Waits for the step of this name.
    pub fn wait_for(&mut self, name: &str) -> Value {
        loop {
            match self.next() {
                Some(step) if step["step"] == name => return step,
                Some(_) => {}
                None => panic!("{} ended without the step {name}", self.command),
            }
        }
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for its end. Its standard input is closed.
    pub fn end(&mut self) -> ExitStatus {
        self.stdin = None;
        while self.next().is_some() {}
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.command);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes the evidence that it did its work; [`Running::holds`] does by itself.
    pub fn record(&self) {
        record_run(self.part.component);
    }

    /// Waits for its end, which must be a good one. Returns all its steps.
    pub fn holds(mut self) -> Vec<Value> {
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{}: {status}", self.command);
        record_run(self.part.component);
        std::mem::take(&mut self.steps)
    }

    /// Waits for its end, which must be that something does not hold. Returns all its steps.
    pub fn does_not_hold(mut self) -> Vec<Value> {
        let status = self.end();
        assert_eq!(status.code(), Some(1), "{}: {status}", self.command);
        std::mem::take(&mut self.steps)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let mut errors = String::new();
            let _ = self.errors.rewind().and_then(|()| self.errors.read_to_string(&mut errors));
            eprintln!("{}", self.command);
            self.steps.iter().for_each(|step| eprintln!("{step}"));
            eprintln!("{errors}");
        }
    }
}

/// The step of this name, which must be there.
pub fn step<'a>(steps: &'a [Value], name: &str) -> &'a Value {
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no step {name} in {steps:#?}"))
}

/// Longest silence of a part; passed only when something is broken.
const LIMIT: Duration = Duration::from_mins(2);
