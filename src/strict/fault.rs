//! What can be wrong with a file, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file that cannot be used, with what it was meant to be.
#[derive(Debug, Error)]
#[error("{what}{}: {fault}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
pub struct FileError {
    /// What the file was meant to be, such as "KEK record".
    pub what: &'static str,
    /// Where it lies, if it was read from a file.
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    pub fault: Box<Fault>,
}

impl FileError {
    /// The error about `what`, which was or was not read from a file.
    pub fn new(what: &'static str, path: Option<&Path>, fault: Fault) -> Self {
        Self { what, path: path.map(Path::to_path_buf), fault: Box::new(fault) }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        self.fault.hint()
    }
}

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum Fault {
    /// It begins with a byte-order mark.
    #[error("line 1: the file begins with a byte-order mark")]
    ByteOrderMark,
    /// Values of one file that are good alone do not go together.
    #[error("{}`{field}`: {problem}", place.map(|place| format!("{place}: ")).unwrap_or_default())]
    Conflict {
        /// The field with the names of its mappings.
        field: String,
        /// Where it stands, or the nearest mapping around it that is there.
        place: Option<Place>,
        /// The rule that is broken.
        problem: String,
        /// What to do about it.
        hint: String,
    },
    /// A key stands twice in one mapping.
    #[error("{place}: duplicate key `{key}`")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Where it stands the second time.
        place: Place,
    },
    /// It has no content.
    #[error("the file is empty")]
    Empty,
    /// A key that must be there is not.
    #[error("{place}: missing key `{key}`")]
    MissingKey {
        /// The key with the names of its mappings.
        key: String,
        /// Where its mapping begins.
        place: Place,
    },
    /// It is not UTF-8 text.
    #[error("line {line}: the file is not UTF-8 text")]
    NotText {
        /// The first line with other bytes.
        line: usize,
    },
    /// It cannot be read.
    #[error("the file cannot be read: {error}")]
    Read {
        /// The operating system's reason.
        error: std::io::Error,
    },
    /// Values that are good alone do not go together.
    #[error("`{field}`: {problem}")]
    Rule {
        /// The field with the names of its mappings.
        field: &'static str,
        /// The rule that is broken.
        problem: String,
        /// What to do about it.
        hint: String,
    },
    /// It has more than one YAML document.
    #[error("the file has more than one YAML document")]
    SeveralDocuments,
    /// It is not well-formed.
    #[error("{place}: {problem}")]
    Syntax {
        /// The parser's words.
        problem: String,
        /// Where the parser stopped.
        place: Place,
    },
    /// A line is indented with a tab.
    #[error("tab at line {line}: YAML wants spaces")]
    Tab {
        /// The first such line.
        line: usize,
    },
    /// It is longer than any such file.
    #[error("the file has more than {most} bytes")]
    TooLong {
        /// As many as it may have.
        most: usize,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{key}`")]
    UnknownKey {
        /// The key with the names of its mappings.
        key: String,
        /// Where it stands.
        place: Place,
        /// The keys that may stand there.
        allowed: Vec<String>,
        /// The one of them that was probably meant.
        nearest: Option<String>,
    },
    /// A value that cannot be used.
    #[error("{place}: `{field}`: {problem}")]
    Value {
        /// The field with the names of its mappings.
        field: String,
        /// What was expected.
        problem: String,
        /// Where it stands.
        place: Place,
    },
    /// A version of the format that this release does not know.
    #[error("version {found} is not known, this release reads version {known}")]
    Version {
        /// As the file says.
        found: u64,
        /// The version that this release reads.
        known: u64,
    },
}

/// A place in a file; both count from 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in bytes.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}, column {}", self.line, self.column)
    }
}

impl Fault {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::ByteOrderMark => "save it as UTF-8 without a byte-order mark".to_owned(),
            Self::DuplicateKey { .. } => "keep one of the two".to_owned(),
            Self::Empty => "write the file first, or check its path".to_owned(),
            Self::MissingKey { .. } => "add the key".to_owned(),
            Self::NotText { .. } => "save it as UTF-8".to_owned(),
            Self::Read { .. } => "check the path and the permissions of the file and its directories".to_owned(),
            Self::Conflict { hint, .. } | Self::Rule { hint, .. } => hint.clone(),
            Self::SeveralDocuments => "keep one document: remove the line `---` or `...` and what follows".to_owned(),
            Self::Syntax { .. } => "correct the line, or the one before it".to_owned(),
            Self::Tab { .. } => "replace each tab by spaces".to_owned(),
            Self::TooLong { .. } => "check that it is the right file".to_owned(),
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::UnknownKey { allowed, .. } if allowed.is_empty() => "remove the key".to_owned(),
            Self::UnknownKey { allowed, .. } => format!("allowed here: {}", allowed.join(", ")),
            Self::Value { .. } => "correct the value".to_owned(),
            Self::Version { .. } => "use the release that the file was written for, or a later one".to_owned(),
        }
    }
}
