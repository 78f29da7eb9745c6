//! A command that must refuse: its exit code, and the three lines that say what failed, why, and what to do.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a command ended that did not do what it was asked.
#[derive(Debug)]
pub struct Refusal {
    pub code: i32,
    pub error: String,
    pub why: String,
    pub hint: String,
    /// Everything that it wrote to standard error.
    pub text: String,
}

/// Runs `hsm-kms` with this input; it must end by itself, soon, and with the three lines.
pub fn refusal(arguments: &[&str], input: &[u8]) -> Refusal {
    // `timeout` answers 124 for a command that went on.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "20", env!("CARGO_BIN_EXE_hsm-kms")]).args(arguments);
    command.env_remove("SOFTHSM2_CONF").env_remove("KRYOPTIC_CONF");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout runs");
    // A command that refuses early reads no input: a broken pipe is its right. No input here fills a pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let [error, why, hint] = lines[lines.len().saturating_sub(3)..] else { panic!("{arguments:?}: {text}") };
    let part = |line: &str, name: &str| match line.strip_prefix(&format!("hsm-kms: {name}: ")) {
        Some(part) if !part.trim().is_empty() => part.to_owned(),
        _ => panic!("no line `{name}`: {text}"),
    };
    assert!(!text.contains("panicked"), "{text}");
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
    Refusal {
        code: output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {}", output.status)),
        error: part(error, "error"),
        why: part(why, "why"),
        hint: part(hint, "hint"),
        text,
    }
}

/// `hsm-kms serve` with this configuration must refuse to start, with exit code 2 and a reason with these words.
pub fn serve_refuses(config: &Path, why: &str) -> Refusal {
    let refusal = refusal(&["serve", "--config", config.to_str().unwrap()], b"");
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    assert!(refusal.why.contains(why), "not {why:?}: {}", refusal.text);
    refusal
}
