//! What a drill came to: a table, JSON, and a page that an auditor can keep.

use std::path::{Path, PathBuf};
use std::time::Instant;

use askama::Template;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure;
use crate::cli::CliError;
use crate::cli::recovery::file;
use crate::exit::ExitCode;
use crate::record::UtcTime;

/// A report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: u64,
    drill: &'static str,
    title: &'static str,
    against: String,
    began: UtcTime,
    tool: &'static str,
    host: String,
    pub(super) holds: bool,
    steps: Vec<Step>,
    notes: Vec<String>,
    #[serde(skip)]
    clock: Instant,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Step {
    /// Since the drill began.
    milliseconds: u128,
    tried: String,
    expected: String,
    found: String,
    holds: bool,
}

impl Report {
    pub(super) fn new(drill: &'static str, title: &'static str, against: String) -> Self {
        Self {
            version: 1,
            drill,
            title,
            against,
            began: UtcTime::now(),
            tool: concat!("hsm-kms ", env!("CARGO_PKG_VERSION")),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            holds: true,
            steps: Vec::new(),
            notes: Vec::new(),
            clock: Instant::now(),
        }
    }

    /// Something was tried. Gives back whether it came out as expected.
    pub(super) fn step(&mut self, tried: impl AsRef<str>, expected: &str, found: Result<String, String>) -> bool {
        let holds = found.is_ok();
        self.holds &= holds;
        let found = one_line(&found.unwrap_or_else(|why| why));
        let (tried, expected) = (one_line(tried.as_ref()), expected.to_owned());
        self.steps.push(Step { milliseconds: self.clock.elapsed().as_millis(), tried, expected, found, holds });
        holds
    }

    /// What the drill does not show, or takes for granted.
    pub(super) fn note(&mut self, text: impl AsRef<str>) {
        self.notes.push(one_line(text.as_ref()));
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    pub(super) fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
        table.set_header(["", "S", "TRIED", "FOUND"]);
        for step in &self.steps {
            let word = if step.holds { "ok" } else { "FAILED" };
            table.add_row([word, &self.seconds(&step.milliseconds), &step.tried, &step.found]);
        }
        let rows = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect::<String>();
        let lines = |text: &str| wrapped(text).into_iter().map(|line| line + "\n").collect::<String>();
        let notes = self.notes.iter().map(|note| lines(&format!("note: {note}"))).collect::<String>();
        let end = if self.holds { "Everything held.\n" } else { "Something did NOT hold.\n" };
        let head = lines(&format!("{}, against {}, {}", self.drill, self.against, self.began));
        format!("{head}\n{rows}\n{notes}\n{end}")
    }

    /// Writes both files, which bear drill and time in their names. None is overwritten.
    pub(super) fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, CliError> {
        let page = Page { report: self }.render();
        let page = page.map_err(|error| failure(ExitCode::DoesNotHold, error.to_string(), "report this"))?;
        let time = self.began.to_string().replace(':', "");
        let name = format!("drill-{}-{time}", self.drill);
        let files = [("json", self.to_json()), ("html", page)];
        let written = files.into_iter().map(|(extension, text)| {
            let path = folder.join(format!("{name}.{extension}"));
            file::write_new(&path, 0o644, text.as_bytes()).map(|()| path)
        });
        written.collect()
    }

    #[allow(
        clippy::unused_self,
        clippy::trivially_copy_pass_by_ref,
        reason = "the template calls it, too, with references"
    )]
    fn seconds(&self, milliseconds: &u128) -> String {
        format!("{}.{}", milliseconds / 1000, milliseconds % 1000 / 100)
    }
}

#[derive(Template)]
#[template(path = "report.html", config = "src/cli/drill/askama.toml")]
struct Page<'a> {
    report: &'a Report,
}

fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// In lines of at most 80 columns.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + word.chars().count() < 80 => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_did_not_hold_and_holds_no_markup() {
        let mut report = Report::new("node-theft", "A node is stolen", "a <b>test".to_owned());
        assert!(report.step("try", "nothing", Ok("nothing".to_owned())));
        assert!(report.to_text().ends_with("Everything held.\n"));
        assert!(!report.step("try \u{1b}[31m", "nothing", Err("<script>alert(1)</script>".to_owned())));
        report.note("a note ".repeat(40));
        let directory = tempfile::tempdir().unwrap();
        let files = report.write(directory.path()).unwrap();
        assert!(report.write(directory.path()).is_err(), "it would overwrite");
        let page = std::fs::read_to_string(&files[1]).unwrap();
        assert!(
            page.contains("&#60;script&#62;") && page.contains("did NOT hold") && !page.contains("<script"),
            "{page}"
        );
        let text = report.to_text();
        assert!(text.contains("FAILED") && !text.contains('\u{1b}'));
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
