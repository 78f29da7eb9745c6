//! What the documents say: their commands exist and are run, their links lead somewhere, and what is made from the program is up to date.
//!
//! Blocks marked `sh` or `console` hold commands. A block without such a mark is refused if it has one, since nothing would check it.

mod commands;
mod generated;
mod links;
mod played;

use std::fs;
use std::path::{Path, PathBuf};

/// README.md and its like, and everything below docs.
fn documents() -> Vec<PathBuf> {
    let mut found = markdown(root(), false);
    found.extend(markdown(&root().join("docs"), true));
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn markdown(folder: &Path, deep: bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true if deep => markdown(&path, true),
            false if path.extension().is_some_and(|extension| extension == "md") => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

/// A fenced block.
struct Block {
    /// The line on which it begins.
    line: usize,
    mark: String,
    /// What a comment right in front of it says.
    note: Option<String>,
    text: String,
}

impl Block {
    /// Whether it holds commands to be typed.
    fn is_shell(&self) -> bool {
        matches!(self.mark.as_str(), "sh" | "console")
    }
}

fn blocks(document: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    let mut before = "";
    let mut indentation = 0;
    for (number, line) in (1..).zip(document.lines()) {
        let inner = line.trim_start();
        match (&mut open, inner.strip_prefix("```")) {
            (None, Some(mark)) => {
                indentation = line.len() - inner.len();
                let note = before.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).map(str::to_owned);
                open = Some(Block { line: number, mark: mark.trim().to_owned(), note, text: String::new() });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line.get(indentation..).unwrap_or(inner));
                block.text.push('\n');
            }
            (None, None) => {}
        }
        before = inner;
    }
    found
}

/// Whether there is a test of this name, `module::test`: an integration test, or a unit test.
fn is_test(name: &str) -> bool {
    let Some((module, test)) = name.rsplit_once("::") else { return false };
    let unit = module.trim_end_matches("::tests").replace("::", "/");
    let files = [
        format!("tests/it/{}.rs", module.replace("::", "/")),
        format!("src/{unit}.rs"),
        format!("src/{unit}/mod.rs"),
        format!("src/{unit}/tests.rs"),
    ];
    let declared = format!("fn {test}(");
    files.iter().any(|file| fs::read_to_string(root().join(file)).is_ok_and(|source| source.contains(&declared)))
}
