//! A terminal with a person at it: a pseudo-terminal of 80 columns and 24 lines, on which the program runs as after a login.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::wait_for;

/// The program, and what is seen of it.
pub struct Terminal {
    master: File,
    program: Program,
    seen: Vec<u8>,
    /// How much of it stood there at the last answer.
    answered: usize,
}

/// Killed when it goes.
struct Program(Child);

impl Terminal {
    /// Runs `hsm-kms` with these arguments on a new terminal.
    pub fn start(arguments: &[String]) -> Self {
        Self::start_in(Path::new("/"), arguments)
    }

    /// The same in this directory, where core files go, of any size.
    pub fn start_in(directory: &Path, arguments: &[String]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let path = PathBuf::from(ptsname(&master, Vec::new()).unwrap().into_string().unwrap());
        let no_control = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        let slave = File::options().read(true).write(true).custom_flags(no_control).open(path).unwrap();
        // The session's own terminal: what is typed unseen is read from /dev/tty. setsid becomes the program.
        let child = Command::new("setsid")
            .args(["--ctty", "prlimit", "--core=unlimited:unlimited", "--"])
            .arg(env!("CARGO_BIN_EXE_hsm-kms"))
            .args(arguments)
            .env_remove("SOFTHSM2_CONF")
            .env_remove("KRYOPTIC_CONF")
            .env("TERM", "vt100")
            .current_dir(directory)
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave)
            .spawn()
            .unwrap();
        Self { master: master.into(), program: Program(child), seen: Vec::new(), answered: 0 }
    }

    /// Turns pages until this is asked, and answers.
    pub fn answer(&mut self, question: &str, answer: &str) {
        let prompt = self.until_asked();
        assert!(prompt.contains(question), "asked {prompt:?}, not {question:?}:\n{}", self.screen());
        if prompt.contains("(not shown)") {
            // The prompt comes first; nobody types within a millisecond.
            let echoes = || tcgetattr(&self.master).unwrap().local_modes.contains(LocalModes::ECHO);
            wait_for("the terminal to show nothing", || (!echoes()).then_some(()));
        }
        self.type_line(answer);
    }

    /// Turns pages until something is asked.
    pub fn until_asked(&mut self) -> String {
        loop {
            let prompt = self.prompt();
            if !prompt.ends_with("Enter to go on: ") {
                return prompt;
            }
            self.type_line("");
        }
    }

    /// Turns pages until the end.
    pub fn end(mut self) -> (ExitStatus, String) {
        while self.read() {
            if self.seen[self.answered..].ends_with(b"Enter to go on: ") {
                self.type_line("");
            }
        }
        (self.program.ended(), self.screen())
    }

    /// Closes the terminal, as when a line is cut; the program must end. Returns what was seen.
    pub fn close(self) -> (ExitStatus, String) {
        let screen = self.screen();
        let Self { master, mut program, .. } = self;
        drop(master);
        (program.ended(), screen)
    }

    /// Everything that stood there.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// What stands there since the last answer.
    pub fn news(&self) -> String {
        String::from_utf8_lossy(&self.seen[self.answered..]).into_owned()
    }

    /// The line on which the program waits.
    fn prompt(&mut self) -> String {
        loop {
            let new = String::from_utf8_lossy(&self.seen[self.answered..]).into_owned();
            let line = new.rsplit('\n').next().unwrap_or_default();
            if line.ends_with(": ") && (line.starts_with(" > ") || line.starts_with("   Enter ")) {
                return line.to_owned();
            }
            assert!(self.read(), "it ended:\n{}", self.screen());
        }
    }

    fn type_line(&mut self, line: &str) {
        self.answered = self.seen.len();
        self.master.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Reads what comes next; `false` at the end.
    fn read(&mut self) -> bool {
        let mut wait = [PollFd::new(&self.master, PollFlags::IN)];
        let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
        let ready = poll(&mut wait, Some(&limit)).unwrap();
        assert!(ready > 0, "nothing for {LIMIT:?}:\n{}", self.screen());
        let mut buffer = [0; 4096];
        // The end of a pseudo-terminal is an error on Linux.
        let count = self.master.read(&mut buffer).unwrap_or(0);
        self.seen.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

impl Program {
    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Longest silence; passed only when something is broken.
const LIMIT: Duration = Duration::from_secs(30);
