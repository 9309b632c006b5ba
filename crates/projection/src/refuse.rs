//! What a statement must not have, because it would reach beyond the projection's own rows, or give
//! another result when the read model is rebuilt.

use std::convert::Infallible;
use std::ops::ControlFlow;

use sqlparser::ast::{ObjectName, ObjectNamePart, Query, Statement, Visit, Visitor};
use sqlparser::tokenizer::Token;

use crate::Table;
use crate::tokens::Placed;

/// They change or read the session, or the server.
const SESSION: [&str; 18] = [
    "BENCHMARK",
    "DATABASE",
    "FOUND_ROWS",
    "GET_LOCK",
    "IS_FREE_LOCK",
    "IS_USED_LOCK",
    "LAST_INSERT_ID",
    "LOAD_FILE",
    "MASTER_POS_WAIT",
    "RELEASE_ALL_LOCKS",
    "RELEASE_LOCK",
    "ROW_COUNT",
    "SCHEMA",
    "SLEEP",
    "SOURCE_POS_WAIT",
    "VERSION",
    "WAIT_FOR_EXECUTED_GTID_SET",
    "WAIT_UNTIL_SQL_THREAD_AFTER_GTIDS",
];

/// They give something else each time.
const UNREPEATABLE: [&str; 23] = [
    "CONNECTION_ID",
    "CURDATE",
    "CURRENT_DATE",
    "CURRENT_ROLE",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_USER",
    "CURTIME",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "NOW",
    "RAND",
    "RANDOM_BYTES",
    "SESSION_USER",
    "SYSDATE",
    "SYSTEM_USER",
    "UNIX_TIMESTAMP",
    "USER",
    "UTC_DATE",
    "UTC_TIME",
    "UTC_TIMESTAMP",
    "UUID",
    "UUID_SHORT",
];

/// Those that need no parentheses begin so.
const BARE: [&str; 3] = ["CURRENT_", "LOCALTIME", "UTC_"];

/// What stands before a name that has its columns behind it, as a function has its arguments.
const BEFORE_COLUMNS: [&str; 12] = [
    "AS",
    "CONSTRAINT",
    "EXISTS",
    "FULLTEXT",
    "IGNORE",
    "INDEX",
    "INSERT",
    "INTO",
    "KEY",
    "REFERENCES",
    "REPLACE",
    "TABLE",
];

/// Mistakes in a statement, with their lines.
pub(crate) fn refusals(tokens: &[Placed]) -> Vec<(u64, String)> {
    let solid: Vec<&Placed> = tokens.iter().filter(|placed| !placed.is_space()).collect();
    let mut faults = Vec::new();
    for (index, placed) in solid.iter().enumerate() {
        let next = |offset: usize| solid.get(index + offset).map(|placed| &placed.token);
        let before = index.checked_sub(1).map(|before| solid[before]);
        let bare = placed.keyword().unwrap_or_default();
        // MySQL calls a function by its name in backticks too.
        let word = placed.name().unwrap_or_default().to_uppercase();
        let names = before.and_then(Placed::keyword);
        let called = next(1) == Some(&Token::LParen)
            && !names.is_some_and(|before| BEFORE_COLUMNS.contains(&&*before));
        let before_period = before.is_some_and(|before| before.token == Token::Period);
        // Told elsewhere.
        let assigned = next(1) == Some(&Token::Assignment) || next(2) == Some(&Token::Assignment);
        if assigned {
            continue;
        }
        let mut fault = |reason: String| faults.push((placed.line, reason));
        if bare.starts_with('@') || matches!(placed.token, Token::AtSign | Token::AtAt) {
            fault("a variable of the session outlives the event and is not allowed".to_owned());
        } else if bare == "AUTO_INCREMENT" {
            fault(
                "AUTO_INCREMENT changes with every rebuild of the read model: take a key from the event"
                    .to_owned(),
            );
        } else if SESSION.contains(&&*word) && called {
            fault(format!("{word}() reaches beyond the transaction and is not allowed"));
        } else if UNREPEATABLE.contains(&&*word)
            && !before_period
            && (called || BARE.iter().any(|start| bare.starts_with(start)))
        {
            fault(format!(
                "{word} changes with every rebuild of the read model: use :occurred_at, :recorded_at or \
                 :event_id"
            ));
        }
    }
    faults
}

