//! Directives: comments that begin with `projector:`, before the statement that they are for.

use crate::tokens::Placed;

const PREFIX: &str = "projector:";

/// What the comments of a statement ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    /// `rows = 1`: how many rows the statement must find.
    pub(crate) rows: Option<u64>,
    /// `one by one`: never run it for many events at once.
    pub(crate) one_by_one: bool,
}

/// Reads the directives among the tokens of a statement; a mistake comes with its line.
pub(crate) fn directives(tokens: &[Placed]) -> Result<Directives, Vec<(u64, String)>> {
    let mut found = Directives::default();
    let mut faults = Vec::new();
    let mut begun = false;
    // Behind the semicolon of another statement a directive would look like that one's.
    let mut own_line = tokens.first().is_none_or(|placed| placed.bytes.start == 0);
    for placed in tokens {
        begun |= !placed.is_space();
        let misplaced = begun || !own_line;
        own_line |= placed.ends_line();
        let Some(text) = placed.comment().and_then(|text| text.strip_prefix(PREFIX)) else {
            continue;
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        match *words {
            _ if misplaced => faults.push((
                placed.line,
                "a directive stands on a line of its own before its statement".to_owned(),
            )),
            ["rows", "=", number] if number.parse::<u64>().is_ok() => {
                found.rows = number.parse().ok();
            }
            ["one", "by", "one"] => found.one_by_one = true,
            _ => faults.push((
                placed.line,
                format!("unknown directive{text}: known are `rows = 1` and `one by one`"),
            )),
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}
