//! Every call of `hsm-kms` and of a script in the documents is one that exists, with its flags.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::{Block, blocks, documents, root};
use crate::harness::run;

#[test]
fn commands_in_the_documents_exist() {
    let mut help = Help::default();
    let (mut found, mut wrong) = (0, Vec::new());
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap()) {
            for command in commands(&block) {
                found += 1;
                let place = format!("{}:{}", path.display(), block.line);
                match block.mark.as_str() {
                    "sh" | "console" => wrong.extend(help.check(&command).err().map(|why| format!("{place}: {why}"))),
                    mark => wrong.push(format!("{place}: a block with commands is marked {mark:?}, not sh or console")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(found > 0, "no command was found in any document");
}

#[test]
fn the_pictures_show_commands_that_exist() {
    let output = Command::new(root().join("scripts/screenshots")).arg("--list").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let commands = commands(&Block { line: 1, mark: "sh".to_owned(), note: None, text });
    let mut help = Help::default();
    for command in &commands {
        help.check(command).unwrap();
    }
    assert_eq!(commands.len(), fs::read_dir(root().join("docs/images")).unwrap().count());
}

#[test]
fn commands_that_do_not_exist_are_found() {
    let mut help = Help::default();
    let mut check = |text: &str| {
        let commands = commands(&Block { line: 1, mark: "sh".to_owned(), note: None, text: text.to_owned() });
        assert_eq!(commands.len(), 1, "{text}");
        help.check(&commands[0])
    };
    for right in [
        "hsm-kms serve --config /etc/hsm-kms/config.yaml",
        "sudo -u kms target/release/hsm-kms serve --config=a.yaml &",
        "printf x | hsm-kms call encrypt \\\n  --socket /run/hsm-kms/hsm@kms.sock > sealed.json",
        "scripts/bench --json --seconds 2",
        "RUST_LOG=debug scripts/quickstart --check --dir /tmp/x",
        "cargo run --release -- call status --socket s --json",
        "hsm-kms profiles show softhsm2 --json > a.json",
        "hsm-kms ceremony sign a --as \"Ada Lovelace\" --key b",
        "hsm-kms audit verify a b --head c",
    ] {
        check(right).unwrap();
    }
    for wrong in [
        "hsm-kms",
        "hsm-kms serv --config a",
        "hsm-kms serve --confi a",
        "hsm-kms serve --config a b",
        "hsm-kms call --socket s",
        "hsm-kms call status --socket s --uid x",
        "scripts/quickstar",
        "scripts/quickstart --no-check",
        "scripts/bench --second 2",
        "cargo run -- call state",
        "hsm-kms profiles show",
        "hsm-kms profiles show softhsm2 kryoptic",
        "hsm-kms profiles show --jso softhsm2",
        "hsm-kms ceremony sign a --as Ada Lovelace --key b",
    ] {
        check(wrong).unwrap_err();
    }
}

/// The calls of `hsm-kms` and of scripts, each as words.
fn commands(block: &Block) -> Vec<Vec<String>> {
    let joined = block.text.replace("\\\n", " ");
    let is_console = block.mark == "console";
    let lines = joined.lines().filter_map(|line| if is_console { line.strip_prefix("$ ") } else { Some(line) });
    let lines = lines.map(|line| line.split(" #").next().unwrap_or(line));
    lines.flat_map(|line| line.split(['|', ';', '&'])).filter_map(command).collect()
}

/// The words of a command; what stands in quotes is one.
fn split(text: &str) -> Vec<&str> {
    let parts = text.split('"').enumerate();
    let words = parts.flat_map(|(number, part)| match number % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    words.collect()
}

/// The words from the program on, if it is one of ours.
fn command(text: &str) -> Option<Vec<String>> {
    let mut words = split(text);
    let is_prefix = |word: &str| matches!(word, "sudo" | "env" | "exec" | "!") || word.contains('=');
    while let Some(&first) = words.first() {
        match first {
            "-u" => drop(words.drain(..2)),
            first if is_prefix(first) => drop(words.remove(0)),
            _ => break,
        }
    }
    if words.starts_with(&["cargo", "run"]) {
        let position = words.iter().position(|word| *word == "--")?;
        words.splice(..=position, ["hsm-kms"]);
    }
    if let Some(position) = words.iter().position(|word| word.starts_with(['<', '>']) || *word == "2>") {
        words.truncate(position);
    }
    let name = words.first()?.trim_start_matches("./");
    let is_ours = name == "hsm-kms" || name.ends_with("/hsm-kms") || name.starts_with("scripts/");
    is_ours.then(|| words.iter().map(|word| word.trim_start_matches("./").to_owned()).collect())
}

/// What `--help` said, by command.
#[derive(Default)]
struct Help(BTreeMap<Vec<String>, String>);

impl Help {
    fn check(&mut self, words: &[String]) -> Result<(), String> {
        let (program, mut rest) = words.split_first().ok_or("no command")?;
        let mut command = vec![if program.starts_with("scripts/") { program } else { "hsm-kms" }.to_owned()];
        let mut help = self.of(&command)?;
        while let (Some(names), Some((word, further))) = (subcommands(&help), rest.split_first()) {
            if !names.contains(word) {
                return Err(format!("{} has no command {word}", command.join(" ")));
            }
            command.push(word.clone());
            help = self.of(&command)?;
            rest = further;
        }
        if subcommands(&help).is_some() {
            return Err(format!("{} needs a command", command.join(" ")));
        }
        let is_script = program.starts_with("scripts/");
        let mut operands_left = operands(&help);
        // The last operand may stand there several times.
        let has_list = help.contains(">...\n");
        while let Some((word, further)) = rest.split_first() {
            rest = further;
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
            let flag = name.starts_with('-').then(|| flag(&help, name)).flatten();
            match flag {
                Some(Flag::WithValue) if value.is_none() => rest = rest.get(1..).unwrap_or_default(),
                Some(_) => {}
                // A script's operand, such as a filter.
                None if is_script && !name.starts_with('-') => {}
                None if operands_left == 0 && has_list && !name.starts_with('-') => {}
                None if operands_left > 0 && !name.starts_with('-') => operands_left -= 1,
                None => return Err(format!("{} has no {word}", command.join(" "))),
            }
        }
        if operands_left > 0 {
            return Err(format!("{} needs {operands_left} more", command.join(" ")));
        }
        Ok(())
    }

    fn of(&mut self, command: &[String]) -> Result<String, String> {
        if let Some(help) = self.0.get(command) {
            return Ok(help.clone());
        }
        let output = match command[0].as_str() {
            "hsm-kms" => {
                let arguments: Vec<&str> = command[1..].iter().map(String::as_str).chain(["--help"]).collect();
                run(&arguments, b"")
            }
            script => {
                let path = root().join(script);
                let mode = fs::metadata(&path).map_err(|error| format!("{script}: {error}"))?.permissions().mode();
                if mode & 0o111 == 0 {
                    return Err(format!("{script} is not executable"));
                }
                Command::new(path).arg("--help").output().unwrap()
            }
        };
        if !output.status.success() {
            return Err(format!("{} --help fails", command.join(" ")));
        }
        let help = String::from_utf8(output.stdout).unwrap();
        self.0.insert(command.to_vec(), help.clone());
        Ok(help)
    }
}

/// The names under `Commands:`.
fn subcommands(help: &str) -> Option<Vec<String>> {
    let (_, list) = help.split_once("\nCommands:\n")?;
    let lines = list.lines().take_while(|line| !line.is_empty());
    Some(lines.filter_map(|line| Some(line.strip_prefix("  ")?.split(' ').next()?.to_owned())).collect())
}

/// How many values stand under `Arguments:`; all of ours must be given.
fn operands(help: &str) -> usize {
    let Some((_, list)) = help.split_once("\nArguments:\n") else { return 0 };
    list.lines().take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  <")).count()
}

enum Flag {
    Bare,
    WithValue,
}

/// The flag, if the help names it.
fn flag(help: &str, name: &str) -> Option<Flag> {
    help.lines().find_map(|line| {
        let mut words = line.split([' ', ',']).filter(|word| !word.is_empty());
        // `[--flag VALUE]` in a usage line, `--flag <VALUE>  what it does` in a list.
        let found = words.find(|word| word.trim_matches(['[', ']']) == name)?;
        let value = if found.ends_with(']') { None } else { words.find(|word| !word.starts_with('-')) };
        let takes_value = value.is_some_and(|value| value.starts_with('<') || value.ends_with(']') || is_upper(value));
        Some(if takes_value { Flag::WithValue } else { Flag::Bare })
    })
}

fn is_upper(word: &str) -> bool {
    word.chars().all(|character| character.is_ascii_uppercase() || character == '-')
}
