//! What a package holds besides the program: man pages and completions.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::harness::{run, text};

/// `man` reads every page without a complaint, and there is one for each command that help shows.
#[test]
fn every_command_has_a_man_page_and_hidden_ones_have_none() {
    let folder = tempfile::tempdir().unwrap();
    // Made if it is not there; a second time the pages are replaced.
    let out = folder.path().join("a/man1");
    for _ in 0..2 {
        assert!(run(&["generate", "man", "--out", &text(&out)], b"").status.success());
    }
    let found: BTreeSet<_> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut expected = BTreeSet::new();
    pages(&[], &mut expected);
    assert_eq!(found, expected);
    assert!(found.contains("hsm-kms-ceremony-plan-new.1") && !found.contains("hsm-kms-worker.1"), "{found:?}");

    let files: Vec<_> = found.iter().map(|name| out.join(name)).collect();
    let output = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).args(&files).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(out.join("hsm-kms.1")).unwrap();
    assert!(page.contains("hsm\\-kms\\-serve(1)") && !page.contains("worker"), "{page}");
}

/// The pages of this command and of those below it, by what its help shows.
fn pages(command: &[String], found: &mut BTreeSet<String>) {
    found.insert(format!("{}.1", [&["hsm-kms".to_owned()], command].concat().join("-")));
    let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
    let help = String::from_utf8(run(&arguments, b"").stdout).unwrap();
    let list = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
    for line in list.lines().take_while(|line| !line.is_empty()) {
        let name = line.strip_prefix("  ").and_then(|line| line.split(' ').next()).unwrap();
        if name != "help" && !name.is_empty() {
            pages(&[command, &[name.to_owned()]].concat(), found);
        }
    }
}

#[test]
fn man_pages_that_cannot_be_written_are_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = run(&["generate", "man", "--out", &text(&file)], b"");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(&format!("the man pages were not written into {}", file.display())), "{error}");
}

/// bash takes the script, and offers what is not hidden.
#[test]
fn completions_offer_commands_that_are_not_hidden() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&["generate", "completions", shell], b"");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("serve") && !script.contains("worker"), "{shell}");
    }
    let offered = |words: &str, position: usize| {
        let script = format!(
            "source <({} generate completions bash) && COMP_WORDS=({words}) COMP_CWORD={position} && \
             _hsm__kms hsm-kms \"${{COMP_WORDS[{position}]}}\" '' && echo \"${{COMPREPLY[*]}}\"",
            env!("CARGO_BIN_EXE_hsm-kms")
        );
        let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(offered("hsm-kms ser", 1), "serve");
    assert_eq!(offered("hsm-kms wor", 1), "");
    assert!(offered("hsm-kms serve --co", 2).contains("--config"));
    assert!(offered("hsm-kms ceremony clone-check --re", 3).contains("--record"));
    assert_eq!(run(&["generate", "completions", "sh"], b"").status.code(), Some(2));
}
