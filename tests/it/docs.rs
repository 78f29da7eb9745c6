//! What the documents say: their commands exist and are run, their links lead somewhere, and what is made from the program is up to date.
//!
//! Blocks marked `sh` or `console` hold commands. A block without such a mark is refused if it has one, since nothing would check it.

mod commands;
mod generated;
mod links;

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
    mark: String,
    text: String,
}

/// The fenced blocks and the lines on which they begin.
fn blocks(document: &str) -> Vec<(usize, Block)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for (number, line) in (1..).zip(document.lines()) {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(mark)) => {
                open = Some((number, Block { mark: mark.trim().to_owned(), text: String::new() }));
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some((_, block)), None) => {
                block.text.push_str(line.trim_start());
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}
