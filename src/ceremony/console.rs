//! What the people at a ceremony see and type: a plain terminal of 80 columns, no colour, nothing redrawn, so that a serial line
//! and a paper log of it show the same.

use std::collections::VecDeque;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use comfy_table::{ContentArrangement, Table, presets};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::strict::{self, FileError};

/// A terminal, or a file that answers in its place.
pub struct Console {
    answers: Option<VecDeque<Answer>>,
    began: Option<Instant>,
}

/// Answers given in advance, for rehearsals that nobody watches and for tests. Strict: the questions must come in this order.
pub struct Answers(VecDeque<Answer>);

/// An answer to the question with this name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    question: String,
    #[serde(deserialize_with = "secret")]
    answer: SecretString,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The next answer of the file is to another question, or there is none.
    #[error("the file of answers has {}, and the question is `{asked}`", next.as_ref().map_or("no further answer".to_owned(), |next| format!("an answer to `{next}`")))]
    Order {
        /// The question.
        asked: String,
        /// What the file answers next.
        next: Option<String>,
    },
    /// Input has ended: the terminal was closed.
    #[error("the terminal was closed at the question `{0}`")]
    Closed(String),
    /// There is no terminal, and no file of answers.
    #[error("a ceremony needs a terminal: standard input is none")]
    NoTerminal,
    /// The terminal failed.
    #[error("the terminal failed: {0}")]
    Terminal(#[from] std::io::Error),
}

impl Answers {
    /// Reads a file of answers: `{"version": 1, "answers": [{"question": "clock", "answer": "12:00"}]}`, at most 64 KiB.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(rename = "version")]
            _version: u64,
            answers: VecDeque<Answer>,
        }
        let bytes = strict::read(path).map(Zeroizing::new);
        let file = bytes.and_then(|bytes| strict::json::<File>(&bytes, 1));
        file.map(|file| Self(file.answers)).map_err(|fault| FileError::new("file of answers", Some(path), fault))
    }
}

impl Console {
    /// The terminal of this process, or these answers.
    pub fn new(answers: Option<Answers>) -> Result<Self, ConsoleError> {
        if answers.is_none() && !std::io::stdin().is_terminal() {
            return Err(ConsoleError::NoTerminal);
        }
        Ok(Self { answers: answers.map(|answers| answers.0), began: None })
    }

    /// Whether the answers come from a file.
    pub fn is_answered_from_file(&self) -> bool {
        self.answers.is_some()
    }

    /// A heading across the screen, and beneath it lines of a name and a text.
    pub fn heading(&mut self, title: &str, right: &str, lines: &[(&str, &str)]) {
        let right = if right.is_empty() { String::new() } else { format!(" {right}") };
        let rule = "-".repeat(WIDTH.saturating_sub(title.chars().count() + right.chars().count() + 4));
        self.say(&format!("\n-- {title} {rule}{right}\n{}", columns(lines)));
    }

    /// A line, or several, as they are.
    pub fn say(&mut self, text: &str) {
        // Nobody watching is no reason to stop: the transcript has it all.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Text on lines of at most 80 columns.
    pub fn tell(&mut self, text: &str) {
        self.say(&columns(&[("", text)]));
    }

    /// Begins a line about work that may take a while.
    pub fn begin(&mut self, what: &str) {
        self.began = Some(Instant::now());
        let mut out = std::io::stderr().lock();
        let _ = write!(out, "   {what} ... ").and_then(|()| out.flush());
    }

    /// Ends the line that [`Self::begin`] began.
    pub fn done(&mut self, outcome: &str) {
        let seconds = self.began.take().map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.say(&format!("{seconds:.1} s"));
        self.tell(outcome);
    }

    /// Ends it because the work failed.
    pub fn stopped(&mut self) {
        if self.began.take().is_some() {
            self.say("stopped");
        }
    }

    /// Waits until somebody presses Enter: the next screen begins. A file of answers does not wait.
    pub fn pause(&mut self) -> Result<(), ConsoleError> {
        if self.answers.is_some() {
            return Ok(());
        }
        prompt("   Enter to go on: ");
        line("pause").map(drop)
    }

    /// Asks, and returns the answer without blanks around it.
    pub fn ask(&mut self, question: &str, text: &str) -> Result<String, ConsoleError> {
        if self.answers.is_some() {
            prompt(&format!(" > {text}: "));
            let answer = self.answered(question)?;
            self.say(answer.expose_secret());
            return Ok(answer.expose_secret().trim().to_owned());
        }
        prompt(&format!(" > {text}: "));
        line(question)
    }

    /// Asks for what must not be seen.
    pub fn ask_hidden(&mut self, question: &str, text: &str) -> Result<SecretString, ConsoleError> {
        // Before the question stands there: whoever types fast must not be shown either.
        let quiet = if self.answers.is_none() { Some(Quiet::new()?) } else { None };
        prompt(&format!(" > {text} (not shown): "));
        let answer = match quiet {
            Some(_) => SecretString::from(line(question)?),
            None => self.answered(question)?,
        };
        drop(quiet);
        self.say("");
        Ok(answer)
    }

    /// Shows what only one person may see, on lines of at most 80 columns.
    pub fn show_secret(&mut self, text: &str) {
        let mut line = Zeroizing::new(String::from("\n      "));
        for (position, group) in text.split(' ').enumerate() {
            line.push_str(group);
            line.push_str(if position % 8 == 7 { "\n\n      " } else { "  " });
        }
        line.push('\n');
        self.say(&line);
    }

    /// Takes what was shown off the screen and out of what can be scrolled back to, where the terminal can do that.
    pub fn clear(&mut self) {
        if std::io::stderr().is_terminal() {
            self.say("\x1b[2J\x1b[3J\x1b[H");
        }
    }

    fn answered(&mut self, question: &str) -> Result<SecretString, ConsoleError> {
        let answers = self.answers.get_or_insert_default();
        if answers.front().is_some_and(|next| next.question == question)
            && let Some(next) = answers.pop_front()
        {
            return Ok(next.answer);
        }
        let next = answers.front().map(|next| next.question.clone());
        // What is told next does not stand behind the question.
        prompt("\n");
        Err(ConsoleError::Order { asked: question.to_owned(), next })
    }
}

/// A terminal that does not show what is typed, for as long as this lives.
struct Quiet(Termios);

impl Quiet {
    fn new() -> Result<Self, ConsoleError> {
        let input = std::io::stdin();
        let before = tcgetattr(&input).map_err(std::io::Error::from)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        // What was typed before the question is no answer to it.
        tcsetattr(&input, OptionalActions::Flush, &quiet).map_err(std::io::Error::from)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn prompt(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

fn line(question: &str) -> Result<String, ConsoleError> {
    // It may be a half of a PIN, or a part of a share.
    let mut line = Zeroizing::new(String::with_capacity(LINE));
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        prompt("\n");
        return Err(ConsoleError::Closed(question.to_owned()));
    }
    Ok(line.trim().to_owned())
}

/// An answer may be a half of a PIN.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

/// Longer than what people type: a text that grows leaves copies behind.
const LINE: usize = 4096;

/// Columns of the screen.
const WIDTH: usize = 80;

/// Names on the left, texts on the right, at most 80 columns.
fn columns(lines: &[(&str, &str)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(78);
    for (name, text) in lines {
        if name.is_empty() {
            table.add_row([text])
        } else {
            table.add_row([name, text])
        };
    }
    table.lines().map(|line| format!("  {}", line.trim_end())).collect::<Vec<_>>().join("\n")
}
