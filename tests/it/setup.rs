//! The scripts that set a token up, as a user runs them, and what of them must go on beside the token.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;

use crate::harness::{text, wait_for};
use crate::processes::is_alive;

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

/// A run to its end: exit code, and what it wrote.
fn finish(name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(path(name)).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code(), text)
}

#[test]
fn scripts_refuse_what_they_cannot_use() {
    for script in ["nss-setup", "opencryptoki-setup", "tpm2-setup"] {
        for wrong in [&["--what"][..], &["--dir"], &["--label", ""], &["--label", "a\nb"], &["--dir", ""]] {
            let (code, text) = finish(script, wrong);
            assert_eq!(code, Some(2), "{script} {wrong:?}: {text}");
            assert!(text.contains(": hint: see scripts/"), "{script} {wrong:?}: {text}");
        }
    }
    for wrong in [["--name", "swtok"], ["--name", "hsm-kms/../swtok"]] {
        assert_eq!(finish("opencryptoki-setup", &wrong).0, Some(2));
    }
    let directory = tempfile::tempdir().unwrap();
    let home = text(&directory.path().join("tpm"));
    let (code, text) = finish("tpm2-setup", &["--dir", &home, "--tcti", "device:/nonexistent"]);
    assert!(code == Some(1) && text.contains("the TPM cannot be reached"), "{text}");
}

#[test]
fn a_second_run_for_nss_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("nss");
    let run = || Script::run("nss-setup", &["--dir", &text(&home)]).1;
    let files = || ["pin", "db/key4.db", "profile.yaml"].map(|name| fs::read(home.join(name)).unwrap());
    let first = (run(), files());
    assert_eq!((run(), files()), first);
    assert!(!String::from_utf8_lossy(&first.1[2]).contains("\nrefuse:"));

    fs::remove_file(home.join("pin")).unwrap();
    let (code, output) = finish("nss-setup", &["--dir", &text(&home)]);
    assert!(code == Some(1) && output.contains("a token does not tell its PIN"), "{output}");
}

#[test]
fn a_trial_of_opencryptoki_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let home = text(directory.path());
    let (mut script, _) = Script::run("opencryptoki-setup", &["--dir", &home, "--name", "hsm-kms-a", "--trial"]);
    let daemon = pid(&fs::read_to_string("/run/pkcsslotd.pid").unwrap());
    assert!(
        is_alive(daemon) && has_slot("hsm-kms-a-trial") && Path::new("/var/lib/opencryptoki/hsm-kms-a-trial").exists()
    );
    assert_eq!(script.end(), Some(0));
    assert!(!is_alive(daemon) && !has_slot("hsm-kms-a-trial"));
    assert!(!Path::new("/var/lib/opencryptoki/hsm-kms-a-trial").exists());
}

#[test]
fn without_its_daemon_opencryptoki_has_a_slot_and_no_token() {
    let directory = tempfile::tempdir().unwrap();
    let (code, output) = finish("opencryptoki-setup", &["--dir", &text(directory.path()), "--name", "hsm-kms-b"]);
    assert!(code == Some(2) && output.contains("hint: start it: "), "{output}");
    assert!(has_slot("hsm-kms-b"));
    let (code, output) = finish("opencryptoki-setup", &["--name", "hsm-kms-b", "--remove"]);
    assert!(code == Some(0) && !has_slot("hsm-kms-b"), "{output}");
}

fn has_slot(name: &str) -> bool {
    let configuration = fs::read_to_string("/etc/opencryptoki/opencryptoki.conf").unwrap();
    configuration.contains(&format!("tokname = {name}\n"))
}

#[test]
fn a_simulated_tpm_keeps_its_token_and_ends_with_its_script() {
    let directory = tempfile::tempdir().unwrap();
    let home = text(&directory.path().join("tpm"));
    let arguments = ["--dir", &home, "--simulate"];
    let store = || fs::read(Path::new(&home).join("store/tpm2_pkcs11.sqlite3")).unwrap();

    let (mut script, section) = Script::run("tpm2-setup", &arguments);
    let before = store();
    let (code, output) = finish("tpm2-setup", &arguments);
    assert!(code == Some(1) && output.contains("another run of this uses"), "{output}");
    let daemons = script.children();
    assert_eq!(daemons.len(), 3);
    assert_eq!(script.end(), Some(0));
    assert!(!daemons.into_iter().any(is_alive));

    let (mut script, again) = Script::run("tpm2-setup", &arguments);
    assert_eq!((again, store()), (section, before));
    let daemons = script.children();
    script.child.kill().unwrap();
    wait_for("the daemons to go", || (!daemons.iter().copied().any(is_alive)).then_some(()));
}

/// The commands of docs/modules.md, as they stand there, but that the packages are there already.
#[test]
fn the_documented_commands_do_what_is_said() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/modules.md")).unwrap();
    let sections: Vec<_> = document.split("\n## ").skip(1).collect();
    assert_eq!(sections.len(), 3);
    for section in sections {
        let blocks: Vec<_> = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        let [set_up, ceremony] = blocks.as_slice() else { panic!("{section}") };
        let directory = tempfile::tempdir().unwrap();
        symlink(path(""), directory.path().join("scripts")).unwrap();
        let (install, set_up) = set_up.split_once('\n').unwrap();
        assert!(install.starts_with("apt-get install -y "), "{install}");
        let mut first = shell(set_up, directory.path());
        first.wait_for_token(&directory.path().join("token.yaml"));
        let second = shell(ceremony, directory.path()).output();
        let (said, _) = section.split_once("It ends with exit code 1: `").unwrap().1.split_once('`').unwrap();
        assert!(second.0 == Some(1) && second.1.contains(&format!("why: {said}\n")), "{second:?}");
        assert_eq!(first.end(), Some(0));
    }
}

/// The commands in a shell, with the program in its path.
fn shell(commands: &str, directory: &Path) -> Script {
    let program = Path::new(env!("CARGO_BIN_EXE_hsm-kms")).parent().unwrap();
    let paths = format!("{}:{}", program.display(), env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-euc", commands]).current_dir(directory).env("PATH", paths);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    Script { stdin: child.stdin.take(), child }
}

impl Script {
    /// The processes that it runs.
    fn children(&self) -> Vec<Pid> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.split_whitespace().map(pid).collect()
    }

    /// Waits until the file has the whole section. Others may be at work on openCryptoki, each of them for seconds.
    fn wait_for_token(&mut self, file: &Path) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while !fs::read_to_string(file).unwrap_or_default().contains("\n#") && self.child.try_wait().unwrap().is_none()
        {
            assert!(Instant::now() < deadline, "waited for a token");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end. Returns its exit code and what it wrote to standard error.
    fn output(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.end(), text)
    }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}
