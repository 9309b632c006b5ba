//! Mistakes in the files of a projection.

use std::fmt;
use std::path::PathBuf;

/// A mistake in a projection's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the directory if the mistake is in no single file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: Option<u64>,
    /// The mistake, and how to correct it.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}
