//! What a statement must not have, because it would reach beyond the projection's own rows, or give
//! another result when the read model is built anew.

use std::ops::ControlFlow;

use sqlparser::ast::{Statement, visit_relations};
use sqlparser::tokenizer::Token;

use super::tokens::Placed;

/// They change or read the session, or the server.
const SESSION: [&str; 10] = [
    "BENCHMARK",
    "FOUND_ROWS",
    "GET_LOCK",
    "IS_FREE_LOCK",
    "IS_USED_LOCK",
    "LAST_INSERT_ID",
    "LOAD_FILE",
    "RELEASE_ALL_LOCKS",
    "RELEASE_LOCK",
    "SLEEP",
];

/// They give something else each time.
const UNREPEATABLE: [&str; 16] = [
    "CONNECTION_ID",
    "CURDATE",
    "CURRENT_DATE",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_USER",
    "CURTIME",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "NOW",
    "RAND",
    "RANDOM_BYTES",
    "SYSDATE",
    "UNIX_TIMESTAMP",
    "UTC_TIMESTAMP",
    "UUID",
];

/// Mistakes in a statement, with their lines.
pub(super) fn refusals(tokens: &[Placed]) -> Vec<(u64, String)> {
    let solid: Vec<&Placed> = tokens.iter().filter(|placed| !placed.is_space()).collect();
    let mut faults = Vec::new();
    for (index, placed) in solid.iter().enumerate() {
        let next = |offset: usize| solid.get(index + offset).map(|placed| &placed.token);
        let word = placed.keyword().unwrap_or_default();
        let called = next(1) == Some(&Token::LParen);
        let before_period = index > 0 && solid[index - 1].token == Token::Period;
        // Told elsewhere.
        let assigned = next(1) == Some(&Token::Assignment) || next(2) == Some(&Token::Assignment);
        if assigned {
            continue;
        }
        let mut fault = |reason: String| faults.push((placed.line, reason));
        if word.starts_with('@') || matches!(placed.token, Token::AtSign | Token::AtAt) {
            fault("a variable of the session outlives the event and is not allowed".to_owned());
        } else if SESSION.contains(&&*word) && called {
            fault(format!("{word}() reaches beyond the transaction and is not allowed"));
        } else if UNREPEATABLE.contains(&&*word)
            && !before_period
            && (called || word.starts_with("CURRENT_") || word.starts_with("LOCALTIME"))
        {
            fault(format!(
                "{word} gives something else when the read model is built anew: use :occurred_at, \
                 :recorded_at or :event_id"
            ));
        }
    }
    faults
}

/// The first table of another database.
pub(super) fn foreign_table(parsed: &Statement) -> Option<String> {
    let found = visit_relations(parsed, |table| {
        if table.0.len() > 1 {
            ControlFlow::Break(table.to_string())
        } else {
            ControlFlow::Continue(())
        }
    });
    found.break_value().map(|table| {
        format!("{table} is in another database: a projection changes its own tables only")
    })
}