/// Why a statement reaches for tables that are not those of the projection; `own` is empty where these
/// are not known.
///
/// What could not be parsed is looked at by its words.
pub(crate) fn foreign_table(
    parsed: Result<&Statement, &String>,
    tokens: &[Placed],
    own: &[Table],
) -> Option<String> {
    let is_own = |name: &str| own.iter().any(|table| table.name.eq_ignore_ascii_case(name));
    let qualified = |name: &str| {
        format!("{name} is in another database: a projection changes its own tables only")
    };
    let unknown = |name: &str| {
        format!(
            "{name} is not a table of this projection: it reads and changes its own tables only"
        )
    };
    let Ok(parsed) = parsed else {
        return foreign_words(tokens, is_own, !own.is_empty()).map(|found| match found {
            Foreign::Qualified(name) => qualified(&name),
            Foreign::Unknown(name) => unknown(&name),
        });
    };
    let mut relations = Relations::default();
    let ControlFlow::Continue(()) = parsed.visit(&mut relations);
    relations.named.iter().find_map(|name| match &name.0[..] {
        [ObjectNamePart::Identifier(one)] => {
            let given = |known: &&String| known.eq_ignore_ascii_case(&one.value);
            let known = own.is_empty()
                || is_own(&one.value)
                || is_no_table(&one.value)
                || relations.given.iter().any(|known| given(&known));
            (!known).then(|| unknown(&one.value))
        }
        _ => Some(qualified(&name.to_string())),
    })
}

/// What stands where tables do, but is none.
fn is_no_table(name: &str) -> bool {
    ["DUAL", "JSON_TABLE", "LATERAL"].iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The tables that a statement names.
#[derive(Default)]
struct Relations {
    named: Vec<ObjectName>,
    /// Common table expressions, which it makes itself.
    given: Vec<String>,
}

impl Visitor for Relations {
    type Break = Infallible;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Infallible> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        self.given.extend(with.map(|table| table.alias.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Infallible> {
        self.named.push(name.clone());
        ControlFlow::Continue(())
    }
}

enum Foreign {
    Qualified(String),
    Unknown(String),
}

/// The first name, by what stands around it, of a table that is not the projection's own.
fn foreign_words(
    tokens: &[Placed],
    is_own: impl Fn(&str) -> bool,
    known_all: bool,
) -> Option<Foreign> {
    let solid: Vec<&Placed> = tokens.iter().filter(|placed| !placed.is_space()).collect();
    let before = |index: usize| index.checked_sub(1).map(|before| solid[before]);
    let keyword = |index: usize| before(index).and_then(Placed::keyword).unwrap_or_default();
    // Behind AS, a parenthesis or a table.
    let given: Vec<&str> = (0..solid.len())
        .filter(|index| {
            let behind = before(*index);
            keyword(*index) == "AS"
                || behind.is_some_and(|it| it.token == Token::RParen)
                || behind.and_then(Placed::name).is_some_and(&is_own)
        })
        // `WITH name AS (…)`
        .chain(
            (1..solid.len()).filter(|index| *index > 1 && keyword(*index) == "AS").map(|it| it - 2),
        )
        .filter_map(|index| solid[index].name())
        .collect();
    let known = |name: &str| is_own(name) || is_no_table(name) || given.contains(&name);
    // The words before the parentheses that are open.
    let mut open = Vec::new();
    for (index, placed) in solid.iter().enumerate() {
        match placed.token {
            Token::LParen => open.push(keyword(index)),
            Token::RParen => drop(open.pop()),
            _ => {}
        }
        let Some(name) = placed.name() else { continue };
        let follows = |token: &Token| before(index).is_some_and(|it| it.token == *token);
        if follows(&Token::Period) || follows(&Token::Colon) {
            continue;
        }
        let period = solid.get(index + 1).is_some_and(|next| next.token == Token::Period);
        if period && !known(name) {
            let rest = solid.get(index + 2).and_then(|it| it.name()).unwrap_or_default();
            return Some(Foreign::Qualified(format!("{name}.{rest}")));
        }
        // EXTRACT(YEAR FROM column)
        let argument = ["EXTRACT", "MID", "SUBSTR", "SUBSTRING", "TRIM"];
        let argument = open.last().is_some_and(|word| argument.contains(&&**word));
        let place = match &*keyword(index) {
            "FROM" => !argument,
            "INTO" | "JOIN" | "STRAIGHT_JOIN" => true,
            "UPDATE" => index == 1,
            _ => false,
        };
        let word = placed.keyword().unwrap_or_default();
        if known_all && place && !known(name) && !["IGNORE", "LOW_PRIORITY"].contains(&&*word) {
            return Some(Foreign::Unknown(name.to_owned()));
        }
    }
    None
}

/// What a statement that begins with WITH goes on to do.
pub(crate) fn verb_after_with(tokens: &[Placed]) -> Option<String> {
    let mut depth = 0_usize;
    tokens.iter().filter(|placed| !placed.is_space()).find_map(|placed| {
        match placed.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
        let verbs = ["DELETE", "INSERT", "REPLACE", "SELECT", "TABLE", "UPDATE", "VALUES"];
        placed.keyword().filter(|word| depth == 0 && verbs.contains(&&**word))
    })
}
