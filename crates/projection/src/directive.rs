//! Directives: comments that begin with `projector:` and stand before the statement that they apply to.

use crate::tokens::Placed;

const PREFIX: &str = "projector:";

/// The directives of one statement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    /// `rows = 1`: the number of rows that the statement must find.
    pub(crate) rows: Option<u64>,
    /// `one by one`: the statement is not batchable, so it runs once for each event.
    pub(crate) one_by_one: bool,
}

/// Reads the directives among the tokens of a statement.
///
/// # Errors
///
/// Each mistake with its line.
pub(crate) fn directives(tokens: &[Placed]) -> Result<Directives, Vec<(u64, String)>> {
    let mut found = Directives::default();
    let mut faults = Vec::new();
    let mut begun = false;
    // A directive behind the semicolon of another statement would look as if it applied to that statement.
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
                "a directive must stand on its own line, before its statement".to_owned(),
            )),
            ["rows", "=", number] if number.parse::<u64>().is_ok() => {
                found.rows = number.parse().ok();
            }
            ["one", "by", "one"] => found.one_by_one = true,
            _ => faults.push((
                placed.line,
                format!("unknown directive{text}: use `rows = 1` or `one by one`"),
            )),
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}
