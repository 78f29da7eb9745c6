//! The tables of docs/attacks.md: what the tests found, and what they must find again.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::intruder::{Outcome, Verdict};

/// What one module answered, attack by attack.
#[derive(Debug)]
pub struct Column {
    module: &'static str,
    cells: Vec<(String, Outcome)>,
}

/// Which table.
#[derive(Clone, Copy)]
pub enum Table {
    /// Of the KEK.
    Kek,
    /// Of the key with default attributes.
    Careless,
}

impl Column {
    pub fn new(module: &'static str, cells: Vec<(String, Outcome)>) -> Self {
        Self { module, cells }
    }

    pub fn push(&mut self, attack: &str, outcome: Outcome) {
        self.cells.push((attack.to_owned(), outcome));
    }

    /// The attacks that succeeded.
    pub fn done(&self) -> Vec<&str> {
        let done = self.cells.iter().filter(|(_, outcome)| outcome.verdict == Verdict::Done);
        done.map(|(attack, _)| attack.as_str()).collect()
    }

    pub fn gives_the_value(&self) -> bool {
        let mut done = self.cells.iter().filter(|(_, outcome)| outcome.verdict == Verdict::Done);
        done.any(|(_, outcome)| ["its value", "wrapped under a known key"].contains(&outcome.words.as_str()))
    }

    fn cell(&self, attack: &str) -> Option<String> {
        self.cells.iter().find(|(name, _)| name == attack).map(|(_, outcome)| outcome.to_string())
    }
}

impl Table {
    /// The column is as it stands in the document; or else it is written there, if that was asked for.
    pub fn check(self, column: &Column) {
        let file = File::open(document()).unwrap();
        file.lock().unwrap();
        let text = fs::read_to_string(document()).unwrap();
        let (before, rest) = text.split_once(self.begin()).expect("the table's begin");
        let (table, after) = rest.split_once(END).expect("the table's end");
        let mut rows = Rows::parse(table);
        let found = |attack: &str| column.cell(attack);
        if std::env::var("HSM_KMS_ATTACKS").as_deref() == Ok("write") {
            rows.put(column);
            fs::write(document(), format!("{before}{}\n{}{END}{after}", self.begin(), rows.text())).unwrap();
            return;
        }
        let position = rows.modules.iter().position(|name| name == column.module).expect("the module's column");
        let written: Vec<_> =
            rows.rows.iter().map(|(attack, cells)| (attack.clone(), cells[position].clone())).collect();
        let differences: Vec<_> = written
            .iter()
            .filter(|(attack, cell)| found(attack).as_ref() != Some(cell))
            .map(|(attack, cell)| format!("{attack}: {:?}, and docs/attacks.md says {cell:?}", found(attack)))
            .collect();
        assert!(differences.is_empty(), "{}: {differences:#?}", column.module);
        assert_eq!(written.len(), column.cells.len(), "docs/attacks.md has other attacks than were tried");
    }

    fn begin(self) -> &'static str {
        match self {
            Self::Kek => "<!-- attacks: begin -->",
            Self::Careless => "<!-- careless: begin -->",
        }
    }
}

const END: &str = "<!-- end -->";

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/attacks.md")
}

struct Rows {
    modules: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

impl Rows {
    fn parse(table: &str) -> Self {
        let mut lines = table.trim().lines().map(|line| {
            let cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
            cells.collect::<Vec<_>>()
        });
        let modules = lines.next().map(|head| head[1..].to_vec()).unwrap_or_default();
        let rows = lines.skip(1).map(|cells| (cells[0].clone(), cells[1..].to_vec())).collect();
        Self { modules, rows }
    }

    fn put(&mut self, column: &Column) {
        let position = self.modules.iter().position(|name| name == column.module).unwrap_or_else(|| {
            self.modules.push(column.module.to_owned());
            self.modules.len() - 1
        });
        // In the order in which they are tried now; what is tried no longer goes.
        let rows = column.cells.iter().map(|(attack, outcome)| {
            let old = self.rows.iter().find(|(name, _)| name == attack).map(|(_, cells)| cells.clone());
            let mut cells = old.unwrap_or_default();
            cells.resize(self.modules.len(), String::new());
            cells[position] = outcome.to_string();
            (attack.clone(), cells)
        });
        self.rows = rows.collect();
    }

    fn text(&self) -> String {
        let mut text =
            format!("| attack | {} |\n|---{}|\n", self.modules.join(" | "), "|---".repeat(self.modules.len()));
        for (attack, cells) in &self.rows {
            writeln!(text, "| {attack} | {} |", cells.join(" | ")).unwrap();
        }
        text
    }
}
