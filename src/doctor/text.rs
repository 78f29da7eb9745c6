//! The table for people: at most 80 columns.

use std::fmt::Write;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};

use super::{GROUPS, Report};
use crate::finding::{Finding, Verdict};

/// What the reader's terminal can show.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Escape codes for colours.
    pub colour: bool,
    /// Letters beyond ASCII.
    pub unicode: bool,
}

/// The report as text.
pub fn text(report: &Report, terminal: Terminal) -> String {
    let mut text = format!("hsm-kms doctor {}, {}\n", env!("CARGO_PKG_VERSION"), report.time);
    for group in &GROUPS {
        let rows = report.findings.iter().filter(|finding| group.checks.contains(&finding.check));
        let _ = write!(text, "\n{}\n{}\n", group.title, "-".repeat(group.title.len()));
        for finding in rows {
            text += &coloured(&row(finding, terminal), finding.verdict, terminal);
        }
    }
    let _ = write!(text, "\n{}\n", summary(report));
    if terminal.unicode { text } else { ascii(&text) }
}

const WIDTH: u16 = 80;
const RESULT: u16 = 13;
const TITLE: u16 = 18;

fn row(finding: &Finding, terminal: Terminal) -> String {
    let found = match &finding.subject {
        Some(subject) => format!("{subject}: {}", finding.found),
        None => finding.found.clone(),
    };
    let shown = |text: &str| if terminal.unicode { text.to_owned() } else { ascii(text) };
    let why = (finding.verdict != Verdict::NotChecked).then(|| format!("why: {}", finding.check.why));
    let what = finding.advice.as_ref().map(|advice| format!("do:  {}", shown(advice)));
    let cell = [Some(shown(&found)), why, what].into_iter().flatten().collect::<Vec<_>>().join("\n");
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.add_row([finding.verdict.words(), finding.check.title, &cell]);
    let widths = [RESULT, TITLE, WIDTH - RESULT - TITLE];
    table.set_constraints(widths.map(|width| ColumnConstraint::Absolute(Width::Fixed(width))));
    // The style puts a blank before each cell.
    table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n").collect()
}

fn summary(report: &Report) -> String {
    let count = |verdict| report.count(verdict);
    let mut text = format!(
        "{} failed, {} warnings, {} ok, {} not checked.",
        count(Verdict::Failed),
        count(Verdict::Warning),
        count(Verdict::Ok),
        count(Verdict::NotChecked)
    );
    let failed = report.findings.iter().filter(|finding| finding.verdict == Verdict::Failed);
    let mut names: Vec<_> = failed.map(|finding| finding.check.name).collect();
    names.dedup();
    if names.is_empty() {
        text += " Nothing failed.";
    } else {
        for line in wrapped(&format!("Failed: {}", names.join(", "))) {
            let _ = write!(text, "\n{line}");
        }
    }
    text
}

/// The words in lines of at most 80 columns.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < usize::from(WIDTH) => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Colours the verdict; the text itself stays as wide as it was.
fn coloured(row: &str, verdict: Verdict, terminal: Terminal) -> String {
    let colour = match verdict {
        Verdict::Ok => 32,
        Verdict::NotChecked => 2,
        Verdict::Warning => 33,
        Verdict::Failed => 31,
    };
    match row.strip_prefix(verdict.words()) {
        Some(rest) if terminal.colour => format!("\x1b[{colour}m{}\x1b[0m{rest}", verdict.words()),
        _ => row.to_owned(),
    }
}

/// For a terminal whose locale is not UTF-8: what is beyond ASCII, by its number.
fn ascii(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let escaped = if character.is_ascii() { None } else { Some(character.escape_unicode()) };
            let plain = escaped.is_none().then_some(character);
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}
